"""Find the rows of a quoted text without splitting them: which quotes are around cells, and which line breaks end rows.

Bit i of a mask stands for byte i of the text, and 64 bits are one number. A byte is inside quotes if the number of
quotes up to it is odd, which is a prefix sum over the bits (Langdale and Lemire 2019, "Parsing Gigabytes of JSON per
Second"). So the whole text takes a few operations on arrays that are an eighth of its size.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

IntArray: TypeAlias = NDArray[np.int64]
_Mask: TypeAlias = NDArray[np.uint64]

_CHUNK_BYTES = 1 << 18  # compared at once, so that the comparisons stay in the processor's cache
_WORD_BITS = 64
_ALL_BITS = np.uint64(2**64 - 1)
_LINE_BREAK, _CARRIAGE_RETURN = ord("\n"), ord("\r")


@dataclass(frozen=True)
class PlainRows:
    """The whole rows at the beginning of a text that are rows beyond doubt.

    Attributes:
        num_bytes: how many bytes they take.
        num_rows: how many rows they are.
        num_lines: how many lines they are, more than rows if cells have line breaks.
        lines: int64 [num_rows], the line that each row begins on, from 0; None if each row is one line.
    """

    num_bytes: int
    num_rows: int
    num_lines: int
    lines: IntArray | None = None


def plain_lines(data: bytes) -> PlainRows:
    """Return the lines of a text as its rows."""
    count = count_breaks(data) + (bool(data) and not data.endswith(b"\n"))
    return PlainRows(len(data), count, count)


def plain_quoted_rows(data: bytes, quote: int, separator: int, *, allow_breaks: bool) -> PlainRows:
    """Return the rows before the first one in doubt.

    A row is in doubt if a quote neither begins nor ends a cell and is not doubled inside one, or if it has a carriage
    return that does not end a line. A row that the text does not end is left out.

    Args:
        data: lines, of which the first begins a row.
        quote: the byte of the quote.
        separator: the byte between cells.
        allow_breaks: whether a row may have line breaks inside of quotes. If not, such a row is in doubt.
    """
    text = np.frombuffer(data, dtype=np.uint8)
    quotes, breaks, separators = _masks(text, quote, _LINE_BREAK, separator)
    inside = _between(quotes)
    beside = quotes | breaks | separators
    _set_bit(beside, len(text))  # the end of the text
    is_after = beside
    doubt = np.zeros_like(quotes)
    if b"\r" in data:
        (returns,) = _masks(text, _CARRIAGE_RETURN)
        before_break = returns & _next(breaks)
        is_after = beside | before_break
        doubt |= returns & ~before_break
    is_before = _previous(beside)
    _set_bit(is_before, 0)
    doubt |= quotes & inside & ~is_before
    doubt |= quotes & ~inside & ~_next(is_after)
    if not allow_breaks:
        doubt |= breaks & inside
    row_ends = breaks & ~inside
    first_doubt = _first_bit(doubt)
    is_whole = first_doubt is None and not inside[-1] >> np.uint64(_WORD_BITS - 1)
    if is_whole:
        end = len(text)
    else:
        last = _last_bit(row_ends if first_doubt is None else _up_to(row_ends, first_doubt))
        end = 0 if last is None else last + 1
    is_cut = is_whole and bool(data) and not data.endswith(b"\n")
    row_ends = _up_to(row_ends, end)
    inner_breaks = _up_to(breaks, end) & ~row_ends
    num_rows, num_inner = (int(np.bitwise_count(mask).sum()) for mask in (row_ends, inner_breaks))
    num_rows += is_cut
    lines = _first_lines(row_ends, inner_breaks, num_rows) if num_inner else None
    return PlainRows(end, num_rows, num_rows + num_inner, lines)


def count_breaks(data: bytes) -> int:
    """Count the line breaks of a text. `bytes.count` takes twice as long."""
    text = np.frombuffer(data, dtype=np.uint8)
    chunks = range(0, len(text), _CHUNK_BYTES)
    return sum(int(np.count_nonzero(text[start : start + _CHUNK_BYTES] == _LINE_BREAK)) for start in chunks)


def _first_lines(row_ends: _Mask, inner_breaks: _Mask, num_rows: int) -> IntArray:
    """Return the line that each row begins on, from 0: int64 [num_rows]."""
    words = np.flatnonzero(inner_breaks)
    bits = np.unpackbits(inner_breaks[words].view(np.uint8), bitorder="little").view(np.bool_)
    word, bit = np.divmod(np.flatnonzero(bits), _WORD_BITS)
    rows_before_word = np.cumsum(np.bitwise_count(row_ends), dtype=np.int64) - np.bitwise_count(row_ends)
    below = (np.uint64(1) << bit.astype(np.uint64)) - np.uint64(1)
    row_of_break = rows_before_word[words][word] + np.bitwise_count(row_ends[words][word] & below)
    breaks_up_to_row = np.cumsum(np.bincount(row_of_break, minlength=num_rows)[: num_rows - 1])
    lines: IntArray = np.arange(num_rows) + np.append(0, breaks_up_to_row)
    return lines


def _masks(text: NDArray[np.uint8], *signs: int) -> list[_Mask]:
    """Return where each sign is. The masks have at least one bit more than the text has bytes."""
    num_words = len(text) // _WORD_BITS + 1
    packed = [np.zeros(num_words * 8, dtype=np.uint8) for _ in signs]
    for start in range(0, len(text), _CHUNK_BYTES):
        chunk = text[start : start + _CHUNK_BYTES]
        for sign, mask in zip(signs, packed, strict=True):
            bits = np.packbits(chunk == sign, bitorder="little")
            mask[start // 8 : start // 8 + len(bits)] = bits
    return [mask.view("<u8") for mask in packed]


def _between(quotes: _Mask) -> _Mask:
    """Return the bytes from each odd quote up to the byte before the next one."""
    inside = quotes.copy()
    for shift in (1, 2, 4, 8, 16, 32):
        inside ^= inside << np.uint64(shift)
    is_odd = np.bitwise_xor.accumulate(inside >> np.uint64(_WORD_BITS - 1))
    inside[1:] ^= is_odd[:-1] * _ALL_BITS
    return inside


def _previous(mask: _Mask) -> _Mask:
    """Return the bytes after those of a mask."""
    moved = mask << np.uint64(1)
    moved[1:] |= mask[:-1] >> np.uint64(_WORD_BITS - 1)
    return moved


def _next(mask: _Mask) -> _Mask:
    """Return the bytes before those of a mask."""
    moved = mask >> np.uint64(1)
    moved[:-1] |= mask[1:] << np.uint64(_WORD_BITS - 1)
    return moved


def _set_bit(mask: _Mask, position: int) -> None:
    mask[position // _WORD_BITS] |= np.uint64(1) << np.uint64(position % _WORD_BITS)


def _up_to(mask: _Mask, end: int) -> _Mask:
    """Return a mask without its bits from `end` on."""
    kept = mask[: end // _WORD_BITS + 1].copy()
    if len(kept) > end // _WORD_BITS:
        kept[-1] &= (np.uint64(1) << np.uint64(end % _WORD_BITS)) - np.uint64(1)
    return kept


def _first_bit(mask: _Mask) -> int | None:
    words = np.flatnonzero(mask)
    if not len(words):
        return None
    word = int(mask[words[0]])
    return int(words[0]) * _WORD_BITS + (word & -word).bit_length() - 1


def _last_bit(mask: _Mask) -> int | None:
    words = np.flatnonzero(mask)
    return int(words[-1]) * _WORD_BITS + int(mask[words[-1]]).bit_length() - 1 if len(words) else None
