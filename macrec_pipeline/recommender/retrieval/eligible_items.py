"""Business rules: which items a request may get, from the shop's ids and categories to the mask that decoding takes.

In: the rules of a call, and of each of its rows. Out: the legal items of any of those rows, bool [B, N]. Rules only
take away: an item that is left has the score that it has without them.

Shapes: B rows, N items.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import torch

from macrec_pipeline.errors import RequestError

# Decoding under rules costs at most about this many times what it costs without.
MOST_WIDENED = 4
_NO_ITEMS = np.zeros(0, dtype=np.int64)
_NAMED = 5


@dataclass(frozen=True)
class Rules:
    """What every item of an answer has to be.

    An id that the catalogue lacks names no item: to exclude it changes nothing, to allow it alone leaves nothing. A
    category that no item has is a mistake, which `EligibleItems` refuses.

    Attributes:
        allowed: one of these ids, as of what is in stock; None allows every item, an empty collection none.
        excluded: none of these ids.
        allowed_categories: in one of these; None allows every item, also one without a category.
        excluded_categories: in none of these.

    Raises:
        RequestError: a rule is one string, or holds something else than strings.
    """

    allowed: Collection[str] | None = None
    excluded: Collection[str] = ()
    allowed_categories: Collection[str] | None = None
    excluded_categories: Collection[str] = ()

    def __post_init__(self) -> None:
        for name, said in vars(self).items():
            listed = said or ()
            if isinstance(listed, str) or not all(isinstance(one, str) for one in listed):
                what = "categories" if name.endswith("categories") else "item ids"
                raise RequestError(f"{name} must be a list of {what}, got {said!r:.80}.")


class EligibleItems:
    """What the rules of a call leave of a catalogue.

    Args:
        index_of: item id -> its index, N of them.
        rules: of all rows; None for none.
        of_rows: one a row, which hold beside those of all rows; None where a row has none, or no row has.
        items_of: category -> int64 [any], the indices of its items.

    Raises:
        RequestError: a rule names a category that is none of `items_of`; says which are like it.
    """

    def __init__(
        self,
        index_of: Mapping[str, int],
        rules: Rules | None,
        of_rows: Sequence[Rules | None] | None = None,
        *,
        items_of: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._index_of, self._items_of = index_of, items_of or {}
        self._common = self._kept([self._listed(rules)])[0]
        self._rows = of_rows if of_rows is not None and any(of_rows) else ()
        for row in filter(None, self._rows):  # a call is refused before any of it is worked out
            self._require({*(row.allowed_categories or ()), *row.excluded_categories})

    def mask(self, places: np.ndarray) -> torch.Tensor:
        """Which items the rows at some places, int64 [B], may get: bool [B, N], or [1, N] if no row has own rules."""
        if not self._rows:
            return torch.from_numpy(self._common[None])
        return torch.from_numpy(self._common & self._kept([self._listed(self._rows[place]) for place in places]))

    def widened(self, beam_width: int) -> int:
        """The beam that finds among the items legal for all rows what one of `beam_width` finds among all N.

        A beam goes by the probability of prefixes, which illegal items keep their share of: the fewer are legal, the
        more beams it takes. Exact once it is as wide as the legal items are many; a row's own rules do not count, so
        that no row's answer depends on another's rules.
        """
        num_legal = max(1, int(self._common.sum()))
        factor = min(MOST_WIDENED, self._common.size / num_legal)
        return max(beam_width, min(num_legal, int(factor * beam_width)))

    def _listed(self, rules: Rules | None) -> tuple[np.ndarray | None, np.ndarray]:
        """Rules in item indices: allowed, None for all, and excluded."""
        if rules is None:
            return None, _NO_ITEMS
        allowed = None if rules.allowed is None else self._indices(rules.allowed)
        if rules.allowed_categories is not None:
            inside = self._in_categories(rules.allowed_categories)
            allowed = inside if allowed is None else np.intersect1d(allowed, inside)
        if not rules.excluded_categories:
            return allowed, self._indices(rules.excluded)
        outside = self._in_categories(rules.excluded_categories)
        return allowed, np.concatenate([self._indices(rules.excluded), outside])

    def _indices(self, item_ids: Collection[str]) -> np.ndarray:
        return np.array([self._index_of[one] for one in item_ids if one in self._index_of], dtype=np.int64)

    def _in_categories(self, categories: Collection[str]) -> np.ndarray:
        """The items that are in any of some categories, int64; in several of them as often."""
        self._require(categories)
        return np.concatenate([_NO_ITEMS, *(self._items_of[category] for category in categories)])

    def _require(self, categories: Collection[str]) -> None:
        for category in sorted(set(categories) - self._items_of.keys()):
            raise RequestError(f"There is no category {category!r:.80} in the catalogue. {self._like(category)}")

    def _like(self, category: str) -> str:
        """What a caller who named an unknown category may have meant."""
        if not self._items_of:
            return "Its items have none: map `categories` in the data set's file, and train a new version."
        asked, by_lower = category.lower(), {name.lower(): name for name in self._items_of}
        holding = sorted(name for name in by_lower if asked in name)
        near = [by_lower[name] for name in (holding or get_close_matches(asked, by_lower, n=_NAMED))[:_NAMED]]
        largest = sorted(self._items_of, key=lambda name: (-len(self._items_of[name]), name))
        what = "Near it" if near else f"The largest of {len(largest)}"
        return f"{what}: {', '.join(map(repr, near or largest[:_NAMED]))}."

    def _kept(self, rows: Sequence[tuple[np.ndarray | None, np.ndarray]]) -> np.ndarray:
        """Rules in item indices, one a row -> bool [B, N]."""
        kept = np.empty((len(rows), len(self._index_of)), dtype=bool)
        kept[:] = np.array([allowed is None for allowed, _ in rows])[:, None]
        kept[_cells([_NO_ITEMS if allowed is None else allowed for allowed, _ in rows])] = True
        kept[_cells([excluded for _, excluded in rows])] = False
        return kept


def _cells(items_of_rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Item indices, int64 [any] a row -> the row and the item of each, int64 [sum] both."""
    rows = np.repeat(np.arange(len(items_of_rows)), [len(items) for items in items_of_rows])
    return rows, np.concatenate(items_of_rows)
