"""Makes text from outside safe to show: in a terminal or log, in a Markdown page, or as a one-line error message.

Titles, paths and other libraries' error messages may hold control characters or markup. The functions here return text
that a terminal or a Markdown renderer displays without acting on it.
"""

import html
import re

from macrec_pipeline.runtime.secret_addresses import without_secrets

_MAX_SECRET = 4096  # so many characters beyond those shown are searched for the end of an address
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~])")


def one_line(text: str) -> str:
    """Replace each line break, control character and other invisible character with a space."""
    return "".join(character if character.isprintable() else " " for character in text)


def shown_cell(cell: object, max_length: int) -> str:
    """Return the beginning of a cell of someone's file as one line, without secrets of addresses."""
    return one_line(without_secrets(str(cell)[: max_length + _MAX_SECRET]))[:max_length]


def one_line_error(error: BaseException, *, max_length: int | None = None) -> str:
    """Return the message of an error as one line, with runs of white space collapsed and no secret of an address.

    Args:
        error: any exception, such as one that another library raised.
        max_length: the number of characters after which the message is cut off. None keeps all of it.

    Returns:
        The message, or the name of the exception's type if it has no message.
    """
    return " ".join(one_line(without_secrets(str(error))).split())[:max_length] or type(error).__name__


def as_markdown(text: str) -> str:
    """Return one line of Markdown that renders as exactly this text: no tag, image, emphasis or table cell."""
    return _MARKDOWN.sub(r"\\\1", html.escape(re.sub(" +", " ", one_line(text)), quote=False))
