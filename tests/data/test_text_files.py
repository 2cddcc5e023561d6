"""Text files: every byte is read once, every row keeps its line number, and damaged files are reported clearly."""

import gzip
from pathlib import Path

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from macrec_pipeline.data.readers import text_files
from macrec_pipeline.data.readers.row_splitting import Quoting
from macrec_pipeline.data.readers.text_files import line_blocks, read_delimited, read_delimited_parts
from macrec_pipeline.errors import DataError, SchemaError


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=9).map(lambda line: line.translate(None, b"\r\n")), max_size=12),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    end=st.sampled_from([b"", b"\n", b"\r\n"]),
    size=st.integers(1, 12),
    packed=st.booleans(),
)
def test_every_line_is_read_once_with_its_number(tmp_path_factory, lines, mark, end, size, packed) -> None:
    """Whatever the block size, no block ends inside a line, and a byte order mark at the beginning is removed."""
    path = tmp_path_factory.mktemp("lines") / "log"
    newline = end or b"\n"
    content = newline.join(lines) + end
    packed_starts = (b"\x1f\x8b", text_files._ZSTD_MAGIC, *(start for start, _, _ in text_files._REFUSED_FORMATS))
    assume(not any((mark + content).startswith(start) for start in packed_starts))
    path.write_bytes(gzip.compress(mark + content) if packed else mark + content)
    content = (mark + content).removeprefix(b"\xef\xbb\xbf")  # the mark is not part of the first line
    blocks = list(line_blocks(path, "log", block_bytes=size))
    assert [pair for block in blocks for pair in block.lines()] == list(
        enumerate(content.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n") if content else [], start=1)
    )
    assert all(block.data.endswith(b"\n") for block in blocks[:-1])
    assert b"".join(block.data for block in blocks) == content


def test_a_truncated_gzip_file_names_the_last_readable_line(tmp_path: Path) -> None:
    """An incomplete download is an error, not a shorter log."""
    lines = b"".join(b"%d,%d\n" % (row, row * 7919 % 1009) for row in range(20_000))
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(lines)[:-9000])
    with pytest.raises(DataError, match=r"log\.csv\.gz cannot be read: .*Copy it again.*readable up to line \d{4,}"):
        list(line_blocks(path, "log.csv.gz", block_bytes=10_000))


def test_a_line_that_never_ends_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the whole file would be read into memory as one line."""
    monkeypatch.setattr(text_files, "_LONGEST_LINE", 100)
    (tmp_path / "log").write_bytes(b"a\n" + bytes(150))
    with pytest.raises(SchemaError, match="log: line 2 is longer than 100 bytes, so this is not a text file"):
        list(line_blocks(tmp_path / "log", "log", block_bytes=40))


def _read(tmp_path: Path, content: str | bytes, *, separator: str = ",", header: bool = True):
    path = tmp_path / "log.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_delimited(path, "log.csv", separator=separator, header=header)


def test_rows_have_line_numbers_and_columns_have_names_and_positions(tmp_path: Path) -> None:
    """The header is line 1, cells stay strings, and a column is found by name or position."""
    table = _read(tmp_path, "user,item\n007,1.0\n8,2\n")
    assert table.column("user").to_list() == ["007", "8"]
    assert table.column(1).to_list() == ["1.0", "2"]
    assert table.line_numbers.to_list() == [2, 3]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_quoted_cells_may_span_several_lines(tmp_path: Path, newline: str) -> None:
    """The number of a row is the line on which it begins, also after cells with line breaks, separators and quotes."""
    content = newline.join(["a,b", '"x', 'y",1', '"p, ""q""",2', "z,3", ""])
    table = _read(tmp_path, content)
    assert table.line_numbers.to_list() == [2, 4, 5]
    assert table.column("a").to_list() == [f"x{newline}y", 'p, "q"', "z"]


def test_a_row_with_extra_cells_becomes_null(tmp_path: Path) -> None:
    """A row with extra cells is null in all columns, as its cells have unknown columns; short rows end in nulls."""
    table = _read(tmp_path, "a,b\n1,2\n3,4,5\n6\n\n7,8,\n9,10,11,,12\n")
    assert table.column("a").to_list() == ["1", None, "6", None, "7", None]
    assert table.column("b").to_list() == ["2", None, None, None, "8", None]
    assert table.line_numbers.to_list() == [2, 3, 4, 5, 6, 7]


def test_the_first_row_sets_the_number_of_columns_without_a_header(tmp_path: Path) -> None:
    """Longer rows then have extra cells."""
    table = _read(tmp_path, "1\t2\n3\t4\t5\n6\n", separator="\t", header=False)
    assert table.num_columns == 2
    assert table.column(0).to_list() == ["1", None, "6"]
    assert table.line_numbers.to_list() == [1, 2, 3]


def test_a_stray_quote_inside_a_cell_is_an_ordinary_character(tmp_path: Path) -> None:
    """An inch mark does not swallow the following rows, and they keep their line numbers."""
    table = _read(tmp_path, 'id,title\n1,pan 12"\n2,"a\nb"\n3,pot,9\n4,c\n')
    assert table.column("title").to_list() == ['pan 12"', "a\nb", None, "c"]
    assert table.line_numbers.to_list() == [2, 3, 5, 6]


@pytest.mark.parametrize("broken", ['3,"never closed\n4,x\n', '3,"closed" too early\n4,x\n'])
def test_ambiguous_quotes_are_an_error_that_names_the_line(tmp_path: Path, broken: str) -> None:
    """Guessing could lose rows silently."""
    with pytest.raises(SchemaError, match=r"log\.csv: the row that begins in line 3 cannot be split"):
        _read(tmp_path, "id,title\n2,ok\n" + broken)


def test_gzip_byte_order_mark_and_other_encodings(tmp_path: Path) -> None:
    """gzip is unpacked, and a byte order mark is not part of the first column name."""
    table = _read(tmp_path, gzip.compress(b"\xef\xbb\xbfid,title\n1,caf\xc3\xa9\n"))
    assert table.column_names == ("id", "title")
    assert table.column("title").to_list() == ["caf\u00e9"]


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    """A file with only a header has no rows and is accepted."""
    with pytest.raises(SchemaError, match=r"log\.csv: the file is empty"):
        _read(tmp_path, "")
    assert _read(tmp_path, "a,b\n").line_numbers.to_list() == []


def test_a_damaged_gzip_file_is_one_clear_error(tmp_path: Path) -> None:
    """An incomplete download gives a `DataError`, not a traceback of the gzip module."""
    packed = gzip.compress(b"a,b\n" + bytes(range(48, 58)) * 5000)
    with pytest.raises(DataError, match="cannot be read"):
        _read(tmp_path, packed[: len(packed) // 2])


def test_missing_and_ambiguous_columns_are_named(tmp_path: Path) -> None:
    """The message has the file, the column and the columns that exist."""
    table = _read(tmp_path, "a,b,a\n1,2,3\n")
    with pytest.raises(SchemaError, match=r"log\.csv has no column 'c'. Its columns are: a, b, a"):
        table.column("c")
    with pytest.raises(SchemaError, match=r"has 2 columns named 'a', at positions \[0, 2\]"):
        table.column("a")
    with pytest.raises(SchemaError, match=r"no column at position 3. Its 3 columns have the positions 0 to 2"):
        table.column(3)
    with pytest.raises(SchemaError, match=r"has no header. Use a position from 0 to 1, or set header: true"):
        _read(tmp_path, "1,2\n", header=False).column("a")


_cell = st.text(st.sampled_from('ab1,"\n\t '), max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(_cell, _cell), min_size=1, max_size=8))
def test_properly_quoted_files_are_read_back_cell_by_cell(tmp_path_factory: pytest.TempPathFactory, rows) -> None:
    """Whatever the cells contain, the table has the same cells, and each row knows the line it begins on."""
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    path.write_text("a,b\n" + "\n".join(quoted) + "\n", encoding="utf-8")
    table = read_delimited(path, "log.csv", separator=",", header=True, quoting=Quoting(is_declared=True))
    assert list(zip(table.column("a"), table.column("b"), strict=True)) == rows
    breaks = [sum(cell.count("\n") for cell in row) for row in rows]
    assert table.line_numbers.to_list() == [2 + row + sum(breaks[:row]) for row in range(len(rows))]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.text(st.sampled_from("ab1 \t"), max_size=4), max_size=4), max_size=12),
    header=st.booleans(),
    size=st.integers(1, 30),
)
def test_the_parts_together_are_the_whole_file(tmp_path_factory: pytest.TempPathFactory, rows, header, size) -> None:
    """Whatever the size of a part, all parts together hold the cells, line numbers and problems of the file."""
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    path.write_text("a,b\n" + "\n".join(",".join(cells) for cells in rows) + "\n", encoding="utf-8")
    whole = read_delimited(path, "log.csv", separator=",", header=header)
    parts = list(read_delimited_parts(path, "log.csv", separator=",", header=header, block_bytes=size))
    assert pl.concat([part.cells for part in parts]).equals(whole.cells)
    assert pl.concat([part.line_numbers for part in parts]).equals(whole.line_numbers)
    assert pl.concat([part.problems() for part in parts]).equals(whole.problems())
    assert whole.line_numbers.to_list() == list(range(1 + header, 2 + max(1, len(rows))))
