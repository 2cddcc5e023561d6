"""The demo shop before it becomes files: items with a kind and a style, and people who move by both.

The text of an item says its kind, its picture shows its style; neither says the other. The next thing that somebody
looks at most often continues the chain of kinds *and* keeps the style, so whoever reads only texts knows which kinds
come next but not in which style, and whoever reads only pictures the reverse. About two items share a kind and a style.
"""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.data.demo.catalogue import KINDS
from macrec_pipeline.data.demo.images import STYLES

ITEMS_A_LOOK = 2
"""Items that share a kind and a style, on average, as long as there are kinds and styles enough."""
MIN_EVENTS, MAX_EVENTS = 8, 20

# What the next event does inside a session and at the beginning of one; the rest follows the person's taste.
_CONTINUE_KIND = {"inside": 0.78, "begin": 0.45}
_COMPANION_KIND = 0.1
_KEEP_STYLE = {"inside": 0.85, "begin": 0.25}
_SESSION_ENDS = 0.22
# How uneven tastes are: first, second and third choice.
_TASTE = (0.55, 0.3, 0.15)
_POPULARITY_SPREAD = 0.55

_OPENING_MS = 1_704_096_000_000  # 2024-01-01 08:00 UTC
_MINUTE_MS = 60_000
_DAY_MS = 86_400_000
_TRIES = 30


@dataclass(frozen=True)
class Shop:
    """The truth behind the files.

    Attributes:
        kinds: int64 [N], row of `KINDS` of each item.
        styles: int64 [N], row of `STYLES` of each item.
        copies: int64 [N], which item of its kind it is, from 0.
        sequences: for each user the items in the order of time.
        times: for each user the times in ms since the epoch, ascending.
    """

    kinds: NDArray[np.int64]
    styles: NDArray[np.int64]
    copies: NDArray[np.int64]
    sequences: list[list[int]]
    times: list[list[int]]


def build_shop(
    num_items: int, num_users: int, *, catalogue_generator: np.random.Generator, user_generator: np.random.Generator
) -> Shop:
    """Make up a catalogue and what people did with it; the same generators give the same shop."""
    num_kinds, num_styles = _numbers_of_kinds_and_styles(num_items)
    looks = catalogue_generator.permutation(np.arange(num_items) % (num_kinds * num_styles))
    kinds, styles = looks // num_styles, looks % num_styles
    copies = np.zeros(num_items, dtype=np.int64)
    for kind in range(num_kinds):
        members = np.flatnonzero(kinds == kind)
        copies[members] = np.arange(len(members))
    popularity = np.exp(catalogue_generator.normal(0.0, _POPULARITY_SPREAD, size=num_items))
    companions = catalogue_generator.permutation(num_kinds)
    walk = _Walk(kinds, styles, popularity, companions)
    people = [_walk_of_one_user(walk, user_generator) for _ in range(num_users)]
    return Shop(kinds, styles, copies, [items for items, _ in people], [times for _, times in people])


def _numbers_of_kinds_and_styles(num_items: int) -> tuple[int, int]:
    """As many as give `ITEMS_A_LOOK` items for each pair, in the proportion of what the shop knows."""
    pairs = max(1, num_items // ITEMS_A_LOOK)
    num_kinds = min(len(KINDS), max(2, round(float(np.sqrt(pairs * len(KINDS) / len(STYLES))))))
    return num_kinds, min(len(STYLES), max(2, pairs // num_kinds))


class _Walk:
    """The rules by which everybody moves."""

    def __init__(
        self,
        kinds: NDArray[np.int64],
        styles: NDArray[np.int64],
        popularity: NDArray[np.float64],
        companions: NDArray[np.int64],
    ) -> None:
        self.num_kinds, self.num_styles = int(kinds.max()) + 1, int(styles.max()) + 1
        self.companions = companions.tolist()
        self.popularity = popularity.tolist()
        self.shelves: dict[tuple[int, int], list[int]] = {}
        for item, look in enumerate(zip(kinds.tolist(), styles.tolist(), strict=True)):
            self.shelves.setdefault(look, []).append(item)

    def next_kind(self, kind: int, where: str, taste: Sequence[int], generator: np.random.Generator) -> int:
        """The next kind of the chain, now and then the companion of this one, else what the person likes."""
        chance = generator.random()
        if chance < _CONTINUE_KIND[where]:
            return (kind + 1) % self.num_kinds
        if chance < _CONTINUE_KIND[where] + _COMPANION_KIND:
            return int(self.companions[kind])
        return taste[_choose(_TASTE, generator)]

    def next_style(self, style: int, where: str, taste: Sequence[int], generator: np.random.Generator) -> int:
        """The same style, else one that the person likes."""
        if generator.random() < _KEEP_STYLE[where]:
            return style
        return taste[_choose(_TASTE, generator)]

    def pick(self, kind: int, style: int, seen: set[int], generator: np.random.Generator) -> int | None:
        """An item of this look that the person has not had, popular ones more often; None if there is none."""
        shelf = [item for item in self.shelves.get((kind, style), []) if item not in seen]
        return shelf[_choose([self.popularity[item] for item in shelf], generator)] if shelf else None


def _walk_of_one_user(walk: _Walk, generator: np.random.Generator) -> tuple[list[int], list[int]]:
    liked_kinds = _tastes(walk.num_kinds, generator)
    liked_styles = _tastes(walk.num_styles, generator)
    kind, style = liked_kinds[0], liked_styles[0]
    now = _OPENING_MS + int(generator.integers(0, 300)) * _DAY_MS + int(generator.integers(0, 720)) * _MINUTE_MS
    items: list[int] = []
    times: list[int] = []
    length = int(generator.integers(MIN_EVENTS, MAX_EVENTS + 1))
    while len(items) < length:
        begin = not items or generator.random() < _SESSION_ENDS
        where = "begin" if begin else "inside"
        item = None
        for _ in range(_TRIES):  # a look whose items are all known already is no choice: think again
            next_kind = walk.next_kind(kind, where, liked_kinds, generator)
            next_style = walk.next_style(style, where, liked_styles, generator)
            item = walk.pick(next_kind, next_style, set(items), generator)
            if item is not None:
                break
        if item is None:
            break
        kind, style = next_kind, next_style
        now += int(generator.integers(2, 15)) * _DAY_MS if begin else int(generator.integers(1, 9)) * _MINUTE_MS
        items.append(item)
        times.append(now)
    return items, times


def _tastes(number: int, generator: np.random.Generator) -> list[int]:
    """Three favourites, best first; the first kinds and styles are somewhat more in fashion."""
    fashion = 1.0 / (4.0 + np.arange(number))
    chosen = generator.choice(number, size=len(_TASTE), replace=number < len(_TASTE), p=fashion / fashion.sum())
    return [int(choice) for choice in chosen]


def _choose(weights: Sequence[float], generator: np.random.Generator) -> int:
    """A position, with these unnormalised probabilities."""
    steps = list(accumulate(weights))
    return min(bisect(steps, generator.random() * steps[-1]), len(steps) - 1)
