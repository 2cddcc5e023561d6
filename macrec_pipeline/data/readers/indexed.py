"""Reader `indexed`: the file convention of LC-Rec and MQL4GRec -> raw interactions and raw items.

`X.inter.json` maps a user's index to item indices in time order, `X.item2id` and `X.user2id` map the shop's ids to
these indices, `X.item.json` may add titles and descriptions. Any file may end in `.gz`. The files hold no times: the
position in the sequence is the time.
"""

import json
from pathlib import Path
from typing import Any

import polars as pl

from macrec_pipeline.data.readers.column_parsing import text_cells
from macrec_pipeline.data.readers.input_files import open_unpacked, require_file_or_gz
from macrec_pipeline.data.readers.item_texts import compose_texts
from macrec_pipeline.datasets import IndexedSource
from macrec_pipeline.errors import MissingFileError, SchemaError
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

# Made-up times for a log that has only an order: 2018-01-01 00:00 UTC, then one minute a position, for every user.
_FIRST_TIME = 1_514_764_800_000
_STEP = 60_000


def find_indexed_file(source: IndexedSource, suffix: str, data_dir: Path) -> tuple[Path, str]:
    """Path of `X.<suffix>` or `X.<suffix>.gz`, and its path below the data folder. Raises `MissingFileError`."""
    relative = f"{source.folder}/{source.prefix}.{suffix}"
    return require_file_or_gz(data_dir, relative, what=f"reader indexed, {source.prefix}.{suffix}")


def read_json_object(path: Path, file: str) -> dict[str, Any]:
    """A JSON object from a plain or gzip file. Raises `SchemaError` if it is something else."""
    try:
        with open_unpacked(path) as stream:
            content = json.load(stream)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SchemaError(f"{file} is not readable as JSON: {error}.") from None
    if not isinstance(content, dict):
        raise SchemaError(f"{file} holds a JSON {type(content).__name__}, expected an object.")
    return content


def read_index_map(source: IndexedSource, suffix: str, data_dir: Path) -> tuple[str, dict[int, str]]:
    """The shop's id of each index, from `X.item2id` or `X.user2id`: `id<TAB>index` a line.

    Returns:
        The file below the data folder, and index -> id in the order of the lines.

    Raises:
        MissingFileError: the file is not there.
        SchemaError: a line is something else, or an id or index is there twice; names the line.
    """
    path, file = find_indexed_file(source, suffix, data_dir)
    with open_unpacked(path) as stream:
        lines = stream.read().decode("utf-8", errors="replace").splitlines()
    names: dict[int, str] = {}
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, separator, index = line.rpartition("\t")
        name = name.strip()
        if not separator or not name or not index.strip().isdecimal():
            raise SchemaError(f"{file} line {number}: got {line!r}, expected an id, a tab and an index.")
        if name in seen or int(index) in names:
            raise SchemaError(f"{file} line {number}: the id {name!r} or the index {int(index)} was there before.")
        names[int(index)] = name
        seen.add(name)
    return file, names


def read_indexed_interactions(source: IndexedSource, data_dir: Path) -> pl.DataFrame:
    """Read `X.inter.json` as `RAW_INTERACTIONS`; `source_row` counts interactions from 1, ratings are null.

    Raises:
        MissingFileError: a file is not there.
        SchemaError: a file has another form, or an index without an id.
    """
    path, file = find_indexed_file(source, "inter.json", data_dir)
    users_file, users = read_index_map(source, "user2id", data_dir)
    items_file, items = read_index_map(source, "item2id", data_dir)
    user_ids: list[str] = []
    item_ids: list[str] = []
    positions: list[int] = []
    for key, sequence in read_json_object(path, file).items():
        if not key.isdecimal() or int(key) not in users:
            raise SchemaError(f"{file}: user {key!r} has no id in {users_file}.")
        if not isinstance(sequence, list) or not all(isinstance(item, int) for item in sequence):
            raise SchemaError(f"{file}: user {key!r} has {str(sequence)[:60]!r}, expected a list of item indices.")
        unknown = next((item for item in sequence if item not in items), None)
        if unknown is not None:
            raise SchemaError(f"{file}: item {unknown} of user {key!r} has no id in {items_file}.")
        user_ids.extend([users[int(key)]] * len(sequence))
        item_ids.extend(items[item] for item in sequence)
        positions.extend(range(len(sequence)))
    frame = pl.DataFrame(
        {"user_id": user_ids, "item_id": item_ids, "position": positions},
        schema={"user_id": pl.String, "item_id": pl.String, "position": pl.Int64},
    ).select(
        "user_id",
        "item_id",
        pl.lit(None, dtype=pl.Float64).alias("rating"),
        (_FIRST_TIME + _STEP * pl.col("position")).alias("timestamp"),
        pl.lit(file).alias("source_file"),
        pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("source_row"),
        pl.lit(None, dtype=pl.String).alias("problem"),
    )
    return RAW_INTERACTIONS.check(frame, file)


def read_indexed_items(source: IndexedSource, data_dir: Path) -> pl.DataFrame:
    """Read `X.item2id` as `RAW_ITEMS`; titles and texts from `X.item.json` if it is there, else the id is the title.

    Raises:
        MissingFileError: `X.item2id` is not there.
        SchemaError: a file has another form.
    """
    file, names = read_index_map(source, "item2id", data_dir)
    details = _item_details(source, data_dir)
    rows = [details.get(str(index), {}) for index in names]
    titles = text_cells(pl.Series("title", [_words(row.get("title")) for row in rows], dtype=pl.String))
    descriptions = text_cells(pl.Series("text", [_words(row.get("description")) for row in rows], dtype=pl.String))
    item_ids = pl.Series("item_id", list(names.values()), dtype=pl.String)
    frame = pl.DataFrame(
        {
            "item_id": item_ids,
            "title": pl.select(pl.coalesce(titles, item_ids)).to_series(),
            "text": compose_texts(titles, [descriptions]),
            "image_path": pl.repeat(None, len(names), dtype=pl.String, eager=True),
            "image_url": pl.repeat(None, len(names), dtype=pl.String, eager=True),
            "categories": pl.repeat(None, len(names), dtype=pl.List(pl.String), eager=True),
            "source_file": pl.repeat(file, len(names), eager=True),
            "source_row": pl.int_range(1, len(names) + 1, dtype=pl.Int64, eager=True),
            "problem": pl.repeat(None, len(names), dtype=pl.String, eager=True),
        }
    )
    return RAW_ITEMS.check(frame, file)


def indexed_files(source: IndexedSource, data_dir: Path) -> list[Path]:
    """The files of interactions and of both lists of ids. Raises `MissingFileError`."""
    return [find_indexed_file(source, suffix, data_dir)[0] for suffix in ("inter.json", "item2id", "user2id")]


def indexed_problems(source: IndexedSource, data_dir: Path) -> list[str]:
    """What keeps these files from being read: those that are not there, and half a pair of index files."""
    optional = (source.text_index, source.image_index, source.text_embeddings, source.image_embeddings)
    problems = []
    for suffix in ("inter.json", "item2id", "user2id", *(suffix for suffix in optional if suffix is not None)):
        try:
            find_indexed_file(source, suffix, data_dir)
        except MissingFileError as error:
            problems.append(str(error))
    if (source.text_index is None) != (source.image_index is None):
        problems.append("source.text_index and source.image_index go together: give both, or neither.")
    return problems


def _item_details(source: IndexedSource, data_dir: Path) -> dict[str, dict[str, Any]]:
    try:
        path, file = find_indexed_file(source, "item.json", data_dir)
    except MissingFileError:
        return {}
    details = read_json_object(path, file)
    wrong = next((key for key, value in details.items() if not isinstance(value, dict)), None)
    if wrong is not None:
        raise SchemaError(f"{file}: item {wrong!r} is not an object with title and description.")
    return details


def _words(value: Any) -> str | None:
    """A text, or several of them in a list, as one."""
    if isinstance(value, list):
        return " ".join(str(part) for part in value)
    return None if value is None else str(value)
