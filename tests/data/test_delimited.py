"""CSV and TSV files as they come: no row may vanish, and each knows its line."""

import gzip
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.data.readers.delimited import read_delimited, read_delimited_parts
from macrec_pipeline.errors import DataError, SchemaError


def _read(tmp_path: Path, content: str | bytes, *, separator: str = ",", header: bool = True):
    path = tmp_path / "log.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_delimited(path, "log.csv", separator=separator, header=header)


def test_rows_lines_and_columns(tmp_path: Path) -> None:
    """Header is line 1, cells stay strings, columns are found by name and by position."""
    table = _read(tmp_path, "user,item\n007,1.0\n8,2\n")
    assert table.column("user").to_list() == ["007", "8"]
    assert table.column(1).to_list() == ["1.0", "2"]
    assert table.lines.to_list() == [2, 3]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_quoted_cells_may_run_over_lines(tmp_path: Path, newline: str) -> None:
    """A row's number is the line on which it begins, also after cells with line breaks, separators and quotes."""
    content = newline.join(["a,b", '"x', 'y",1', '"p, ""q""",2', "z,3", ""])
    table = _read(tmp_path, content)
    assert table.lines.to_list() == [2, 4, 5]
    assert table.column("a").to_list() == [f"x{newline}y", 'p, "q"', "z"]


def test_a_row_with_too_many_cells_is_all_null(tmp_path: Path) -> None:
    """Its columns cannot be told apart, so none of its cells is believed; short rows and blank lines end in nulls."""
    table = _read(tmp_path, "a,b\n1,2\n3,4,5\n6\n\n7,8,\n9,10,11,,12\n")
    assert table.column("a").to_list() == ["1", None, "6", None, "7", None]
    assert table.column("b").to_list() == ["2", None, None, None, "8", None]
    assert table.lines.to_list() == [2, 3, 4, 5, 6, 7]


def test_the_first_row_may_be_the_odd_one(tmp_path: Path) -> None:
    """Without header the first row says how many columns there are."""
    table = _read(tmp_path, "1\t2\n3\t4\t5\n6\n", separator="\t", header=False)
    assert table.width == 2
    assert table.column(0).to_list() == ["1", None, "6"]
    assert table.lines.to_list() == [1, 2, 3]


def test_stray_quotes_inside_cells_are_characters(tmp_path: Path) -> None:
    """An inch mark does not swallow the rows after it, and they keep their lines."""
    table = _read(tmp_path, 'id,title\n1,pan 12"\n2,"a\nb"\n3,pot,9\n4,c\n')
    assert table.column("title").to_list() == ['pan 12"', "a\nb", None, "c"]
    assert table.lines.to_list() == [2, 3, 5, 6]


@pytest.mark.parametrize("broken", ['3,"never closed\n4,x\n', '3,"closed" too early\n4,x\n'])
def test_quotes_that_cannot_be_understood_are_refused_with_their_line(tmp_path: Path, broken: str) -> None:
    """Guessing would lose rows in silence."""
    with pytest.raises(SchemaError, match=r"log\.csv: the row that begins in line 3"):
        _read(tmp_path, "id,title\n2,ok\n" + broken)


def test_gzip_byte_order_mark_and_other_encodings(tmp_path: Path) -> None:
    """gzip is unpacked, a byte order mark is no part of the first name, bytes that are not UTF-8 become U+FFFD."""
    table = _read(tmp_path, gzip.compress(b"\xef\xbb\xbfid,title\n1,caf\xe9\n"))
    assert table.names == ("id", "title")
    assert table.column("title").to_list() == ["caf\ufffd"]


def test_empty_files_say_so(tmp_path: Path) -> None:
    """A file without any byte is refused; one with a header only has no rows."""
    with pytest.raises(SchemaError, match="first row is empty"):
        _read(tmp_path, "")
    assert _read(tmp_path, "a,b\n").lines.to_list() == []


def test_damaged_gzip_is_one_clear_error(tmp_path: Path) -> None:
    """A download that broke off is named, not a traceback of the unpacker."""
    packed = gzip.compress(b"a,b\n" + bytes(range(48, 58)) * 5000)
    with pytest.raises(DataError, match="cannot be read"):
        _read(tmp_path, packed[: len(packed) // 2])


def test_missing_and_ambiguous_columns_are_named(tmp_path: Path) -> None:
    """The message has the file, the column and the columns that are there."""
    table = _read(tmp_path, "a,b,a\n1,2,3\n")
    with pytest.raises(SchemaError, match=r"log\.csv: there is no column 'c'; it has a, b, a"):
        table.column("c")
    with pytest.raises(SchemaError, match=r"'a' is there 2 times, at positions \[0, 2\]"):
        table.column("a")
    with pytest.raises(SchemaError, match=r"position 3; its 3 columns are 0 to 2"):
        table.column(3)
    with pytest.raises(SchemaError, match="has no header"):
        _read(tmp_path, "1,2\n", header=False).column("a")


_cell = st.text(st.sampled_from('ab1,"\n\t '), max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(_cell, _cell), min_size=1, max_size=8))
def test_what_a_csv_writer_wrote_comes_back(tmp_path_factory: pytest.TempPathFactory, rows) -> None:
    """Every properly quoted file is read as it was meant, cell by cell."""
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    path.write_text("a,b\n" + "\n".join(quoted) + "\n", encoding="utf-8")
    table = read_delimited(path, "log.csv", separator=",", header=True)
    assert list(zip(table.column("a"), table.column("b"), strict=True)) == rows
    breaks = [sum(cell.count("\n") for cell in row) for row in rows]
    assert table.lines.to_list() == [2 + place + sum(breaks[:place]) for place in range(len(rows))]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.text(st.sampled_from("ab1 \t"), max_size=4), max_size=4), max_size=12),
    header=st.booleans(),
    size=st.integers(1, 30),
)
def test_parts_are_the_whole(tmp_path_factory: pytest.TempPathFactory, rows, header, size) -> None:
    """Whatever the size of a part, together they hold the cells, lines and problems of the file read at once."""
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    path.write_text("a,b\n" + "\n".join(",".join(cells) for cells in rows) + "\n", encoding="utf-8")
    whole = read_delimited(path, "log.csv", separator=",", header=header)
    parts = list(read_delimited_parts(path, "log.csv", separator=",", header=header, block_bytes=size))
    assert pl.concat([part.cells for part in parts]).equals(whole.cells)
    assert pl.concat([part.lines for part in parts]).equals(whole.lines)
    assert pl.concat([part.problems() for part in parts]).equals(whole.problems())
    assert whole.lines.to_list() == list(range(1 + header, 2 + max(1, len(rows))))
