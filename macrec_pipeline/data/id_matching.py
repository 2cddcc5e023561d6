"""Compare the item ids of a log with those of its catalogue, and say why they do not match.

In: the ids of both sides, as the readers give them. Out: how many match, examples of both sides, and the spelling that
would make them match, if one of a few common ones does: zeros in front, a fraction, capital letters, quotes or a text
around the id.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from macrec_pipeline.runtime.text_sanitizing import one_line

NUM_EXAMPLES = 3
FEW = 0.9
"""If a smaller share of the rows matches, ids of both sides are shown."""
_MAX_CHARACTERS = 40
_MAX_IDS = 10_000  # looked at to find a spelling that matches

_ID = pl.col("id")
_SPELLINGS: tuple[tuple[str, pl.Expr], ...] = (
    ("zeros in front", _ID.str.replace(r"^0+(.)", "$1")),
    ("a fraction of zeros, as in 18.0", _ID.str.replace(r"[.,]0+$", "")),
    ("capital letters", _ID.str.to_lowercase()),
    ("quotes around the id", _ID.str.strip_chars("\"'`")),
    ("signs such as hyphens, blanks and dots", _ID.str.replace_all(r"[^\pL\pN]", "")),
    ("a path or address before the id", _ID.str.replace(r"^.*[/:]", "")),
    ("a text before the number", _ID.str.extract(r"^\D+(\d+)$").fill_null(_ID)),
)
"""What two spellings of an id may differ in, and the expression that removes the difference from both sides."""


@dataclass(frozen=True)
class IdMatch:
    """How many rows of a log name an item of the catalogue.

    Attributes:
        num_rows: the rows of the log with an item id.
        num_matching: those of them whose item is in the catalogue.
        num_catalogue: the different ids of the catalogue.
        log_examples: ids of the log that the catalogue lacks.
        catalogue_examples: ids of the catalogue, where possible the most similar ones.
        difference: in what the spellings of both sides differ; None if no common difference explains it.
    """

    num_rows: int
    num_matching: int
    num_catalogue: int
    log_examples: tuple[str, ...]
    catalogue_examples: tuple[str, ...]
    difference: str | None

    @property
    def share(self) -> float:
        """The share of matching rows; 1 without rows."""
        return self.num_matching / self.num_rows if self.num_rows else 1.0

    def sides(self) -> str:
        """Return a sentence with ids of both sides."""
        sides = (
            f"Only the log has ids such as {_listed(self.log_examples)}; the catalogue has "
            f"{_listed(self.catalogue_examples)}."
        )
        if self.difference is None:
            return sides
        return f"{sides} They match without {self.difference}, so export both files with the same spelling."


def match_ids(log_ids: pl.Series, catalogue_ids: pl.Series) -> IdMatch:
    """Compare the ids of a log, one per row, with those of a catalogue; nulls are ignored."""
    rows = pl.DataFrame({"id": log_ids.cast(pl.String)}).drop_nulls()
    catalogue = pl.DataFrame({"id": catalogue_ids.cast(pl.String)}).drop_nulls().unique(maintain_order=True)
    unmatched = rows.join(catalogue, on="id", how="anti", maintain_order="left")
    missing = unmatched.unique(maintain_order=True)
    difference, pairs = _difference(missing, catalogue)
    if difference is None:
        log_examples, catalogue_examples = _shown(missing["id"]), _shown(catalogue["id"])
    else:
        log_examples, catalogue_examples = _shown(pairs["id"]), _shown(pairs["id_right"])
    return IdMatch(
        rows.height, rows.height - unmatched.height, catalogue.height, log_examples, catalogue_examples, difference
    )


def _difference(missing: pl.DataFrame, catalogue: pl.DataFrame) -> tuple[str | None, pl.DataFrame]:
    """Return the first difference that explains at least half of the missing ids, with the pairs that match then."""
    few = missing.head(_MAX_IDS)
    if few.is_empty():
        return None, few
    for name, expression in _SPELLINGS:
        pairs = few.with_columns(key=expression).join(
            catalogue.with_columns(key=expression), on="key", how="inner", maintain_order="left_right"
        )
        pairs = pairs.unique("id", keep="first", maintain_order=True)
        if 2 * pairs.height >= few.height:
            return name, pairs
    return None, few


def _shown(ids: pl.Series) -> tuple[str, ...]:
    return tuple(one_line(text)[:_MAX_CHARACTERS] for text in ids.head(NUM_EXAMPLES))


def _listed(examples: Sequence[str]) -> str:
    return ", ".join(repr(each) for each in examples) or "none"
