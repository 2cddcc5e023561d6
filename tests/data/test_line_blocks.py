"""Files in blocks of whole lines: every byte once, every line with its number, and broken files named."""

import gzip
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from macrec_pipeline.data.readers.line_blocks import line_blocks
from macrec_pipeline.data.readers.registry import line_blocks as module
from macrec_pipeline.errors import DataError, SchemaError


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=9).map(lambda line: line.translate(None, b"\r\n")), max_size=12),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    end=st.sampled_from([b"", b"\n", b"\r\n"]),
    size=st.integers(1, 12),
    packed=st.booleans(),
)
def test_every_line_comes_once_with_its_number(tmp_path_factory, lines, mark, end, size, packed) -> None:
    """Whatever the size of a block, no block ends inside a line, and a byte order mark at the beginning is left out."""
    path = tmp_path_factory.mktemp("lines") / "log"
    newline = end or b"\n"
    content = newline.join(lines) + end
    assume(not content.startswith(b"\x1f\x8b"))  # that is what a gzip file begins with
    path.write_bytes(gzip.compress(mark + content) if packed else mark + content)
    content = (mark + content).removeprefix(b"\xef\xbb\xbf")  # a mark belongs to no cell of the first line
    blocks = list(line_blocks(path, "log", block_bytes=size))
    assert [pair for block in blocks for pair in block.lines()] == list(
        enumerate(content.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n") if content else [], start=1)
    )
    assert all(block.data.endswith(b"\n") for block in blocks[:-1])
    assert b"".join(block.data for block in blocks) == content


def test_a_truncated_gzip_says_how_far_it_could_be_read(tmp_path: Path) -> None:
    """A download that broke off is an error, not a shorter log."""
    lines = b"".join(b"%d,%d\n" % (row, row * 7919 % 1009) for row in range(20_000))
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(lines)[:-9000])
    with pytest.raises(DataError, match=r"log\.csv\.gz cannot be read: .*Copy it again.*readable up to line \d{4,}"):
        list(line_blocks(path, "log.csv.gz", block_bytes=10_000))


def test_a_file_without_lines_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that never ends would be read into memory whole."""
    monkeypatch.setattr(module, "_LONGEST_LINE", 100)
    (tmp_path / "log").write_bytes(b"a\n" + bytes(150))
    with pytest.raises(SchemaError, match="log: line 2 has more than 100 bytes"):
        list(line_blocks(tmp_path / "log", "log", block_bytes=40))
