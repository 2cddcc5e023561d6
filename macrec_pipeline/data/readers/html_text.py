"""Texts as a catalogue has them -> texts that an encoder should see."""

import html
import re

# A tag begins with a letter right after the bracket, so that `3 < 4`, `<3` and `a <- b` stay.
_MARKUP = re.compile(r"<!--|-->|</?[a-zA-Z][^<>]*>")
_SWALLOWING = {"script", "style"}


def plain_text(text: str) -> str:
    """Without tags, comments, scripts and styles, and with entities written out; each is a blank.

    Entities that were escaped twice (`&amp;amp;`), as shops' exports have them, are written out too. Takes time in
    proportion to the text, whatever it holds.
    """
    if "&" in text:
        text = html.unescape(html.unescape(text))
    if "<" not in text:
        return text
    kept: list[str] = []
    position, until = 0, None
    for match in _MARKUP.finditer(text):
        tag = match.group().lower()
        if until is None:
            if tag == "-->":  # closes nothing: characters of the text
                continue
            kept.append(text[position : match.start()])
            name = tag.strip("</>").split(maxsplit=1)[0]
            until = "-->" if tag == "<!--" else f"/{name}" if name in _SWALLOWING and tag[1] != "/" else None
            position = match.end()
        elif tag == until or tag.startswith(f"<{until}"):
            until, position = None, match.end()
    if until is None:
        kept.append(text[position:])
    return " ".join(kept)
