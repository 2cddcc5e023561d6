"""A text file, plain or gzip -> blocks of whole lines, each with the number of its first line.

This is what keeps reading bounded: one block is unpacked, turned into columns and forgotten before the next one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from macrec_pipeline.data.readers.input_files import open_unpacked
from macrec_pipeline.errors import DataError, SchemaError

BLOCK_BYTES = 16 << 20
_LONGEST_LINE = 64 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class LineBlock:
    """Whole lines of a file.

    Attributes:
        first_line: the number of the first of them, from 1.
        data: their bytes; only the last line of a file may lack its line break.
    """

    first_line: int
    data: bytes

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Each line with its number, without its line break."""
        lines = self.data.split(b"\n")
        if not lines[-1]:
            lines.pop()
        return ((self.first_line + place, line.removesuffix(b"\r")) for place, line in enumerate(lines))


def line_blocks(path: Path, file: str, *, block_bytes: int = BLOCK_BYTES) -> Iterator[LineBlock]:
    """Read a file block by block; a byte order mark at its beginning is left out.

    Args:
        path: the file, plain or gzip, whatever its name says.
        file: its path below the data folder, for messages.
        block_bytes: unpacked bytes read at once.

    Raises:
        DataError: it cannot be read to its end, as when a download broke off; says how many lines could.
        SchemaError: it holds no lines.
    """
    line, rest = 1, b""
    try:
        with open_unpacked(path) as stream:
            start = stream.read(len(_BYTE_ORDER_MARK)).removeprefix(_BYTE_ORDER_MARK)
            while chunk := start + stream.read(block_bytes):
                start = b""
                end = chunk.rfind(b"\n") + 1
                if not end:
                    rest += chunk
                    if len(rest) > _LONGEST_LINE:
                        raise SchemaError(f"{file}: line {line} has more than {_LONGEST_LINE} bytes: no text file.")
                    continue
                block = LineBlock(line, rest + chunk[:end])
                rest = chunk[end:]
                line += block.data.count(b"\n")
                yield block
    except SchemaError:
        raise
    except DataError as error:
        raise DataError(f"{error} It is readable up to line {line - 1}; half a file is not used.") from None
    if rest:
        yield LineBlock(line, rest)
