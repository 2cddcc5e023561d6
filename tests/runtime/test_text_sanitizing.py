"""Text from outside in a Markdown page and in one-line error messages."""

from macrec_pipeline.runtime.text_sanitizing import as_markdown, one_line_error


def test_markup_in_text_from_outside_has_no_effect() -> None:
    """Tags, emphasis, a link, a table, code, a list, and a heading after a line break all stay text on one line."""
    text = "<img src=x onerror=alert(1)> & *bold* [click](javascript:alert(1)) | a_b `c`\n# Head"
    assert as_markdown(text) == (
        r"&lt;img src=x onerror=alert\(1\)&gt; &amp; \*bold\* \[click\]\(javascript:alert\(1\)\) \| a\_b \`c\` \# Head"
    )
    assert as_markdown("1. one\n- two \\") == r"1\. one \- two \\"
    assert as_markdown('the champion\'s "x"') == 'the champion\'s "x"'
    assert as_markdown("/home/<me>/a_b.json") == r"/home/&lt;me&gt;/a\_b\.json"


def test_an_error_becomes_one_line() -> None:
    """White space and control characters collapse, long messages are cut off, and an empty one names the type."""
    assert one_line_error(ValueError("first\n  second\x1b[31m\tthird")) == "first second [31m third"
    assert one_line_error(ValueError("a long message"), max_length=6) == "a long"
    assert one_line_error(KeyError()) == "KeyError"
