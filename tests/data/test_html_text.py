"""HTML in texts: tags go, words and comparisons stay."""

import time

import pytest

from macrec_pipeline.data.readers.html_text import plain_text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plain", "plain"),
        ("<p>one</p><br/>two<BR>three", "one two three"),
        ("Fender &amp; Sons &quot;12&#34; &#x2019;", 'Fender & Sons "12" \u2019'),
        ("twice &amp;amp; escaped &amp;lt;b&amp;gt;bold", "twice & escaped bold"),
        ('<a href="x>y">link</a>', 'y">link'),  # a bracket inside an attribute: its end is taken for the tag's
        ("3 < 4 and 5 > 2, <3, a <- b", "3 < 4 and 5 > 2, <3, a <- b"),
        ("<script>if (a < b) { x('<p>') }</script>seen<style>p {}</style >", "seen"),
        ("before<!-- not <b>seen</b> -->after -->", "before after -->"),
        ("<script>never closed", ""),
        ("an unclosed <b tag", "an unclosed <b tag"),
        ("<scripted>not a script", "not a script"),
    ],
)
def test_plain_text(text: str, words: str) -> None:
    """Worked out by hand."""
    assert " ".join(plain_text(text).split()) == words


@pytest.mark.parametrize("piece", ["<!--", "<script>", "<", "<a", "&amp;", "--><b>"])
def test_time_is_proportional_to_the_length(piece: str) -> None:
    """A text of a million characters that only opens things takes no longer than any other."""
    begin = time.perf_counter()
    plain_text(piece * (1_000_000 // len(piece)))
    assert time.perf_counter() - begin < 10
