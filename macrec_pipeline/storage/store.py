"""The store of one data set's assets: tables as Parquet files, everything else as folders.

Writers pass polars tables that keep their schema, or fill folders with files. Readers get the same back, verified
against the manifest that was written with it. `versions` describes the layout on disk and what makes a write atomic,
`remote_versions` the same for assets at a URL.
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
from macrec_pipeline.storage.remote_versions import RemoteVersions
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
    "refitted_recommender",
    "evaluation_report",
    "champion_comparison",
    "champion_evaluation",
    "champion_refit",
    "registered_model",
    "recommendations",
)
"""The assets that are folders; those in `schemas.TABLES` are tables."""

_DATASET_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class AssetStore:
    """The assets of one data set below a home folder.

    Args:
        home: the folder of all state (`MACREC_HOME`), created by the first write.
        dataset: the data set's name.
        url: where assets are published; the home then holds local copies. None if the home itself holds the assets.

    Raises:
        StorageError: the name is not a valid one for a data set.
    """

    def __init__(self, home: Path, dataset: str, *, url: str | None = None) -> None:
        if not _DATASET_NAME.fullmatch(dataset):
            raise StorageError(
                f"{dataset!r} is not a valid name for a data set. A name consists of a-z, 0-9 and '-', and begins with "
                "a letter or digit."
            )
        self._dataset = dataset
        self._folder = Path(home).absolute() / dataset
        self._url = url

    def location(self, asset: str) -> Path:
        """Return the stable local path of the asset's current version, whether it exists or not."""
        return self._versions(asset).link

    def address(self, asset: str) -> str:
        """Return where a person finds the asset: its URL if assets are published at one, else its local path."""
        return self._versions(asset).address

    def has(self, asset: str) -> bool:
        """Return whether the asset has a version; its files are not checked."""
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
            asset: a name in `schemas.TABLES`.
            table: a table that conforms to the asset's schema.
            details: plain JSON for the manifest; it is not part of the digest.
            beside: side tables by their name in `schemas.SIDE_TABLES`, stored in the same version.

        Raises:
            SchemaError: a table does not conform to its schema. Nothing is written.
            StorageError: the asset is unknown, or the version cannot be written.
        """
        schemas = {asset: TABLES[self._require_known(asset, TABLES)]}
        schemas |= {name: SIDE_TABLES[name] for name in beside or {}}
        tables = {asset: table} | {name: side_table for name, side_table in (beside or {}).items() if side_table.height}
        for name, each in tables.items():
            schemas[name].check(each, where=f"to be written for {self._dataset}")

        def write(folder: Path) -> None:
            for name, each in tables.items():
                write_table_file(folder, schemas[name], name, each)

        return self._write(asset, write, details)

    def write_slices(
        self, asset: str, slices: Iterable[pl.DataFrame], *, details: Mapping[str, Any] | None = None
    ) -> Manifest:
        """Store a table slice by slice, so that it never has to fit into memory.

        Args:
            asset: a name in `schemas.TABLES` whose schema does not demand unique rows.
            slices: the table's rows, in order. Each slice, and the order across slices, must conform to the schema.
            details: plain JSON for the manifest; it is not part of the digest.

        Raises:
            SchemaError: a slice does not conform to the schema. No version is stored.
            StorageError: the asset is unknown, or the version cannot be written.
        """
        schema = TABLES[self._require_known(asset, TABLES)]
        where = f"to be written for {self._dataset}"
        return self._write(asset, lambda folder: write_slices_file(folder, schema, asset, slices, where=where), details)

    def read_table(self, asset: str) -> pl.DataFrame:
        """Read a table.

        Raises:
            StorageError: the table does not exist yet, or is incomplete or damaged. The message says what to run.
            SchemaError: an older version of this package wrote it to another schema. The message says what to run.
        """
        schema = TABLES[self._require_known(asset, TABLES)]
        if schema.has_vectors:
            path, table = self._decode_while_verifying(asset, schema)
        else:
            path = self._verified_table_path(asset)
            table = read_table_file(path, schema)
        return self._check_schema(asset, table, path)

    def scan_table(self, asset: str) -> pl.LazyFrame:
        """Return a scan of a table, to be read in batches.

        The file is verified; of the schema, only column names and dtypes are checked. The file stays available until
        two newer versions have been written.

        Raises:
            StorageError, SchemaError: as for `read_table`.
        """
        path = self._verified_table_path(asset)
        scan = scan_table_file(path)
        self._check_schema(asset, scan.head(0).collect(), path)
        return scan

    def read_beside(self, asset: str, name: str) -> pl.DataFrame:
        """Read a side table of `schemas.SIDE_TABLES` from an asset's version; it has no rows if none was stored.

        Raises:
            StorageError, SchemaError: as for `read_table`.
        """
        schema, path = SIDE_TABLES[name], table_file(self.folder(self._require_known(asset, TABLES)), name)
        return schema.check(read_table_file(path, schema), where=str(path)) if path.is_file() else schema.empty()

    def _verified_table_path(self, asset: str) -> Path:
        path = table_file(self.folder(self._require_known(asset, TABLES)), asset)
        if not path.is_file():
            raise StorageError(f"{path} is not part of the version. {self._versions(asset).rebuild_hint}")
        return path

    def _decode_while_verifying(self, asset: str, schema: TableSchema) -> tuple[Path, pl.DataFrame]:
        """Read a large table while its file is being hashed; nothing is returned from a file that was changed."""
        path = table_file(self._current(asset)[0], asset)
        with ThreadPoolExecutor(max_workers=1) as pool:  # hashing waits for the disk and releases the interpreter lock
            verification = pool.submit(self._verified_table_path, asset)
            try:
                table = read_table_file(path, schema)
            finally:
                verification.result()  # a damaged file is reported first, since it explains an error in reading
        return path, table

    def _check_schema(self, asset: str, table: pl.DataFrame, path: Path) -> pl.DataFrame:
        versions = self._versions(asset)
        try:
            return TABLES[asset].check(table, where=str(versions.link / path.name))
        except SchemaError as error:
            raise SchemaError(
                f"{error} It was written by another version of this package. {versions.rebuild_hint}"
            ) from None

    def _write(self, asset: str, write: Callable[[Path], Any], details: Mapping[str, Any] | None) -> Manifest:
        versions = self._versions(asset)
        with versions.writing() as folder:
            write(folder)
            manifest = seal(folder, asset, details or {})
            versions.publish(folder, manifest)
        return manifest

    @contextmanager
    def new_folder(self, asset: str, *, details: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Provide a folder to fill with files; it becomes the asset's version when the block ends without an error.

        Args:
            asset: a name in `FOLDER_ASSETS`.
            details: plain JSON for the manifest. It is read when the block ends, so the block may fill it.

        Raises:
            StorageError: the asset is unknown, no file or a link was written, or the version cannot be stored.
        """
        self._require_known(asset, FOLDER_ASSETS)
        versions = self._versions(asset)
        with versions.writing() as folder:
            yield folder
            versions.publish(folder, seal(folder, asset, details or {}))

    @contextmanager
    def scratch(self, asset: str) -> Iterator[Path]:
        """Provide the path of a folder for the temporary files of a stage, such as checkpoints.

        The folder is not part of the asset. It survives an error or a kill, so that the next attempt finds it, and is
        removed when the block ends without an error. If assets are published at a URL, the folder is mirrored there,
        for an attempt on another machine.
        """
        folder = self._folder / ".scratch" / self._require_known(asset, (*TABLES, *FOLDER_ASSETS))
        with self._versions(asset).mirror_scratch(folder):
            yield folder
        shutil.rmtree(folder, ignore_errors=True)

    def folder(self, asset: str) -> Path:
        """Return the folder of the current version with every file verified.

        The folder stays available until two newer versions have been written.

        Raises:
            StorageError: the asset does not exist yet, or is incomplete or damaged. The message names the file and says
                what to run.
        """
        folder, manifest = self._current(asset)
        verify(folder, manifest, remedy=self._versions(asset).damage_hint)
        return folder

    def manifest(self, asset: str) -> Manifest:
        """Return the manifest of the current version without reading its files.

        Raises:
            StorageError: the asset does not exist yet, or its manifest is damaged. The message says what to run.
        """
        manifest = self._versions(asset).manifest()
        if manifest is None:
            raise self._missing_error(asset)
        return manifest

    def _current(self, asset: str) -> tuple[Path, Manifest]:
        versions = self._versions(asset)
        folder = versions.current_folder()
        if folder is None:
            raise self._missing_error(asset)
        return folder, versions.manifest_of(folder)

    def _missing_error(self, asset: str) -> StorageError:
        return StorageError(
            f"{asset} of {self._dataset} does not exist yet: run `macrec run {self._dataset}`, or the job "
            "full_pipeline in the UI."
        )

    def _versions(self, asset: str) -> AssetVersions:
        known_asset = self._require_known(asset, (*TABLES, *FOLDER_ASSETS))
        if self._url is None:
            return AssetVersions(self._folder, known_asset)
        return RemoteVersions(self._folder, known_asset, url=self._url)

    def _require_known(self, asset: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
        if asset not in known:
            kind = "a table" if known is TABLES else "a folder" if known is FOLDER_ASSETS else "an asset"
            raise StorageError(f"{asset!r} is not {kind} of the store. Use one of: {', '.join(known)}.")
        return asset
