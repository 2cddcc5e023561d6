"""Title and descriptive cells of each item -> the one text that is embedded (the input of the text encoder).

`Toy Story (1995). Led by Woody, Andy's toys live happily. Genres: Animation, Children, Comedy.`
"""

from collections.abc import Sequence

import polars as pl

_ENDS_A_SENTENCE = r"""[.!?…]["'\u2019\u201d»)\]]*$"""
_AFTER_A_TITLE = r"^(?:$|[\s.,:;!?)\]\u2013\u2014-])"


def compose_texts(title: pl.Series, parts: Sequence[pl.Series]) -> pl.Series:
    """Join each item's title and parts into sentences, in this order.

    A title that a part begins with anyway is not put before it again.

    Args:
        title: strings, null where there is none.
        parts: strings of the same length, null where there is nothing to say.

    Returns:
        One string an item, null where title and parts are all null.
    """
    names = [f"part_{place}" for place in range(len(parts))]
    table = pl.DataFrame({"title": title, **dict(zip(names, parts, strict=True))})
    said = pl.any_horizontal(pl.lit(False), *(_begins_with_title(name) for name in names))
    wanted = pl.when(~said.fill_null(False)).then(pl.col("title"))
    sentences = [_as_sentence(expression) for expression in (wanted, *(pl.col(name) for name in names))]
    joined = table.select(pl.concat_str(sentences, separator=" ", ignore_nulls=True).alias("text")).to_series()
    return joined.set(joined == "", None)


def title_and_rest(title: pl.Series, text: pl.Series) -> list[list[str | None]]:
    """Each item's text as two fields: its title, and what `compose_texts` put behind it.

    Args:
        title: strings, null where there is none.
        text: what `compose_texts` made of it; a text that begins with the title anyway is a field as a whole.
    """
    sentence = _as_sentence(pl.col("title")) + pl.lit(" ")
    rest = pl.when(pl.col("text") + " " == sentence).then(None).otherwise(pl.col("text").str.strip_prefix(sentence))
    table = pl.DataFrame({"title": title, "text": text})
    split = table.select("title", pl.when(pl.col("title").is_null()).then(pl.col("text")).otherwise(rest).alias("rest"))
    return [list(row) for row in split.iter_rows()]


def join_flags(label: str, flags: dict[str, pl.Series]) -> pl.Series:
    """`Genres: Animation, Comedy` from several yes/no columns; null where none is set."""
    chosen = [pl.when(set_).then(pl.lit(name)) for name, set_ in flags.items()]
    names = pl.select(pl.concat_str(chosen, separator=", ", ignore_nulls=True).alias("flags")).to_series()
    return pl.select(pl.when(names != "").then(pl.lit(f"{label}: ") + names).alias("flags")).to_series()


def _begins_with_title(name: str) -> pl.Expr:
    part, title = pl.col(name).str.to_lowercase(), pl.col("title").str.to_lowercase()
    rest = part.str.slice(title.str.len_chars())
    return (part.str.starts_with(title) & rest.str.contains(_AFTER_A_TITLE)).fill_null(False)


def _as_sentence(text: pl.Expr) -> pl.Expr:
    return pl.when(text.str.contains(_ENDS_A_SENTENCE)).then(text).otherwise(text + ".")
