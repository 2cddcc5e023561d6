"""Plain text inside Markdown, which MLflow and Dagster show: what comes from outside is shown and not obeyed."""

import html
import re

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~])")


def escaped(text: str) -> str:
    """Text as Markdown that shows it on one line: neither HTML nor Markdown in it takes effect."""
    return _MARKDOWN.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))
