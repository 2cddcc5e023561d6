"""Business rules: which items each request may receive.

Rules are stated in the shop's item ids and categories, once for a whole call and optionally for each of its rows.
`EligibleItems` turns them into the mask that decoding takes, bool [B, N]. Rules only remove items: every remaining item
keeps the score that it has without rules. An item that has left the catalogue is never eligible, whatever the rules.

Shapes (docs/notation.md): B batch rows, N items.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import torch

from macrec_pipeline.errors import RequestError

# Upper bound of how much wider a beam becomes under rules, and so of how much slower decoding becomes.
MAX_WIDENING = 4
_NO_ITEMS = np.zeros(0, dtype=np.int64)
_MAX_SUGGESTIONS = 5


@dataclass(frozen=True)
class Rules:
    """The conditions that every recommended item must meet.

    Item ids that the catalogue lacks match no item: excluding one has no effect, and allowing nothing else leaves no
    item. An unknown category is a mistake, which `EligibleItems` rejects.

    Attributes:
        allowed: only these item ids, such as those in stock. None permits every item; an empty collection permits none.
        excluded: none of these item ids.
        allowed_categories: only items in one of these categories. None permits every item, with or without a category.
        excluded_categories: no item in any of these categories.

    Raises:
        RequestError: a rule is a single string, or contains something other than strings.
    """

    allowed: Collection[str] | None = None
    excluded: Collection[str] = ()
    allowed_categories: Collection[str] | None = None
    excluded_categories: Collection[str] = ()

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            entries = value or ()
            if isinstance(entries, str) or not all(isinstance(entry, str) for entry in entries):
                content = "categories" if name.endswith("categories") else "item ids"
                raise RequestError(f"`{name}` must be a list of {content} (strings), but is {value!r:.80}.")


class EligibleItems:
    """The items of a catalogue that the rules of a call permit.

    Args:
        index_of: index of each of the N item ids.
        rules: rules for all rows; None for no rules.
        rules_of_rows: further rules, one entry per row; None for a row without rules of its own, or for no row rules.
        items_by_category: int64 indices of the items of each category.
        listed: bool [N], the items that are in the catalogue today; None if all are.

    Raises:
        RequestError: a rule names a category that is not in `items_by_category`. The message suggests similar ones.
    """

    def __init__(
        self,
        index_of: Mapping[str, int],
        rules: Rules | None,
        rules_of_rows: Sequence[Rules | None] | None = None,
        *,
        items_by_category: Mapping[str, np.ndarray] | None = None,
        listed: np.ndarray | None = None,
    ) -> None:
        self._index_of, self._items_by_category = index_of, items_by_category or {}
        self._shared_mask = self._masks([self._item_indices(rules)])[0]
        if listed is not None:
            self._shared_mask &= listed
        self._rules_of_rows = rules_of_rows if rules_of_rows is not None and any(rules_of_rows) else ()
        for row_rules in filter(None, self._rules_of_rows):  # reject a bad call before decoding any of it
            self._check_categories({*(row_rules.allowed_categories or ()), *row_rules.excluded_categories})

    def mask(self, rows: np.ndarray) -> torch.Tensor:
        """Return the eligible items of some rows, int64 [B]: bool [B, N], or [1, N] if no row has rules of its own."""
        if not self._rules_of_rows:
            return torch.from_numpy(self._shared_mask[None])
        indices = [self._item_indices(self._rules_of_rows[row]) for row in rows]
        return torch.from_numpy(self._shared_mask & self._masks(indices))

    def widened(self, beam_width: int) -> int:
        """Return a beam width that finds about as many eligible items as `beam_width` finds among all N.

        A beam follows probable prefixes, and ineligible items keep their share of a prefix's probability, so the fewer
        items are eligible, the wider the beam has to be. A beam as wide as the number of eligible items is exact. Only
        the rules that all rows share are counted, so no row's result depends on another row's rules.
        """
        num_eligible = max(1, int(self._shared_mask.sum()))
        factor = min(MAX_WIDENING, self._shared_mask.size / num_eligible)
        return max(beam_width, min(num_eligible, int(factor * beam_width)))

    def _item_indices(self, rules: Rules | None) -> tuple[np.ndarray | None, np.ndarray]:
        """Translate rules to item indices: allowed (None for all) and excluded."""
        if rules is None:
            return None, _NO_ITEMS
        allowed = None if rules.allowed is None else self._indices_of_ids(rules.allowed)
        if rules.allowed_categories is not None:
            in_categories = self._indices_of_categories(rules.allowed_categories)
            allowed = in_categories if allowed is None else np.intersect1d(allowed, in_categories)
        excluded = self._indices_of_ids(rules.excluded)
        if rules.excluded_categories:
            excluded = np.concatenate([excluded, self._indices_of_categories(rules.excluded_categories)])
        return allowed, excluded

    def _indices_of_ids(self, item_ids: Collection[str]) -> np.ndarray:
        return np.array([self._index_of[item_id] for item_id in item_ids if item_id in self._index_of], dtype=np.int64)

    def _indices_of_categories(self, categories: Collection[str]) -> np.ndarray:
        """Return the int64 indices of the items in any of the categories; an item in two of them appears twice."""
        self._check_categories(categories)
        return np.concatenate([_NO_ITEMS, *(self._items_by_category[category] for category in categories)])

    def _check_categories(self, categories: Collection[str]) -> None:
        for category in sorted(set(categories) - self._items_by_category.keys()):
            raise RequestError(f"Unknown category {category!r:.80}. {self._suggestion(category)}")

    def _suggestion(self, category: str) -> str:
        """Suggest what an unknown category was meant to be."""
        if not self._items_by_category:
            return (
                "The catalogue of this model has no categories: map `categories` in the data set's file, and train a "
                "new version."
            )
        lower, by_lower = category.lower(), {name.lower(): name for name in self._items_by_category}
        containing = sorted(name for name in by_lower if lower in name)
        matches = containing or get_close_matches(lower, by_lower, n=_MAX_SUGGESTIONS)
        similar = [by_lower[name] for name in matches[:_MAX_SUGGESTIONS]]
        if similar:
            return f"Similar categories: {', '.join(map(repr, similar))}."
        largest = sorted(self._items_by_category, key=lambda name: (-len(self._items_by_category[name]), name))
        return f"The largest of the {len(largest)} categories: {', '.join(map(repr, largest[:_MAX_SUGGESTIONS]))}."

    def _masks(self, indices_of_rows: Sequence[tuple[np.ndarray | None, np.ndarray]]) -> np.ndarray:
        """Turn each row's allowed and excluded item indices into masks, bool [B, N]."""
        masks = np.empty((len(indices_of_rows), len(self._index_of)), dtype=bool)
        masks[:] = np.array([allowed is None for allowed, _ in indices_of_rows])[:, None]
        masks[_cells([_NO_ITEMS if allowed is None else allowed for allowed, _ in indices_of_rows])] = True
        masks[_cells([excluded for _, excluded in indices_of_rows])] = False
        return masks


def _cells(items_of_rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pair every item with its row: the rows and the items, two int64 arrays of equal length."""
    rows = np.repeat(np.arange(len(items_of_rows)), [len(items) for items in items_of_rows])
    return rows, np.concatenate(items_of_rows)
