"""Resolves collisions: gives every item a unique ID, in rounds of array operations (MACRec section 3.2).

Of the items that share an ID, the one nearest to its last code keeps it. Each of the others takes the nearest code of
the last level under which the ID is still free. If all IDs with the same prefix are taken, the item moves to the
next-nearest code of the second-to-last level and looks there.

In each round, every waiting item proposes its next choice. Of the items that propose the same free ID, the nearest one
gets it; ties go to the lower item index. Only IDs with the same prefix (all codes but the last) compete, so the state
is one row of K flags per prefix with waiting items, at most N x K bytes. IDs that may not be given to anyone, such as
those of items that already have one, are rows in front of the items' rows and count as placed from the start.

Shapes (docs/notation.md): H width of a latent, K codes per level, L levels, L' levels of a prefix, N items. Other axes
are written in words: `[occupied, L]` is one row per occupied ID, `[prefixes, K]` one per prefix with waiting items.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.semantic_ids.diagnostics import row_keys
from macrec_pipeline.semantic_ids.residual_quantizer import squared_distances

# Distances are computed for this many items at a time. It bounds the memory and does not change any result.
_ITEMS_PER_CHUNK = 65_536


def resolve_collisions(
    codes: np.ndarray,
    residuals: torch.Tensor,
    codebooks: torch.Tensor,
    *,
    modality: str,
    independent_levels: bool = False,
    occupied: np.ndarray | None = None,
) -> np.ndarray:
    """Make IDs unique.

    Args:
        codes: int64 [N, L], the nearest codes of each item, each in [0, K).
        residuals: float [N, 2, H] on the CPU, the inputs of the last two levels.
        codebooks: float [L, K, H].
        modality: "text" or "image", for the error message.
        independent_levels: True if a change of the second-to-last code does not change the input of the last level.
        occupied: int64 [occupied, L], distinct IDs that no item may get; None if there are none.

    Returns:
        int64 [N, L], distinct rows, none of them occupied.

    Raises:
        SemanticIdError: there is no free ID near an item.
    """
    resolution = CollisionResolution(
        codes, residuals, codebooks, independent_levels=independent_levels, occupied=occupied
    )
    resolution.place_at_last_level()
    resolution.place_at_second_last_level()
    num_unplaced = len(resolution.unplaced)
    if num_unplaced:
        remedy = "Raise quantizer.codebook_size or quantizer.num_levels, or train the quantizer longer."
        if occupied is not None:
            remedy = (
                f"{len(occupied)} IDs belong to other items or are retired. Fit a new quantizer with "
                "identity.mode=new, if necessary with a larger quantizer.codebook_size, or lower "
                "identity.retire_for_days."
            )
        raise SemanticIdError(
            f"{num_unplaced} of {len(codes)} items find no free {modality} ID near them, because too many items share "
            f"their first codes. {remedy}"
        )
    return resolution.codes


class CollisionResolution:
    """The state of the resolution; the arguments are those of `resolve_collisions`."""

    def __init__(
        self,
        codes: np.ndarray,
        residuals: torch.Tensor,
        codebooks: torch.Tensor,
        *,
        independent_levels: bool = False,
        occupied: np.ndarray | None = None,
    ) -> None:
        self._num_occupied = 0 if occupied is None else len(occupied)  # also the row of the first item
        self._codes = codes.copy() if occupied is None else np.concatenate([occupied, codes])  # [occupied + N, L]
        self._placed = np.arange(len(self._codes)) < self._num_occupied
        self._residuals = residuals
        self._codebooks = codebooks
        self._independent_levels = independent_levels
        self._codebook_size = codebooks.shape[1]
        # the codes in front of the last two levels never change, so they are numbered only once
        self._stem = _row_numbers(self._codes[:, :-2])

    @property
    def codes(self) -> np.ndarray:
        """Codes of the items, int64 [N, L]. Placed items have distinct rows, none of which is an occupied ID."""
        return self._codes[self._num_occupied :]

    @property
    def unplaced(self) -> np.ndarray:
        """Rows of the items without an ID, int64, ascending. Rows count from the first occupied ID."""
        return np.flatnonzero(~self._placed)

    def place_at_last_level(self) -> None:
        """Let items propose the nearest code of the last level, and those that do not get it the next-nearest ones."""
        prefix = _row_numbers(self._codes[:, :-1])
        choice, distance = self._nearest_last_codes()
        key = prefix * self._codebook_size
        proposed = key[self._num_occupied :] + choice
        occupied_keys = key[: self._num_occupied] + self._codes[: self._num_occupied, -1]
        free = np.flatnonzero(~np.isin(proposed, occupied_keys))
        winners = free[_nearest_per_key(proposed[free], distance[free])]
        self._place(self._num_occupied + winners, choice[winners])
        items = self.unplaced
        has_waiting = np.zeros(len(prefix), dtype=bool)
        has_waiting[prefix[items]] = True
        row_of = np.cumsum(has_waiting) - 1
        taken = np.zeros((int(has_waiting.sum()), self._codebook_size), dtype=bool)  # [prefixes, K]
        placed_beside = np.flatnonzero(self._placed & has_waiting[prefix])
        taken[row_of[prefix[placed_beside]], self._codes[placed_beside, -1]] = True
        self._run_rounds(items, row_of[prefix[items]], taken, first_rank=1)

    def place_at_second_last_level(self) -> None:
        """Move items whose prefix is full to the next-nearest codes of the second-to-last level in turn."""
        items = self.unplaced
        if not len(items) or self._codes.shape[1] == 1:
            return
        order, _ = _codes_by_distance(self._residuals[items - self._num_occupied, 0], self._codebooks[-2])
        # A full prefix has K items, so at most N / K stems have one.
        stems, block = np.unique(self._stem[items], return_inverse=True)
        taken = self._taken_under(stems)
        for rank in range(1, self._codebook_size):
            waiting = ~self._placed[items]
            if not waiting.any():
                return
            items, order, block = items[waiting], order[waiting], block[waiting]
            self._codes[items, -2] = order[:, rank]
            self._run_rounds(items, block * self._codebook_size + order[:, rank], taken, first_rank=0)

    def _taken_under(self, stems: np.ndarray) -> np.ndarray:
        """Flag the taken IDs under some stems, one row per prefix: bool [stems * K, K]."""
        block_of = np.full(int(self._stem.max()) + 1, -1)
        block_of[stems] = np.arange(len(stems))
        placed = np.flatnonzero(self._placed & (block_of[self._stem] >= 0))
        taken = np.zeros((len(stems) * self._codebook_size, self._codebook_size), dtype=bool)
        rows = block_of[self._stem[placed]] * self._codebook_size + self._codes[placed, -2]
        taken[rows, self._codes[placed, -1]] = True
        return taken

    def _nearest_last_codes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest code of the last level and its squared distance per item: int64 [N], float [N]."""
        choices, distances = [], []
        for begin in range(0, len(self._residuals), _ITEMS_PER_CHUNK):
            level_input = self._residuals[begin : begin + _ITEMS_PER_CHUNK, 1]
            distance, choice = squared_distances(level_input, self._codebooks[-1]).min(dim=1)
            choices.append(choice)
            distances.append(distance)
        return torch.cat(choices).numpy(), torch.cat(distances).numpy()

    def _run_rounds(self, items: np.ndarray, prefix_rows: np.ndarray, taken: np.ndarray, *, first_rank: int) -> None:
        """Let items propose their codes of the last level by distance, until all are placed or out of choices.

        Args:
            items: int64 [waiting], rows of unplaced items, ascending.
            prefix_rows: int64 [waiting], the row of `taken` for the prefix of each item.
            taken: bool [prefixes, K], True for IDs that are taken; updated in place.
            first_rank: rank by distance of the first code that items propose.
        """
        size = self._codebook_size
        num_taken = taken.sum(axis=1)
        has_room = num_taken[prefix_rows] < size
        for chunk in _chunks_of_whole_prefixes(prefix_rows, np.flatnonzero(has_room)):
            rows = prefix_rows[chunk]
            level_input = self._last_level_input(items[chunk], moved=first_rank == 0)
            order, distances = _codes_by_distance(level_input, self._codebooks[-1])  # [waiting, K] each
            waiting = np.arange(len(chunk))
            for rank in range(first_rank, size):
                waiting = waiting[num_taken[rows[waiting]] < size]
                if not len(waiting):
                    break
                free = waiting[~taken[rows[waiting], order[waiting, rank]]]
                proposed = rows[free] * size + order[free, rank]
                winners = free[_nearest_per_key(proposed, distances[free, rank])]
                taken[rows[winners], order[winners, rank]] = True
                np.add.at(num_taken, rows[winners], 1)
                self._place(items[chunk[winners]], order[winners, rank])
                waiting = waiting[~self._placed[items[chunk[waiting]]]]

    def _last_level_input(self, items: np.ndarray, *, moved: bool) -> torch.Tensor:
        """Return the input of the last level, float [waiting, H]; `moved` items have a new code before it."""
        rows = items - self._num_occupied
        if self._independent_levels or not moved:
            return self._residuals[rows, 1]
        return self._residuals[rows, 0] - self._codebooks[-2][self._codes[items, -2]]

    def _place(self, items: np.ndarray, last_codes: np.ndarray) -> None:
        self._codes[items, -1] = last_codes
        self._placed[items] = True


def _row_numbers(rows: np.ndarray) -> np.ndarray:
    """Number the distinct rows of int64 [N, L'] in ascending order: int64 [N]; all 0 if there are no columns."""
    _, numbers = np.unique(row_keys(rows), return_inverse=True)
    return numbers


def _codes_by_distance(residuals: torch.Tensor, codebook: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Sort the codes of a level by their distance to each input; ties go to the lower code.

    Args:
        residuals: float [waiting, H].
        codebook: float [K, H].

    Returns:
        The codes, int32 [waiting, K], and their squared distances, float32 [waiting, K].
    """
    size = len(codebook)
    order = np.empty((len(residuals), size), dtype=np.int32)
    sorted_distances = np.empty((len(residuals), size), dtype=np.float32)
    for begin in range(0, len(residuals), _ITEMS_PER_CHUNK // 4):
        part = slice(begin, begin + _ITEMS_PER_CHUNK // 4)
        distances = squared_distances(residuals[part], codebook).numpy()
        # Sorting integers is many times faster than argsort. Each integer holds the bits of the distance, then the
        # code. Adding 0 turns -0 into 0. The bits of negative numbers count backwards, so they are inverted.
        bits = (distances + np.float32(0)).view(np.int32)
        bits = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
        order[part] = np.sort((bits << 32) | np.arange(size), axis=1) & 0xFFFFFFFF
        sorted_distances[part] = np.take_along_axis(distances, order[part], axis=1)
    return order, sorted_distances


def _chunks_of_whole_prefixes(prefix_rows: np.ndarray, positions: np.ndarray) -> Iterator[np.ndarray]:
    """Split positions into chunks of about `_ITEMS_PER_CHUNK`, each with all positions of its prefixes.

    Yields:
        Positions, sorted by prefix and then ascending.
    """
    positions = positions[np.argsort(prefix_rows[positions], kind="stable")]
    sorted_rows = prefix_rows[positions]
    begin = 0
    while begin < len(positions):
        last = sorted_rows[min(begin + _ITEMS_PER_CHUNK, len(positions)) - 1]
        end = int(np.searchsorted(sorted_rows, last, side="right"))
        yield positions[begin:end]
        begin = end


def _nearest_per_key(keys: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Return the position with the smallest distance for each distinct key, by key; ties go to the first: int64."""
    order = np.lexsort((distances, keys))  # stable
    sorted_keys = keys[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = sorted_keys[1:] != sorted_keys[:-1]
    return order[is_first]
