"""Gives every item an ID of its own, in rounds of array operations whose cost follows the items that still wait.

In a round every unplaced item asks for its next choice of the last code, and of those that ask for one free ID the
nearest gets it, ties to the lower item index. Only IDs under one prefix (all codes but the last) compete, so what is
taken is a row of K flags for each prefix where somebody waits: at most N x K bytes. IDs that are occupied from the
start are rows before those of the items, placed already.

Shapes: N items, M occupied IDs, L levels, K codes a level, H latent, W waiting items, P prefixes where somebody waits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from macrec_pipeline.semantic_ids.diagnostics import row_keys
from macrec_pipeline.semantic_ids.residual_quantizer import squared_distances

# Distances of so many items are in memory at a time: it bounds the memory and changes no result.
_ITEMS_AT_ONCE = 65_536


class CollisionResolution:
    """The state of the resolution.

    Args:
        codes: int64 [N, L], each in [0, K).
        residuals: float [N, 2, H] on the CPU, what entered the last two levels.
        codebooks: float [L, K, H].
        independent: a code of the level before the last does not change what enters the last one.
        occupied: int64 [M, L], distinct IDs that nobody may get; None for none.
    """

    def __init__(
        self,
        codes: np.ndarray,
        residuals: torch.Tensor,
        codebooks: torch.Tensor,
        *,
        independent: bool = False,
        occupied: np.ndarray | None = None,
    ) -> None:
        self._first = 0 if occupied is None else len(occupied)  # row of the first item
        self._codes = codes.copy() if occupied is None else np.concatenate([occupied, codes])  # [M + N, L]
        self._placed = np.arange(len(self._codes)) < self._first
        self._residuals = residuals
        self._codebooks = codebooks
        self._independent = independent
        self._size = codebooks.shape[1]
        # codes of all levels but the last two never change, so they are numbered once
        self._stem = _row_numbers(self._codes[:, :-2])

    @property
    def codes(self) -> np.ndarray:
        """The items' codes, int64 [N, L]; rows of placed items are distinct, and no occupied ID is among them."""
        return self._codes[self._first :]

    @property
    def unplaced(self) -> np.ndarray:
        """The rows of items that have no ID yet, ascending and counted from the occupied IDs on: int64."""
        return np.flatnonzero(~self._placed)

    def last_level(self) -> None:
        """Everybody asks for the nearest last code, then those who were refused for the next ones."""
        prefix = _row_numbers(self._codes[:, :-1])
        choice, nearest = self._nearest()
        key = prefix * self._size
        asked = key[self._first :] + choice
        free = np.flatnonzero(~np.isin(asked, key[: self._first] + self._codes[: self._first, -1]))
        won = free[_nearest_of_each(asked[free], nearest[free])]
        self._place(self._first + won, choice[won])
        items = self.unplaced
        waiting = np.zeros(len(prefix), dtype=bool)
        waiting[prefix[items]] = True
        row_of = np.cumsum(waiting) - 1
        taken = np.zeros((int(waiting.sum()), self._size), dtype=bool)  # [P, K]
        beside = np.flatnonzero(self._placed & waiting[prefix])
        taken[row_of[prefix[beside]], self._codes[beside, -1]] = True
        self._rounds(items, row_of[prefix[items]], taken, first=1)

    def level_before(self) -> None:
        """Who found a full prefix moves to the next-nearest code of the level before, one after the other."""
        items = self.unplaced
        if not len(items) or self._codes.shape[1] == 1:
            return
        order, _ = _choices(self._residuals[items - self._first, 0], self._codebooks[-2])  # [W, K]
        # A full prefix holds K items, so at most N / K stems have one.
        stems, block = np.unique(self._stem[items], return_inverse=True)
        taken = self._taken_under(stems)
        for rank in range(1, self._size):
            waiting = ~self._placed[items]
            if not waiting.any():
                return
            items, order, block = items[waiting], order[waiting], block[waiting]
            self._codes[items, -2] = order[:, rank]
            self._rounds(items, block * self._size + order[:, rank], taken, first=0)

    def _taken_under(self, stems: np.ndarray) -> np.ndarray:
        """The IDs of placed items below some stems, a row for each prefix: bool [len(stems) * K, K]."""
        number = np.full(int(self._stem.max()) + 1, -1)
        number[stems] = np.arange(len(stems))
        beside = np.flatnonzero(self._placed & (number[self._stem] >= 0))
        taken = np.zeros((len(stems) * self._size, self._size), dtype=bool)
        rows = number[self._stem[beside]] * self._size + self._codes[beside, -2]
        taken[rows, self._codes[beside, -1]] = True
        return taken

    def _nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """The nearest last code of every item and its squared distance: int64 [N], float [N]."""
        choices, distances = [], []
        for begin in range(0, len(self._residuals), _ITEMS_AT_ONCE):
            entering = self._residuals[begin : begin + _ITEMS_AT_ONCE, 1]
            distance, choice = squared_distances(entering, self._codebooks[-1]).min(dim=1)
            choices.append(choice)
            distances.append(distance)
        return torch.cat(choices).numpy(), torch.cat(distances).numpy()

    def _rounds(self, items: np.ndarray, rows: np.ndarray, taken: np.ndarray, *, first: int) -> None:
        """Let items ask for their choices from rank `first` on, until placed or refused by all.

        Args:
            items: int64 [W], rows of unplaced items, ascending.
            rows: int64 [W], the row of `taken` that stands for each item's prefix.
            taken: bool [P, K], filled in place.
            first: rank of the first choice.
        """
        size = self._size
        num_taken = taken.sum(axis=1)
        room = num_taken[rows] < size
        for part in _whole_prefixes(rows, np.flatnonzero(room)):
            own = rows[part]
            entering = self._entering(items[part], moved=first == 0)
            order, distances = _choices(entering, self._codebooks[-1])  # [W, K] each
            asking = np.arange(len(part))
            for rank in range(first, size):
                asking = asking[num_taken[own[asking]] < size]
                if not len(asking):
                    break
                free = asking[~taken[own[asking], order[asking, rank]]]
                won = free[_nearest_of_each(own[free] * size + order[free, rank], distances[free, rank])]
                taken[own[won], order[won, rank]] = True
                np.add.at(num_taken, own[won], 1)
                self._place(items[part[won]], order[won, rank])
                asking = asking[~self._placed[items[part[asking]]]]

    def _entering(self, items: np.ndarray, *, moved: bool) -> torch.Tensor:
        """What enters the last level, where the code of the level before is another one by now: float [W, H]."""
        own = items - self._first
        if self._independent or not moved:
            return self._residuals[own, 1]
        return self._residuals[own, 0] - self._codebooks[-2][self._codes[items, -2]]

    def _place(self, items: np.ndarray, last: np.ndarray) -> None:
        self._codes[items, -1] = last
        self._placed[items] = True


def _row_numbers(rows: np.ndarray) -> np.ndarray:
    """Number the distinct rows of int64 [N, C] in their order: int64 [N]; all 0 without columns."""
    _, numbers = np.unique(row_keys(rows), return_inverse=True)
    return numbers


def _choices(residuals: torch.Tensor, codebook: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Codes from the nearest to the farthest, ties to the lower, and their squared distances: [W, K] each."""
    size = len(codebook)
    order = np.empty((len(residuals), size), dtype=np.int32)
    sorted_distances = np.empty((len(residuals), size), dtype=np.float32)
    for begin in range(0, len(residuals), _ITEMS_AT_ONCE // 4):
        part = slice(begin, begin + _ITEMS_AT_ONCE // 4)
        distances = squared_distances(residuals[part], codebook).numpy()
        # Sorting integers is many times faster than sorting by argument: the distance's bits, then the code. Adding 0
        # makes -0 and 0 the same bits; the bits of a negative number are turned round, since they count backwards.
        bits = (distances + np.float32(0)).view(np.int32)
        bits = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
        order[part] = np.sort((bits << 32) | np.arange(size), axis=1) & 0xFFFFFFFF
        sorted_distances[part] = np.take_along_axis(distances, order[part], axis=1)
    return order, sorted_distances


def _whole_prefixes(rows: np.ndarray, places: np.ndarray) -> Iterator[np.ndarray]:
    """Part `places` so that those of one row stay together, in ascending order, some thousand at a time."""
    places = places[np.argsort(rows[places], kind="stable")]
    ordered = rows[places]
    begin = 0
    while begin < len(places):
        last = ordered[min(begin + _ITEMS_AT_ONCE, len(places)) - 1]
        end = int(np.searchsorted(ordered, last, side="right"))
        yield places[begin:end]
        begin = end


def _nearest_of_each(keys: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Of each key the place with the smallest distance, ties to the first: int64, by key."""
    order = np.lexsort((distances, keys))  # stable
    ordered = keys[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]
