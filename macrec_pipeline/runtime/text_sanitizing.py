"""Text from outside where a person looks at it, in a terminal or on a page: it is shown, and not obeyed."""

import html
import re

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~])")


def one_line(text: str) -> str:
    """With a blank for each character that a terminal or a log would obey or hide instead of show."""
    return "".join(character if character.isprintable() else " " for character in text)


def as_markdown(text: str) -> str:
    """One line of Markdown that shows these very characters: no tag, picture, emphasis or new cell takes effect."""
    return _MARKDOWN.sub(r"\\\1", html.escape(re.sub(" +", " ", one_line(text)), quote=False))
