"""Reader `indexed`: the file convention of LC-Rec and MQL4GRec becomes raw interactions and raw items.

`X.inter.json` maps the index of each user to item indices in time order. `X.item2id` and `X.user2id` map the original
ids to these indices. `X.item.json` may add titles and descriptions. Any file may be gzipped and end in `.gz`. The files
hold no times, so the position in the sequence stands in for the time.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from macrec_pipeline.data.readers.column_parsing import compose_texts, text_cells
from macrec_pipeline.data.readers.reader import Reader, raw_table
from macrec_pipeline.data.readers.text_files import open_unpacked, require_file_or_gz
from macrec_pipeline.datasets import IndexedSource
from macrec_pipeline.errors import MissingFileError, SchemaError
from macrec_pipeline.runtime.time_units import MINUTE_MS
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

# Made-up times for a log that only has an order: from 2018-01-01 00:00 UTC, one minute per position, for every user.
_FIRST_TIME = 1_514_764_800_000
_STEP = MINUTE_MS


@dataclass(frozen=True)
class IndexedReader(Reader):
    """Reads sequences of item indices, and the ids that the indices stand for."""

    source: IndexedSource
    data_dir: Path

    def interaction_parts(self) -> Iterator[pl.DataFrame]:
        """Yield `X.inter.json` as one `RAW_INTERACTIONS`; `source_row` counts interactions from 1, ratings are null.

        Raises:
            MissingFileError: a file does not exist.
            SchemaError: a file has another format, or an index has no id.
        """
        return iter([self._interactions()])

    def items(self) -> pl.DataFrame:
        """Return `X.item2id` as `RAW_ITEMS`, with titles and texts from `X.item.json`; without it the id is the title.

        Raises:
            MissingFileError: `X.item2id` does not exist.
            SchemaError: a file has another format.
        """
        file, item_ids_by_index = read_index_map(self.source, "item2id", self.data_dir)
        details = self._item_details()
        rows = [details.get(str(index), {}) for index in item_ids_by_index]
        titles = text_cells(pl.Series("title", [_joined(row.get("title")) for row in rows], dtype=pl.String))
        descriptions = text_cells(pl.Series("text", [_joined(row.get("description")) for row in rows], dtype=pl.String))
        item_ids = pl.Series("item_id", list(item_ids_by_index.values()), dtype=pl.String)
        columns = pl.DataFrame(
            {
                "item_id": item_ids,
                "title": pl.select(pl.coalesce(titles, item_ids)).to_series(),
                "text": compose_texts(titles, [descriptions]),
            }
        )
        return raw_table(RAW_ITEMS, columns, file=file)

    def problems(self) -> list[str]:
        """Return the missing files, and whether only one of the two index files is named."""
        source = self.source
        optional = (source.text_index, source.image_index, source.text_embeddings, source.image_embeddings)
        problems = []
        for suffix in ("inter.json", "item2id", "user2id", *(suffix for suffix in optional if suffix is not None)):
            try:
                find_indexed_file(source, suffix, self.data_dir)
            except MissingFileError as error:
                problems.append(str(error))
        if (source.text_index is None) != (source.image_index is None):
            problems.append("source.text_index and source.image_index belong together: set both, or neither.")
        return problems

    def source_files(self) -> list[Path]:
        """Return the files of the interactions and of both id lists. Raise `MissingFileError`."""
        suffixes = ("inter.json", "item2id", "user2id")
        return [find_indexed_file(self.source, suffix, self.data_dir)[0] for suffix in suffixes]

    def _interactions(self) -> pl.DataFrame:
        path, file = find_indexed_file(self.source, "inter.json", self.data_dir)
        users_file, users = read_index_map(self.source, "user2id", self.data_dir)
        items_file, items = read_index_map(self.source, "item2id", self.data_dir)
        user_ids: list[str] = []
        item_ids: list[str] = []
        positions: list[int] = []
        for key, sequence in read_json_object(path, file).items():
            if not key.isdecimal() or int(key) not in users:
                raise SchemaError(f"{file}: user {key!r} has no id in {users_file}. Both files must be of one edition.")
            if not isinstance(sequence, list) or not all(isinstance(item, int) for item in sequence):
                raise SchemaError(f"{file}: user {key!r} has {str(sequence)[:60]!r}, expected a list of item indices.")
            unknown = next((item for item in sequence if item not in items), None)
            if unknown is not None:
                raise SchemaError(
                    f"{file}: item {unknown} of user {key!r} has no id in {items_file}. Both files must be of one "
                    "edition."
                )
            user_ids.extend([users[int(key)]] * len(sequence))
            item_ids.extend(items[item] for item in sequence)
            positions.extend(range(len(sequence)))
        columns = pl.DataFrame(
            {"user_id": user_ids, "item_id": item_ids, "position": positions},
            schema={"user_id": pl.String, "item_id": pl.String, "position": pl.Int64},
        ).select("user_id", "item_id", (_FIRST_TIME + _STEP * pl.col("position")).alias("timestamp"))
        return raw_table(RAW_INTERACTIONS, columns, file=file)

    def _item_details(self) -> dict[str, dict[str, Any]]:
        try:
            path, file = find_indexed_file(self.source, "item.json", self.data_dir)
        except MissingFileError:
            return {}
        details = read_json_object(path, file)
        malformed = next((key for key, value in details.items() if not isinstance(value, dict)), None)
        if malformed is not None:
            raise SchemaError(f"{file}: item {malformed!r} is not an object with the fields title and description.")
        return details


def find_indexed_file(source: IndexedSource, suffix: str, data_dir: Path) -> tuple[Path, str]:
    """Return the path of `X.<suffix>` or `X.<suffix>.gz`, and its path below the data folder.

    Raises:
        MissingFileError: neither file exists.
    """
    relative = f"{source.folder}/{source.prefix}.{suffix}"
    return require_file_or_gz(data_dir, relative, what=f"reader indexed, {source.prefix}.{suffix}")


def read_json_object(path: Path, file: str) -> dict[str, Any]:
    """Read a JSON object from a plain or gzip file. Raise `SchemaError` if the file holds anything else."""
    try:
        with open_unpacked(path) as stream:
            content = json.load(stream)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SchemaError(f"{file} cannot be read as JSON: {error}.") from None
    if not isinstance(content, dict):
        raise SchemaError(f"{file} holds a JSON {type(content).__name__}, expected an object.")
    return content


def read_index_map(source: IndexedSource, suffix: str, data_dir: Path) -> tuple[str, dict[int, str]]:
    """Read the id of each index from `X.item2id` or `X.user2id`, which hold one `id<TAB>index` per line.

    Returns:
        The path of the file below the data folder, and index -> id in the order of the lines.

    Raises:
        MissingFileError: the file does not exist.
        SchemaError: a line has another format, or repeats an id or an index; names the line.
    """
    path, file = find_indexed_file(source, suffix, data_dir)
    with open_unpacked(path) as stream:
        lines = stream.read().decode("utf-8", errors="replace").splitlines()
    ids_by_index: dict[int, str] = {}
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, separator, index = line.rpartition("\t")
        name = name.strip()
        if not separator or not name or not index.strip().isdecimal():
            raise SchemaError(f"{file}, line {number}: got {line!r}, expected an id, a tab and an index.")
        if name in seen or int(index) in ids_by_index:
            raise SchemaError(
                f"{file}, line {number}: the id {name!r} or the index {int(index)} already occurred in an earlier line."
            )
        ids_by_index[int(index)] = name
        seen.add(name)
    return file, ids_by_index


def _joined(value: Any) -> str | None:
    """Return a text, or the texts of a list joined by spaces."""
    if isinstance(value, list):
        return " ".join(str(part) for part in value)
    return None if value is None else str(value)
