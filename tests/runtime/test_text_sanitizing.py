"""Text from outside in a Markdown page."""

from macrec_pipeline.runtime.text_sanitizing import as_markdown


def test_what_comes_from_outside_is_shown_and_not_obeyed() -> None:
    """Tags, emphasis, a link, a table, code, a heading after a new line, a list: all of it stays text on one line."""
    text = "<img src=x onerror=alert(1)> & *bold* [click](javascript:alert(1)) | a_b `c`\n# Head"
    assert as_markdown(text) == (
        r"&lt;img src=x onerror=alert\(1\)&gt; &amp; \*bold\* \[click\]\(javascript:alert\(1\)\) \| a\_b \`c\` \# Head"
    )
    assert as_markdown("1. one\n- two \\") == r"1\. one \- two \\"
    assert as_markdown('the champion\'s "x"') == 'the champion\'s "x"'
    assert as_markdown("/home/<me>/a_b.json") == r"/home/&lt;me&gt;/a\_b\.json"
