"""Turn HTML in the cells of a catalogue into plain text."""

import html
import re

import polars as pl

# A tag begins with a letter right after the bracket, so `3 < 4`, `<3` and `a <- b` are not tags.
_MARKUP = re.compile(r"<!--|-->|</?[a-zA-Z][^<>]*>")
_ELEMENTS_WITHOUT_TEXT = {"script", "style"}


def plain_text(text: str) -> str:
    """Remove tags, comments, scripts and styles, each replaced by a space, and decode entities.

    Entities that were escaped twice (`&amp;amp;`), which is common in catalogue exports, are decoded as well. The time
    is linear in the length of the text, whatever it contains.
    """
    if "&" in text:
        text = html.unescape(html.unescape(text))
    if "<" not in text:
        return text
    visible: list[str] = []
    # `closing_tag` is None outside of elements that are skipped, else the tag that ends the skipped element.
    position, closing_tag = 0, None
    for match in _MARKUP.finditer(text):
        tag = match.group().lower()
        if closing_tag is None:
            if tag == "-->":  # closes no comment, so it is part of the text
                continue
            visible.append(text[position : match.start()])
            name = tag.strip("</>").split(maxsplit=1)[0]
            if tag == "<!--":
                closing_tag = "-->"
            elif name in _ELEMENTS_WITHOUT_TEXT and tag[1] != "/":
                closing_tag = f"/{name}"
            position = match.end()
        elif tag == closing_tag or tag.startswith(f"<{closing_tag}"):
            closing_tag, position = None, match.end()
    if closing_tag is None:
        visible.append(text[position:])
    return " ".join(visible)


def plain_text_cells(column: pl.Series) -> pl.Series:
    """Return texts, or lists of texts, without HTML; cells without `<` and `&` stay as they are."""
    if isinstance(column.dtype, pl.List):
        if column.dtype.inner != pl.String:
            return column
        rows = pl.DataFrame({"texts": column}).with_row_index("row").explode("texts", empty_as_null=True)
        stripped = rows.with_columns(plain_text_cells(rows["texts"]).str.strip_chars().alias("texts"))
        grouped = stripped.group_by("row", maintain_order=True).agg("texts")["texts"]
        return pl.select(pl.when(column.list.len() > 0).then(grouped).otherwise(column)).to_series().alias(column.name)
    if column.dtype != pl.String:
        return column
    markup = column.str.contains("[<&]").fill_null(False)
    if not markup.any():
        return column
    plain = pl.Series([plain_text(text) for text in column.filter(markup)], dtype=pl.String)
    return column.scatter(markup.arg_true(), plain)
