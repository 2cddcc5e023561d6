"""Rows of a quoted text, found by bits: the same as those that are found byte by byte."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from macrec_pipeline.data.readers import quoted_rows
from macrec_pipeline.data.readers.quoted_rows import count_breaks, plain_lines, plain_quoted_rows


def _byte_by_byte(text: str, *, allow_breaks: bool) -> tuple[int, list[int], int]:
    """Return the end of the last row beyond doubt, the line that each row begins on, and the number of lines."""
    rows: list[int] = []
    row_start, line, row_line, is_inside = 0, 0, 0, False
    for position, sign in enumerate(text):
        before, after = text[position - 1 : position] or "\n", text[position + 1 : position + 3]
        if sign == '"':
            is_inside = not is_inside
            beside = before if is_inside else after.replace("\r\n", "\n")[:1] or "\n"
            if beside not in '",\n':
                return row_start, rows, row_line
        elif (sign == "\r" and after[:1] != "\n") or (sign == "\n" and is_inside and not allow_breaks):
            return row_start, rows, row_line
        elif sign == "\n":
            line += 1
            if not is_inside:
                rows.append(row_line)
                row_start, row_line = position + 1, line
    if not is_inside and row_start < len(text):
        return len(text), [*rows, row_line], line + 1
    return row_start, rows, row_line


_line = st.one_of(
    st.sampled_from(['"a","b\n",c', '"a""b",c\r', "a,b,c", ""]), st.text(st.sampled_from('ab",\r'), max_size=9)
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(_line, max_size=30), st.booleans(), st.sampled_from(["\n", ""]))
@example(['"' + "a" * 62, '",b'], True, "\n")
def test_rows_found_by_bits_are_those_found_byte_by_byte(lines: list[str], allow_breaks: bool, end: str) -> None:
    """Rows, their lines and the first row in doubt are the same, wherever words and chunks of the text end."""
    text = "\n".join(lines) + end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quoted_rows, "_CHUNK_BYTES", 64)
        found = plain_quoted_rows(text.encode(), ord('"'), ord(","), allow_breaks=allow_breaks)
    num_bytes, first_lines, num_lines = _byte_by_byte(text, allow_breaks=allow_breaks)
    assert (found.num_bytes, found.num_rows, found.num_lines) == (num_bytes, len(first_lines), num_lines)
    assert (list(range(found.num_rows)) if found.lines is None else found.lines.tolist()) == first_lines


@given(st.text(st.sampled_from("a\n"), max_size=200))
def test_lines_are_counted(text: str) -> None:
    """The last line counts whether or not it ends with a line break."""
    assert count_breaks(text.encode()) == text.count("\n")
    assert plain_lines(text.encode()).num_rows == len(text.splitlines())
