"""Rows of text files: whatever the dialect, every row of the file is read, or the file is refused."""

import csv
import gzip
import io
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from macrec_pipeline.data.readers import row_splitting
from macrec_pipeline.data.readers.quoted_rows import PlainRows
from macrec_pipeline.data.readers.row_splitting import Quoting, Row, RowSplitter
from macrec_pipeline.data.readers.text_files import SourceTable, read_delimited, read_delimited_parts
from macrec_pipeline.errors import DataError, SchemaError

_NUM_EXAMPLES = 2000
_NAMES = ["a", "b", "c"]


def _read(path: Path, content: bytes, **settings_of_file: object) -> SourceTable:
    path.write_bytes(content)
    arguments: dict[str, object] = {"separator": ",", "header": True, **settings_of_file}
    return read_delimited(path, "log.csv", **arguments)  # type: ignore[arg-type]


def _cells(table: SourceTable) -> list[list[str]]:
    columns = [table.column(position).fill_null("").to_list() for position in range(table.num_columns)]
    return [list(row) for row in zip(*columns, strict=True)]


_cell = st.text(st.sampled_from("ab'1,;|:\t\\\"\n\r é"), max_size=6)
_rows = st.lists(st.lists(_cell, min_size=3, max_size=3), min_size=1, max_size=6)


@dataclass(frozen=True)
class Dialect:
    """How a file is written: what is around, between and behind its cells, and in which bytes."""

    separator: str
    newline: str
    quote: str | None
    escape: str | None
    quotes_all: bool
    encoding: str
    ends_with_newline: bool

    def cell(self, text: str) -> str:
        """Write a cell so that a reader who knows the dialect gets it back; without quotes, signs are escaped."""
        special = (self.separator[0], "\n", "\r", *filter(None, (self.quote, self.escape)))
        if self.quote is None:
            return "".join(f"{self.escape}{each}" if each in special and self.escape else each for each in text)
        if not self.quotes_all and not any(each in text for each in special) and text == text.strip():
            return text
        if self.escape is None:
            return self.quote + text.replace(self.quote, self.quote * 2) + self.quote
        marked = "".join(f"{self.escape}{each}" if each in (self.quote, self.escape) else each for each in text)
        return self.quote + marked + self.quote

    def file(self, rows: list[list[str]]) -> tuple[bytes, list[int]]:
        """Return the bytes of a file with a header, and the line on which each row begins."""
        lines = [self.separator.join(_NAMES), *(self.separator.join(map(self.cell, row)) for row in rows)]
        text = self.newline.join(lines) + (self.newline if self.ends_with_newline else "")
        starts, line = [], 1
        for each in lines:
            starts.append(line)
            line += each.count("\n") + 1
        return text.encode(self.encoding), starts[1:]


_dialects = st.builds(
    Dialect,
    separator=st.sampled_from([",", ";", "|", "\t", "::", "||", "~|~"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    quote=st.sampled_from(['"', "'", None]),
    escape=st.sampled_from([None, "\\"]),
    quotes_all=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    ends_with_newline=st.booleans(),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file that every example writes again."""
    return tmp_path_factory.mktemp("csv") / "log.csv"


def _without_returns(rows: list[list[str]]) -> list[list[str]]:
    """Remove carriage returns, which Python's writer leaves unquoted at the end of a line."""
    return [[cell.replace("\r", "") for cell in row] for row in rows]


def _fits(rows: list[list[str]], dialect: Dialect) -> list[list[str]]:
    """Replace what a dialect cannot hold: without quotes or an escape, separators and line breaks."""
    if dialect.quote is not None:
        return rows
    kept = "ab'1\" é" if dialect.escape is None else "ab'1,;|:\t\\\" é"
    return [["".join(each if each in kept else "x" for each in cell) for cell in row] for row in rows]


@settings(max_examples=_NUM_EXAMPLES, deadline=None)
@given(rows=_rows, dialect=_dialects, size=st.sampled_from([5, 64, 1 << 16]))
def test_every_dialect_is_read_back_when_it_is_declared(
    path: Path, rows: list[list[str]], dialect: Dialect, size: int
) -> None:
    """Each cell comes back, each row knows its line, and the rows of the file are those of the table."""
    rows = _fits(rows, dialect)
    content, lines = dialect.file(rows)
    path.write_bytes(content)
    parts = list(
        read_delimited_parts(
            path,
            "log.csv",
            separator=dialect.separator,
            header=True,
            quoting=Quoting(dialect.quote, dialect.escape, is_declared=True),
            encoding=dialect.encoding,
            block_bytes=size,
        )
    )
    assert [row for part in parts for row in _cells(part)] == rows
    assert [number for part in parts for number in part.line_numbers] == lines


@settings(max_examples=500, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.text(st.sampled_from("ab1\"' \\"), max_size=5), min_size=3, max_size=3), min_size=1, max_size=6
    ),
    separator=st.sampled_from([",", ";", "|", "\t", "::"]),
    newline=st.sampled_from(["\n", "\r\n"]),
)
@example([["A3", '"Fresh start', "x"], ["A4", 'Screen 24"', "y"]], "\t", "\n")
def test_without_quoting_no_row_vanishes(path: Path, rows, separator, newline) -> None:
    """A file whose quotes are ordinary text is read row by row, or refused; with `quote: none` cells are exact."""
    content = newline.join(separator.join(row) for row in [_NAMES, *rows]) + newline
    exact = _read(path, content.encode(), separator=separator, quoting=Quoting(None, is_declared=True))
    assert _cells(exact) == rows
    try:
        table = _read(path, content.encode(), separator=separator)
    except SchemaError as error:
        message = str(error)
    else:
        message = None
        assert table.line_numbers.to_list() == exact.line_numbers.to_list()
    assert message is None or (" line" in message and ("quote: none" in message or "escape:" in message))


@settings(max_examples=300, deadline=None)
@given(
    rows=_rows.map(_without_returns),
    style=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_a_quoted_file_is_read_or_refused_without_a_declaration(path: Path, rows, style, newline) -> None:
    """Where double quotes may be ordinary text, the error asks; it never gives another table."""
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=style, lineterminator=newline)
    writer.writerows([_NAMES, *rows])
    try:
        table = _read(path, stream.getvalue().encode())
    except SchemaError as error:
        message = str(error)
    else:
        message = None
        assert _cells(table) == rows
    assert message is None or (style == csv.QUOTE_MINIMAL and "can be read in two ways" in message)


def test_a_backslash_before_a_quote_asks_for_the_setting(tmp_path: Path) -> None:
    """MySQL and Spark escape quotes by a backslash. `\\N` keeps its backslash, because it stands for a missing cell."""
    content = b'"a","b"\n"1","size 24\\""\n"2",\\N\n'
    with pytest.raises(SchemaError, match=r"row that begins in line 2 .*Set `escape: '\\'`"):
        _read(tmp_path / "log.csv", content)
    table = _read(tmp_path / "log.csv", content, quoting=Quoting(escape="\\"))
    assert _cells(table) == [["1", 'size 24"'], ["2", "\\N"]]


def test_lines_that_can_be_read_in_two_ways_are_named(tmp_path: Path) -> None:
    """A title that begins with a quote and one that ends with a quote look like one quoted cell."""
    content = b'id\ttitle\tabout\nA3\t"Fresh start\tx\nA4\tScreen 24"\ty\n'
    with pytest.raises(SchemaError, match=r"log\.csv: lines 2 to 3 can be read in two ways.*`quote: none`"):
        _read(tmp_path / "log.csv", content, separator="\t")


@pytest.mark.parametrize(
    ("encoding", "likely"), [("cp1252", "cp1252"), ("utf-16", "utf-16"), ("cp1251", "cp1251, gb18030")]
)
def test_bytes_of_another_encoding_are_an_error_that_names_it(tmp_path: Path, encoding: str, likely: str) -> None:
    """No byte is replaced: with the encoding set the text is exact, without it the line is named."""
    word = "\u0411\u0435\u043b\u044b\u0439" if encoding == "cp1251" else "B\u00e9"
    content = f"id,title\r\n1,{word}\r\n".encode(encoding)
    with pytest.raises(SchemaError, match=f"log.csv: line .*`encoding.* {likely}"):
        _read(tmp_path / "log.csv", content)
    table = _read(tmp_path / "log.csv", content, encoding=encoding)
    assert _cells(table) == [["1", word]]
    assert table.column_names == ("id", "title")


def test_characters_across_blocks_are_whole(tmp_path: Path) -> None:
    """An encoding of several bytes is decoded over the borders of blocks, and quoted cells span them."""
    rows = [[str(number), "\u00e9\n\u20ac" * 40] for number in range(2000)]
    stream = io.StringIO()
    csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
    assert _cells(_read(tmp_path / "log.csv", stream.getvalue().encode("utf-16"), encoding="utf-16")) == rows


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: pa.Codec("zstd").compress(data, asbytes=True)])
def test_packed_files_are_recognised_by_their_content(tmp_path: Path, pack) -> None:
    """gzip and zstd are unpacked, whatever the file is called; half a file is an error."""
    content = b"a,b\n" + b"".join(b"%d,%d\n" % (row, row * 7919 % 1009) for row in range(5000))
    assert _read(tmp_path / "log.csv", pack(content)).line_numbers.to_list() == list(range(2, 5002))
    with pytest.raises(DataError, match="cannot be read"):
        _read(tmp_path / "log.csv", pack(content)[:-4000])


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"PK\x03\x04", "a zip archive or an Excel workbook"),
        (b"BZh91AY&SY", "packed with bzip2"),
        (b"\xfd7zXZ\x00", "packed with xz"),
        (b"PAR1", "a parquet file"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, start: bytes, what: str) -> None:
    """The message says what the file is and what to do, and shows none of its bytes."""
    with pytest.raises(SchemaError, match=f"log.csv is {what}") as caught:
        _read(tmp_path / "log.csv", start + bytes(range(256)))
    assert str(caught.value).isprintable()


def test_line_endings_of_old_macs_are_an_error(tmp_path: Path) -> None:
    """The whole file would be one header otherwise."""
    with pytest.raises(SchemaError, match="carriage returns"):
        _read(tmp_path / "log.csv", b"a,b\r1,2\r3,4\r")


class _OneByOne(RowSplitter):
    """Splits all text row by row: what the fast way must agree with."""

    def _split_at_once(self, data: bytes, plain: PlainRows, num_columns: int) -> None:
        return None


def _outcome(splitter: RowSplitter, blocks: list[bytes], num_columns: int) -> object:
    """Return the rows with their lines, or the error."""
    rows, rest, line = [], b"", 1
    try:
        for number, block in enumerate(blocks, start=1):
            data = rest + block
            found = splitter.split(data, line, num_columns, is_end=number == len(blocks))
            for cells, lines in found.parts:
                rows += [
                    tuple(cell or "" for cell in row) for row in cells.with_columns(lines=lines.cast(pl.String)).rows()
                ]
            rest, line = data[found.num_bytes :], found.next_line
        splitter.check_ambiguous()
    except SchemaError as error:
        return str(error)
    return rows, rest, line


_line = st.one_of(
    st.sampled_from(['u1,i1,5', '"u1","i1",5', "u2,i2,", '"u,3",i3,4', '"u""4",i4,', '"","",""']),
    st.sampled_from(['u5,"i5"', "", "a,b,c,d"]),
    st.text(st.sampled_from('ab,"\r'), max_size=9),
    st.sampled_from(['"two\nlines",i,5', 'a"b,c"d,5', '"x"y,1,2', '"open,1,2', 'u,"i,5"', '"u,i\n",5', "u,i,\\"]),
)  # fmt: skip


@pytest.mark.parametrize(("window", "searched"), [(1, 1), (8, 64), (1 << 14, 1 << 20)])
@settings(max_examples=300, deadline=None)
@given(
    lines=st.lists(_line, min_size=1, max_size=12),
    newline=st.sampled_from(["\n", "\r\n"]),
    has_last_newline=st.booleans(),
    is_declared=st.booleans(),
    escape=st.sampled_from([None, "\\"]),
    separator=st.sampled_from([",", "::", ";"]),
    num_blocks=st.integers(1, 4),
)
def test_lines_split_at_once_are_the_rows_that_are_split_one_by_one(
    window, searched, lines, newline, has_last_newline, is_declared, escape, separator, num_blocks
) -> None:
    """Cells, lines, errors and ambiguous lines are the same, wherever blocks and searched parts end."""
    text = "".join(line.replace(",", separator) + newline for line in lines)
    data = (text if has_last_newline else text.removesuffix(newline)).encode()
    whole_lines = data.splitlines(keepends=True) if b"\r" not in data.replace(b"\r\n", b"") else [data]
    size = -(-len(whole_lines) // num_blocks) or 1
    blocks = [b"".join(whole_lines[start : start + size]) for start in range(0, len(whole_lines), size)]
    quoting = Quoting(escape=escape, is_declared=is_declared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_splitting, "_WINDOW_BYTES", window)
        patch.setattr(row_splitting, "_SEARCHED_BYTES", searched)
        fast = _outcome(RowSplitter("log.csv", separator, quoting), blocks, 3)
    assert fast == _outcome(_OneByOne("log.csv", separator, quoting), blocks, 3)


@pytest.fixture
def split_one_by_one(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each text that was split row by row."""
    seen: list[int] = []
    rows_of = RowSplitter._split_row_by_row

    def counted(self: RowSplitter, text: str, *args: int, is_end: bool) -> list[Row]:
        seen.append(len(text))
        return rows_of(self, text, *args, is_end=is_end)

    monkeypatch.setattr(RowSplitter, "_split_row_by_row", counted)
    return seen


@pytest.mark.parametrize(
    "odd", ['u,"i,\n1",5', 'u"x,i,5', '"u,1",i', "u,i,5,6"], ids=["line break", "stray quote", "short", "long"]
)
def test_one_odd_row_does_not_slow_down_the_others(split_one_by_one: list[int], odd: str) -> None:
    """Of a block of a megabyte, only the lines around the odd row are split one by one."""
    lines = [f'"u{number}","i{number}",5' for number in range(40_000)]
    lines.insert(20_000, odd)
    splitter = RowSplitter("log.csv", ",", Quoting(is_declared=True))
    found = splitter.split("\n".join(lines).encode() + b"\n", 1, 3, is_end=True)
    assert sum(cells.height for cells, _ in found.parts) == 40_001
    assert sum(split_one_by_one) < 40_000


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_cells_with_line_breaks_are_split_at_once(path: Path, split_one_by_one: list[int], newline: str) -> None:
    """Megabytes of comments over several lines are read as Python reads them, each with the line it begins on."""
    rows = [
        [str(number), f'{newline * (number % 7)}said ""so"", {number}{newline * (number % 3)}' * (number % 5), "x"]
        for number in range(60_000)
    ]
    stream = io.StringIO()
    csv.writer(stream, lineterminator=newline).writerows([_NAMES, *rows])
    content = stream.getvalue().encode()
    table = _read(path, content)
    assert _cells(table) == rows
    num_breaks = [0, *(sum(cell.count("\n") for cell in row) for row in rows[:-1])]
    assert table.line_numbers.to_list() == [2 + row + breaks for row, breaks in enumerate(accumulate(num_breaks))]
    assert sum(split_one_by_one) < len(content) / 20
