"""The store of one data set's assets: tables as parquet, everything else as folders.

In: polars tables that keep their schema, or folders of files. Out: the same, verified against the manifest that was
written with them. See `versions` for the layout and for what makes a write atomic.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from macrec_pipeline.errors import SchemaError, StorageError
from macrec_pipeline.schemas import SIDE_TABLES, TABLES, TableSchema
from macrec_pipeline.storage.manifest import Manifest, seal, verify
from macrec_pipeline.storage.published_versions import PublishedVersions
from macrec_pipeline.storage.table_files import (
    read_table_file,
    scan_table_file,
    table_file,
    write_slices_file,
    write_table_file,
)
from macrec_pipeline.storage.versions import AssetVersions

FOLDER_ASSETS = (
    "sasrec",
    "quantizer",
    "recommender",
    "evaluation_report",
    "champion_comparison",
    "champion_evaluation",
    "registered_model",
    "recommendations",
)
"""The assets that are folders; those of `schemas.TABLES` are tables."""

_DATASET_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class AssetStore:
    """The assets of one data set below a home folder.

    Args:
        home: the folder of all state (`MACREC_HOME`); made at the first write.
        dataset: the data set's name.
        url: where the assets are published; the folder then holds copies. None: the folder is where they are.

    Raises:
        StorageError: the name is not one that a data set may have.
    """

    def __init__(self, home: Path, dataset: str, *, url: str | None = None) -> None:
        if not _DATASET_NAME.fullmatch(dataset):
            raise StorageError(f"{dataset!r} cannot be a data set: its name holds only a-z, 0-9 and '-'.")
        self._dataset = dataset
        self._folder = Path(home).absolute() / dataset
        self._url = url

    def location(self, asset: str) -> Path:
        """The stable path under which the current version is found, whether it is there or not."""
        return self._versions(asset).link

    def address(self, asset: str) -> str:
        """The same to be told: the URL, where assets are published at one."""
        return self._versions(asset).address

    def has(self, asset: str) -> bool:
        """Whether a version of the asset is there; says nothing about its state."""
        return self._versions(asset).exist()

    def write_table(
        self,
        asset: str,
        table: pl.DataFrame,
        *,
        details: Mapping[str, Any] | None = None,
        beside: Mapping[str, pl.DataFrame] | None = None,
    ) -> Manifest:
        """Store a table as the asset's new version; the same table gives the same bytes.

        Args:
            asset: a name of `schemas.TABLES`.
            table: rows that keep that schema.
            details: plain JSON kept in the manifest, no part of the digest.
            beside: tables of `schemas.SIDE_TABLES`, by name, that are swapped in together with it.

        Raises:
            SchemaError: the table breaks its schema; nothing is written.
            StorageError: unknown asset, or the disk refused.
        """
        schemas = {asset: TABLES[self._known(asset, TABLES)]} | {name: SIDE_TABLES[name] for name in beside or {}}
        tables = {asset: table} | {name: side for name, side in (beside or {}).items() if side.height}
        for name, each in tables.items():
            schemas[name].check(each, where=f"to be written for {self._dataset}")

        def write(folder: Path) -> None:
            for name, each in tables.items():
                write_table_file(folder, schemas[name], name, each)

        return self._write(asset, write, details)

    def write_slices(
        self, asset: str, slices: Iterable[pl.DataFrame], *, details: Mapping[str, Any] | None = None
    ) -> Manifest:
        """Store a table that comes in parts, in the order of its rows, and need not fit into memory.

        Args:
            asset: a name of `schemas.TABLES` whose schema asks for no unique rows.
            slices: parts that keep that schema, also at their borders.
            details: plain JSON kept in the manifest, no part of the digest.

        Raises:
            SchemaError: a part breaks the schema; nothing is written.
            StorageError: unknown asset, or the disk refused.
        """
        schema = TABLES[self._known(asset, TABLES)]
        where = f"to be written for {self._dataset}"
        return self._write(asset, lambda folder: write_slices_file(folder, schema, asset, slices, where=where), details)

    def read_table(self, asset: str) -> pl.DataFrame:
        """Read a table.

        Raises:
            StorageError: it is not there yet, incomplete or damaged; says what to run.
            SchemaError: an older version of this package wrote it to another schema; says what to run.
        """
        schema = TABLES[self._known(asset, TABLES)]
        if schema.has_vectors:
            path, table = self._decode_while_verifying(asset, schema)
        else:
            path = self._table_path(asset)
            table = read_table_file(path, schema)
        return self._checked(asset, table, path)

    def scan_table(self, asset: str) -> pl.LazyFrame:
        """A table to be read in parts. Its file is verified, its schema held against names and dtypes.

        The file stays until two newer versions are written.

        Raises:
            StorageError, SchemaError: as `read_table`.
        """
        path = self._table_path(asset)
        scan = scan_table_file(path)
        self._checked(asset, scan.head(0).collect(), path)
        return scan

    def read_beside(self, asset: str, name: str) -> pl.DataFrame:
        """Read a table of `schemas.SIDE_TABLES` of an asset's version, without rows if there is none.

        Raises:
            StorageError, SchemaError: as `read_table`.
        """
        schema, path = SIDE_TABLES[name], table_file(self.folder(self._known(asset, TABLES)), name)
        return schema.check(read_table_file(path, schema), where=str(path)) if path.is_file() else schema.empty()

    def _table_path(self, asset: str) -> Path:
        path = table_file(self.folder(self._known(asset, TABLES)), asset)
        if not path.is_file():
            raise StorageError(f"{path} is no part of the version. {self._versions(asset).remedy}")
        return path

    def _decode_while_verifying(self, asset: str, schema: TableSchema) -> tuple[Path, pl.DataFrame]:
        """A large table's file and what it holds; nothing is returned of a file that is not what was written."""
        path = table_file(self._current(asset)[0], asset)
        with ThreadPoolExecutor(max_workers=1) as pool:  # hashing waits for the disk, and leaves the interpreter alone
            verified = pool.submit(self._table_path, asset)
            try:
                table = read_table_file(path, schema)
            finally:
                verified.result()  # what is wrong with the file comes before what reading it led to
        return path, table

    def _checked(self, asset: str, table: pl.DataFrame, path: Path) -> pl.DataFrame:
        versions = self._versions(asset)
        try:
            return TABLES[asset].check(table, where=str(versions.link / path.name))
        except SchemaError as error:
            raise SchemaError(f"{error} It was written by another version of this package. {versions.remedy}") from None

    def _write(self, asset: str, write: Callable[[Path], Any], details: Mapping[str, Any] | None) -> Manifest:
        versions = self._versions(asset)
        with versions.writing() as folder:
            write(folder)
            manifest = seal(folder, asset, details or {})
            versions.publish(folder, manifest)
        return manifest

    @contextmanager
    def new_folder(self, asset: str, *, details: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """A new folder to fill with files; it becomes the asset's version when the block ends without an error.

        Args:
            asset: a name of `FOLDER_ASSETS`.
            details: plain JSON kept in the manifest, read when the block ends, so it may be filled inside it.

        Raises:
            StorageError: unknown asset, nothing written, a link among the files, or the disk refused.
        """
        self._known(asset, FOLDER_ASSETS)
        versions = self._versions(asset)
        with versions.writing() as folder:
            yield folder
            versions.publish(folder, seal(folder, asset, details or {}))

    @contextmanager
    def scratch(self, asset: str) -> Iterator[Path]:
        """A folder for what a stage keeps while it works, such as a checkpoint; no part of the asset.

        It outlives an error or a kill, so that the next attempt finds it, and goes when the block ends without one. Of
        assets that are published at a URL it is sent there too, for another machine's attempt.
        """
        folder = self._folder / ".scratch" / self._known(asset, (*TABLES, *FOLDER_ASSETS))
        with self._versions(asset).work_kept(folder):
            yield folder
        shutil.rmtree(folder, ignore_errors=True)

    def folder(self, asset: str) -> Path:
        """The folder of the current version, every file verified; it stays there until two newer ones are written.

        Raises:
            StorageError: it is not there yet, incomplete or damaged; names the file and says what to run.
        """
        folder, manifest = self._current(asset)
        verify(folder, manifest, remedy=self._versions(asset).damage_remedy)
        return folder

    def manifest(self, asset: str) -> Manifest:
        """The manifest of the current version; the files themselves are not read.

        Raises:
            StorageError: it is not there yet, or the manifest is damaged; says what to run.
        """
        manifest = self._versions(asset).manifest()
        if manifest is None:
            raise self._not_there_yet(asset)
        return manifest

    def _current(self, asset: str) -> tuple[Path, Manifest]:
        versions = self._versions(asset)
        folder = versions.current()
        if folder is None:
            raise self._not_there_yet(asset)
        return folder, versions.read(folder)

    def _not_there_yet(self, asset: str) -> StorageError:
        return StorageError(
            f"{asset} of {self._dataset} is not there yet: run `macrec run {self._dataset}`, or the job "
            "full_pipeline in the UI."
        )

    def _versions(self, asset: str) -> AssetVersions:
        known = self._known(asset, (*TABLES, *FOLDER_ASSETS))
        if self._url is None:
            return AssetVersions(self._folder, known)
        return PublishedVersions(self._folder, known, url=self._url)

    def _known(self, asset: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
        if asset not in known:
            what = "a table" if known is TABLES else "a folder" if known is FOLDER_ASSETS else "an asset"
            raise StorageError(f"{asset!r} is not {what} of the store. Use one of: {', '.join(known)}.")
        return asset
