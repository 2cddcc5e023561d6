"""What exports of shops and data programs look like: read as they are meant, or refused with file, cells and remedy."""

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from macrec_pipeline.data.readers.list_literals import list_of_texts
from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items, validate_source
from macrec_pipeline.data.readers.source_preview import preview_source
from macrec_pipeline.datasets import DatasetSpec
from macrec_pipeline.errors import DataError

_TIME = 1_700_000_000
_LOG = f"u,i,t\n1,A,{_TIME}\n"


def _spec(log: dict[str, Any] | None = None, items: dict[str, Any] | None = None) -> DatasetSpec:
    interactions = {"file": "log.csv", "user_id": "u", "item_id": "i", "timestamp": "t"} | (log or {})
    catalogue = {"file": "items.csv", "item_id": "id", "title": "name"} | (items or {})
    source = {"reader": "tables", "interactions": interactions, "items": catalogue}
    return DatasetSpec.model_validate({"name": "s", "title": "S", "source": source})


def _write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in {"items.csv": "id,name\nA,Ball\n", **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _rows(folder: Path, **log: Any) -> list[tuple[Any, ...]]:
    spec = _spec(log)
    assert validate_source(spec, folder) == []
    table = read_raw_interactions(spec, folder)
    return table.select("user_id", "item_id", pl.col("timestamp") // 1000, "source_file", "source_row").rows()


def test_files_without_bytes_are_days_without_rows(tmp_path: Path) -> None:
    """In a folder they are left out; alone, such a file is an error. A file with only a header has no rows either."""
    _write(
        tmp_path, {"log/1.csv": _LOG, "log/2.csv": "", "log/3.csv": "u,i,t\n", "log/_SUCCESS": "", "log/.x.crc": "x"}
    )
    assert _rows(tmp_path, file="log") == [("1", "A", _TIME, "log/1.csv", 2)]
    assert _rows(tmp_path, file="log/*.csv") == [("1", "A", _TIME, "log/1.csv", 2)]
    (problem,) = validate_source(_spec({"file": "log/2.csv"}), tmp_path)
    assert problem.startswith("log/2.csv: the file is empty")
    assert preview_source(_spec({"file": "log/3.csv"}), tmp_path).problems == ("The log has no rows.",)


def test_a_folder_of_files_without_endings_names_the_setting(tmp_path: Path) -> None:
    """Hadoop writes part-00000; nothing tells the format."""
    _write(tmp_path, {"log/part-00000": _LOG})
    with pytest.raises(DataError, match="It holds other files, such as log/part-00000: set `format`"):
        read_raw_interactions(_spec({"file": "log"}), tmp_path)
    assert _rows(tmp_path, file="log", format="csv") == [("1", "A", _TIME, "log/part-00000", 2)]


def test_folders_are_columns_of_files_without_a_header_too(tmp_path: Path) -> None:
    """Positions count the columns of the file, and the name of a folder is a name."""
    _write(tmp_path, {"log/day=2023-11-14/p.csv": "1,A\n"})
    columns = {"header": False, "user_id": 0, "item_id": 1, "timestamp": "day", "timestamp_unit": "iso"}
    assert _rows(tmp_path, file="log", **columns) == [("1", "A", 1_699_920_000, "log/day=2023-11-14/p.csv", 1)]


def test_each_file_of_a_folder_decides_about_its_ids(tmp_path: Path) -> None:
    """pandas writes `18.0` on the days on which an id is missing, and `18` on the others."""
    _write(tmp_path, {"log/1.csv": f"u,i,t\n1,18,{_TIME}\n", "log/2.csv": f"u,i,t\n1.0,18.0,{_TIME}\n"})
    assert [row[:2] for row in _rows(tmp_path, file="log")] == [("1", "18"), ("1", "18")]


@pytest.mark.parametrize("name", ["log[2024].csv", "a*.csv", "what?.csv", "x{1}.csv", "home[2]/log.csv"])
def test_a_name_is_a_name(tmp_path: Path, name: str) -> None:
    """Neighbours that the name would match as a pattern are not read."""
    _write(tmp_path, {name: _LOG, "log2.csv": "u,i,t\n9,B,5\n", "ab.csv": "u,i,t\n9,B,5\n", "what1.csv": "u,i,t\n"})
    assert _rows(tmp_path, file=name) == [("1", "A", _TIME, name, 2)]
    pl.DataFrame({"u": [1], "i": ["A"], "t": [_TIME]}).write_parquet(tmp_path / f"{name}.parquet")
    assert _rows(tmp_path, file=f"{name}.parquet") == [("1", "A", _TIME, f"{name}.parquet", 1)]


def test_packed_files_of_several_parts_are_read_to_the_end(tmp_path: Path) -> None:
    """Files of several gzip members or zstd frames, also with the frame that pzstd writes in front, are one file."""
    halves = (_LOG.encode(), f"2,A,{_TIME}\n".encode())
    frames = [pa.Codec("zstd").compress(half, asbytes=True) for half in halves]
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    for name, content in (
        ("a.csv.gz", b"".join(map(gzip.compress, halves))),
        ("b.csv.zst", b"".join(frames)),
        ("c.csv.zst", skipped + b"".join(frames)),
        ("d.csv", frames[0] + skipped + frames[1]),
    ):
        _write(tmp_path, {name: content})
        assert [row[0] for row in _rows(tmp_path, file=name)] == ["1", "2"], name


@pytest.mark.parametrize(
    ("content", "log", "message"),
    [
        ('{"u": 1, "i": "A", "t": 5}\n', {}, r"log.csv: the first line looks like JSON: .*`format: jsonl`"),
        ('[\n{"u": 1}]\n', {}, "looks like JSON.*jq"),
        ('[{"u": 1},\n{"u": 2}]\n', {"format": "jsonl"}, "log.csv: none of the first .* one JSON list: .*jq"),
        (
            '{"u": 1, "i": "A", "t": 5}\n'.encode("utf-16"),
            {"format": "jsonl"},
            "log.csv is UTF-16 text, expected UTF-8.*`encoding: utf-16`",
        ),
        ("sep=;\nu;i;t\n1;A;5\n", {}, r"the first line is 'sep=;', a note for Excel\. Remove .*`separator: ';'`"),
        ("\nu,i,t\n1,A,5\n", {}, "the first row is empty.*Remove the empty line"),
        ("u,i,t\n'1','A','5'\n", {}, "The cells are in quotes: set `quote`"),
        ("u,i,t\n1,A,5\n", {"format": "parquet"}, "cannot be read as parquet.*set `format: csv`"),
    ],
)
def test_other_files_are_named_with_a_remedy(
    tmp_path: Path, content: str | bytes, log: dict[str, Any], message: str
) -> None:
    """The message says what the file is and what to set, not what a parser stumbled over."""
    import re

    _write(tmp_path, {"log.csv": content})
    (problem, *_) = validate_source(_spec(log), tmp_path)
    assert re.search(message, problem), problem


def test_json_lines_have_an_encoding(tmp_path: Path) -> None:
    """The setting was ignored for JSON lines, so that every row was unreadable."""
    _write(tmp_path, {"log.jsonl": f'{{"u": "B\u00e9", "i": "A", "t": {_TIME}}}\r\n'.encode("utf-16")})
    assert _rows(tmp_path, file="log.jsonl", encoding="utf-16") == [("B\u00e9", "A", _TIME, "log.jsonl", 1)]


_BERLIN = pa.timestamp("ns", "Europe/Berlin")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([2**64 - 1, 5], pa.uint64()), ["18446744073709551615", "5"]),
        (pa.array([-(2**63), -7], pa.int64()), ["-9223372036854775808", "-7"]),
        (pa.array(["007", "0x1F"]).dictionary_encode(), ["007", "0x1F"]),
        (pa.array([7, 8]).dictionary_encode(), ["7", "8"]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
        (pa.array([b"a", b"b"], pa.binary(1)), ["a", "b"]),
        (pa.array([18.0, 19.0]), ["18", "19"]),
    ],
)
def test_ids_of_every_arrow_type(tmp_path: Path, column: pa.Array, expected: list[str]) -> None:
    """An id is the text that the catalogue has for it."""
    times = pa.array([_TIME * 1_000_000_000] * 2, _BERLIN)
    _write(tmp_path, {})
    pq.write_table(pa.table({"u": column, "i": column, "t": times}), tmp_path / "log.parquet")
    rows = [(each, each, _TIME, "log.parquet", row) for row, each in enumerate(expected, start=1)]
    assert _rows(tmp_path, file="log.parquet") == rows


@pytest.mark.parametrize(
    ("column", "is_inexact"),
    [
        (pa.array([2.0**53, 1.0]), True),
        (pa.array([2.0**53 - 1, 1.0]), False),
        (pa.array([2.0**24, 1.0], pa.float32()), True),
        (pa.array(["1.2345678901234568e+18", "x"]), True),
        (pa.array(["12e3", "7E4"]), False),
    ],
)
def test_ids_that_lost_digits_are_noted(tmp_path: Path, column: pa.Array, is_inexact: bool) -> None:
    """A float has 53 bits, so that ids beyond them may have become one before the file was written."""
    _write(tmp_path, {})
    pq.write_table(pa.table({"u": column, "i": ["A", "A"], "t": [_TIME] * 2}), tmp_path / "log.parquet")
    notes = preview_source(_spec({"file": "log.parquet"}), tmp_path).notes
    assert any("different ids may have become one" in note for note in notes) == is_inexact


_LISTS = [["http://x/1.jpg", "http://x/2.jpg"], []]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(_LISTS),
        pa.array(_LISTS, pa.large_list(pa.large_string())),
        pa.array([[each.encode() for each in row] for row in _LISTS], pa.list_(pa.binary())),
        pa.array([*_LISTS[:1], None], pa.list_(pa.string(), 2)),
        pa.array(_LISTS, pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        pa.array(["http://x/1.jpg, http://x/2.jpg", None]),
        pa.array(['["http://x/1.jpg", "http://x/2.jpg"]', "[]"]),
        pa.array(["['http://x/1.jpg', 'http://x/2.jpg']", ""]),
        pa.array(["['http://x/1.jpg' 'http://x/2.jpg']", None]),
    ],
)
def test_lists_of_every_arrow_type(tmp_path: Path, column: pa.Array) -> None:
    """As addresses, texts and categories: never one text with brackets, nor an address that cannot exist."""
    _write(tmp_path, {"log.csv": _LOG})
    pq.write_table(pa.table({"id": ["A", "B"], "name": ["x", "y"], "c": column}), tmp_path / "items.parquet")
    mapping = {"file": "items.parquet", "texts": ["c"], "categories": "c", "categories_separator": ", "}
    spec = _spec(items={**mapping, "image_url": "c", "image": "p/{item_id}.jpg"})
    assert validate_source(spec, tmp_path) == []
    items = read_raw_items(spec, tmp_path)
    assert items["categories"].to_list() == [["http://x/1.jpg", "http://x/2.jpg"], None]
    assert items["text"].to_list() == ["x. http://x/1.jpg, http://x/2.jpg.", "y."]
    assert [cell and cell.replace(",", "") for cell in items["image_url"]] == ["http://x/1.jpg http://x/2.jpg", None]


def test_bytes_in_lists_that_are_not_text_are_an_error(tmp_path: Path) -> None:
    """The row is named, and no traceback appears."""
    _write(tmp_path, {"log.csv": _LOG})
    table = {"id": ["A", "B"], "name": ["x", "y"], "c": pa.array([[b"k"], [b"\xff"]], pa.list_(pa.binary()))}
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"items.parquet: row 2 holds bytes .*Export the column as text"):
        read_raw_items(_spec(items={"file": "items.parquet", "categories": "c"}), tmp_path)


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ('["a, b", null, "it\'s"]', ["a, b", "it's"]),
        ("['a', \"it's\", None, nan]", ["a", "it's"]),
        ("['a'\n 'b']", ["a", "b"]),
        ("[['a'], ['b']]", None),
        ('[{"a": 1}]', None),
        ("['a'", None),
        ("['a'].x", None),
        ("[__import__('os')]", None),
        ("['a']['b']", None),
    ],
)
def test_only_lists_of_texts_are_lists(cell: str, texts: list[str] | None) -> None:
    """Nothing is evaluated, and a cell that merely begins with a bracket stays as it is."""
    assert list_of_texts(cell) == texts


def test_texts_in_brackets_stay(tmp_path: Path) -> None:
    """Only a whole cell of quoted texts is a list."""
    _write(tmp_path, {"log.csv": _LOG, "items.csv": 'id,name,about\nA,x,"[sic] a ""b"" [c]"\nB,y,[1]\n'})
    assert read_raw_items(_spec(items={"texts": ["about"]}), tmp_path)["text"].to_list() == [
        'x. [sic] a "b" [c].',
        "y. [1].",
    ]
