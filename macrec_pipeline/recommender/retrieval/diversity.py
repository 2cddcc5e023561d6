"""Diverse lists: maximal marginal relevance, and at most n items per category or per prefix.

`select_diverse` takes a search as a function and selects k of the items that it finds, one after the other (maximal
marginal relevance, Carbonell & Goldstein 1998): each time the item with the largest
(1 - diversity) * relevance - diversity * (largest similarity to an item that is selected already). The relevance of a
row's candidates falls from 1 for the best score to 0 for the last one. The similarity of two items is the share of
leading codes that their semantic IDs have in common, averaged over the modalities.

If a limit leaves a row with fewer than k items, the search is repeated for that row without the items of full groups,
until the row has k items or nothing more is found. Each item belongs to at most one group, so a row gets as many items
as the catalogue allows.

Shapes (docs/notation.md): B batch rows, C candidate items per row, L levels, N items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from macrec_pipeline.errors import RequestError
from macrec_pipeline.recommender.retrieval.beam_search import Beams

CANDIDATES_PER_ITEM = 4
"""How many candidates per recommended item the selection looks at if `diversity` is above 0."""
Search = Callable[[torch.Tensor, torch.Tensor], Beams]
"""(rows, eligible), int64 [B'] and bool [B', N] -> candidates of these rows, best first: [B', C]."""


@dataclass(frozen=True)
class DiversityOptions:
    """How diverse lists shall be, as a request or the settings say it.

    Attributes:
        diversity: from 0, the most relevant items, to 1, the least similar ones among the candidates.
        max_per_category: most items of one category in a list; 0 for no limit. An item counts for the smallest of its
            categories, and an item without categories for none.
        max_per_prefix: most items whose semantic IDs start with the same codes; 0 for no limit.
        prefix_length: number of these codes.

    Raises:
        RequestError: a value is out of range, or there are two limits.
    """

    diversity: float = 0.0
    max_per_category: int = 0
    max_per_prefix: int = 0
    prefix_length: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.diversity <= 1:
            raise RequestError(f"`diversity` must be a number from 0 to 1, but is {self.diversity!r:.80}.")
        for name, minimum in (("max_per_category", 0), ("max_per_prefix", 0), ("prefix_length", 1)):
            value = getattr(self, name)
            if value < minimum:
                raise RequestError(f"`{name}` must be a whole number of at least {minimum}, but is {value!r:.80}.")
        if self.max_per_category and self.max_per_prefix:
            raise RequestError(
                f"Only one of `max_per_category` and `max_per_prefix` can limit a list, but they are "
                f"{self.max_per_category} and {self.max_per_prefix}. Set one of them to 0."
            )

    def replaced(self, given: Mapping[str, float]) -> DiversityOptions:
        """Return the options with the values that a request gives; a limit in it replaces both limits of these.

        Raises:
            RequestError: a value is out of range, or there are two limits.
        """
        limits = {"max_per_category": 0, "max_per_prefix": 0}
        options: dict[str, Any] = {**(limits if limits.keys() & given.keys() else {}), **given}
        return replace(self, **options)

    @property
    def is_active(self) -> bool:
        """Whether the options change any list."""
        return bool(self.diversity or self.max_per_category or self.max_per_prefix)


OPTIONS = tuple(field.name for field in fields(DiversityOptions))
"""The names of the options, in requests and in the section `decoding`."""


@dataclass(frozen=True)
class Diversity:
    """How diverse the lists of one call are.

    Attributes:
        strength: the option `diversity`.
        max_per_group: most items of one group in a list; None for no limit.
        group_of_item: int64 [N] on the model's device, from 0 on, -1 for an item without a group; None without a limit.
    """

    strength: float
    max_per_group: int | None = None
    group_of_item: torch.Tensor | None = None

    def num_candidates(self, k: int) -> int:
        """Return how many candidates a search must find for lists of k items."""
        return CANDIDATES_PER_ITEM * k if self.strength > 0 else k


def groups_by_category(items_by_category: Mapping[str, np.ndarray], *, num_items: int) -> np.ndarray:
    """Number the smallest category of each item; the first by name if several are equally small.

    Returns:
        int64 [N], -1 for an item without categories.
    """
    groups = np.full(num_items, -1, dtype=np.int64)
    # the last category that is written stays
    ordered = sorted(items_by_category, key=lambda name: (len(items_by_category[name]), name), reverse=True)
    for number, name in enumerate(ordered):
        groups[items_by_category[name]] = number
    return groups


def groups_by_prefix(codes: np.ndarray, *, length: int) -> np.ndarray:
    """Number the items by the first codes of their IDs: int64 [N, L] -> int64 [N]."""
    _, groups = np.unique(codes[:, :length], axis=0, return_inverse=True)
    return groups.reshape(-1).astype(np.int64)


def select_diverse(
    searches: Sequence[Search],
    *,
    eligible: torch.Tensor,
    codes: Mapping[str, torch.Tensor],
    diversity: Diversity,
    k: int,
) -> Beams:
    """Select k items per row.

    Args:
        searches: each finds candidates among the eligible items of some rows. A later one is for the rows that have
            fewer than k items after the ones before it.
        eligible: bool [B, N], the items that each row may receive.
        codes: {modality: int64 [N, L]}, for the similarity of items.
        diversity: the strength and the limit.
        k: number of items.

    Returns:
        [B, k] in the order of selection, with -1 where a row has fewer items. The scores are those of the search, so
        they do not always fall from one item to the next.
    """
    eligible = eligible.clone()
    chosen = torch.full((len(eligible), k), -1, device=eligible.device)
    scores = torch.full((len(eligible), k), float("-inf"), dtype=torch.float64, device=eligible.device)
    for search in searches:
        rows = torch.nonzero(chosen[:, -1] < 0).flatten()
        while len(rows):
            before = (chosen[rows] >= 0).sum(dim=1)
            found = search(rows, eligible[rows])
            chosen[rows], scores[rows] = _select(found, chosen[rows], scores[rows], codes=codes, diversity=diversity)
            for row in rows.tolist():
                items = chosen[row][chosen[row] >= 0]
                eligible[row, items] = False
                eligible[row] &= ~_items_of_full_groups(items, diversity, num_items=eligible.shape[1])
            if diversity.group_of_item is None:  # without a limit, one search finds whatever there is
                break
            after = (chosen[rows] >= 0).sum(dim=1)
            rows = rows[(after > before) & (after < k)]
    return Beams(chosen, scores)


def _select(
    found: Beams, chosen: torch.Tensor, scores: torch.Tensor, *, codes: Mapping[str, torch.Tensor], diversity: Diversity
) -> tuple[torch.Tensor, torch.Tensor]:
    """Append candidates to the items that are selected already.

    Args:
        found: [B, C], candidates, best first.
        chosen: int64 [B, k], -1 where there is no item yet.
        scores: float64 [B, k], of those items.
        codes, diversity: as for `select_diverse`.

    Returns:
        The extended `chosen` and `scores`.
    """
    chosen, scores = chosen.clone(), scores.clone()
    rows = torch.arange(len(chosen), device=chosen.device)
    relevance, available = _relevance(found), found.items >= 0
    length = (chosen >= 0).sum(dim=1)
    considered = _Considered(found.items, codes, diversity)
    for items in chosen[:, : int(length.max())].unbind(dim=1):
        considered.add(items)
    while True:
        value = (1 - diversity.strength) * relevance - diversity.strength * considered.closest
        value = value.masked_fill(~available | considered.in_full_group(), float("-inf"))
        best = value.argmax(dim=1)  # the first one of equal values
        takes = value[rows, best].isfinite() & (length < chosen.shape[1])
        if not takes.any():
            return chosen, scores
        item = torch.where(takes, found.items[rows, best], -1)
        chosen[rows[takes], length[takes]] = item[takes]
        scores[rows[takes], length[takes]] = found.scores[rows[takes], best[takes]].double()
        available[rows[takes], best[takes]] = False
        length += takes
        considered.add(item)


class _Considered:
    """What the candidates of each row have in common with the items that are selected.

    Attributes:
        closest: float [B, C], the largest similarity to a selected item; 0 if nothing is selected.
    """

    def __init__(self, candidates: torch.Tensor, codes: Mapping[str, torch.Tensor], diversity: Diversity) -> None:
        self._candidates, self._codes, self._diversity = candidates.clamp(min=0), codes, diversity
        self.closest = torch.zeros(candidates.shape, device=candidates.device)
        self._num_in_group = torch.zeros_like(candidates)

    def add(self, items: torch.Tensor) -> None:
        """Select one item per row: int64 [B], -1 for none."""
        selected, exists = items.clamp(min=0), (items >= 0)[:, None]
        if self._diversity.strength > 0:
            shares = [
                (of_item[self._candidates] == of_item[selected][:, None]).cumprod(dim=2).sum(dim=2) / of_item.shape[1]
                for of_item in self._codes.values()
            ]  # [B, C] each
            similarity = torch.stack(shares).mean(dim=0)
            self.closest = torch.maximum(self.closest, similarity.masked_fill(~exists, 0.0))
        if (group_of_item := self._diversity.group_of_item) is not None:
            groups, group = group_of_item[self._candidates], group_of_item[selected][:, None]
            self._num_in_group += (groups == group) & (groups >= 0) & exists

    def in_full_group(self) -> torch.Tensor:
        """Tell which candidates belong to a group of which enough items are selected: bool [B, C]."""
        limit = self._diversity.max_per_group
        return torch.zeros_like(self._num_in_group, dtype=torch.bool) if limit is None else self._num_in_group >= limit


def _relevance(found: Beams) -> torch.Tensor:
    """Scale each row's scores to [0, 1]; 1 if they are all equal. float [B, C]; arbitrary where there is no item."""
    # an item never counts more than the one before it: items of the history may follow the others whatever their score
    scores = found.scores.masked_fill(found.items < 0, float("inf")).cummin(dim=1).values
    best, last = scores[:, :1], scores[:, -1:]
    return torch.where(best > last, (scores - last) / (best - last), 1.0)


def _items_of_full_groups(items: torch.Tensor, diversity: Diversity, *, num_items: int) -> torch.Tensor:
    """Tell which items belong to a group of which `items`, int64 [any], has enough: bool [N]."""
    if diversity.group_of_item is None or diversity.max_per_group is None:
        return torch.zeros(num_items, dtype=torch.bool, device=items.device)
    groups = diversity.group_of_item
    counts = torch.bincount(groups[items] + 1, minlength=int(groups.max()) + 2)  # of group -1 first
    counts[0] = 0
    return (counts >= diversity.max_per_group)[groups + 1]
