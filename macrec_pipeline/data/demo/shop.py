"""The demo shop before it is turned into files: items with a kind and a style, and users whose next choice needs both.

An item's text says its kind and its image shows its style; neither says the other. A user's next item most often
continues the chain of kinds *and* keeps the style. So a model that reads only texts learns which kind comes next but
not in which style, and a model that reads only images the reverse. About two items share each (kind, style) pair.

Shapes (docs/notation.md): N items.
"""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.data.demo.catalogue import KINDS
from macrec_pipeline.data.demo.images import STYLES
from macrec_pipeline.runtime.time_units import DAY_MS, MINUTE_MS

ITEMS_PER_PAIR = 2
"""How many items share a (kind, style) pair on average, as long as there are enough kinds and styles."""
MIN_EVENTS, MAX_EVENTS = 8, 20

# The probabilities that decide the next event, within a session and at the start of one. What remains is left to the
# user's taste.
_CONTINUE_KIND = {"inside": 0.78, "begin": 0.45}
_COMPANION_KIND = 0.1
_KEEP_STYLE = {"inside": 0.85, "begin": 0.25}
_SESSION_ENDS = 0.22
# The probabilities of a user's first, second and third favourite.
_TASTE = (0.55, 0.3, 0.15)
# The standard deviation of the logarithm of an item's popularity.
_POPULARITY_SPREAD = 0.55

_OPENING_MS = 1_704_096_000_000  # 2024-01-01 08:00 UTC
_MAX_TRIES = 30


@dataclass(frozen=True)
class Shop:
    """The true properties of items and events, from which the files are written.

    Attributes:
        kinds: int64 [N], the kind of each item, an index in `KINDS`.
        styles: int64 [N], the style of each item, an index in `STYLES`.
        copies: int64 [N], the number of each item among the items of its kind, counted from 0.
        sequences: each user's items in chronological order.
        times: the time of each of those events, in milliseconds since the epoch, ascending.
    """

    kinds: NDArray[np.int64]
    styles: NDArray[np.int64]
    copies: NDArray[np.int64]
    sequences: list[list[int]]
    times: list[list[int]]


def build_shop(
    num_items: int, num_users: int, *, catalogue_generator: np.random.Generator, user_generator: np.random.Generator
) -> Shop:
    """Make up a catalogue and what users did with it; the same generators give the same shop."""
    num_kinds, num_styles = _choose_num_kinds_and_styles(num_items)
    pairs = catalogue_generator.permutation(np.arange(num_items) % (num_kinds * num_styles))
    kinds, styles = pairs // num_styles, pairs % num_styles
    copies = np.zeros(num_items, dtype=np.int64)
    for kind in range(num_kinds):
        members = np.flatnonzero(kinds == kind)
        copies[members] = np.arange(len(members))
    popularity = np.exp(catalogue_generator.normal(0.0, _POPULARITY_SPREAD, size=num_items))
    companions = catalogue_generator.permutation(num_kinds)
    rules = _ChoiceRules(kinds, styles, popularity, companions)
    users = [_simulate_user(rules, user_generator) for _ in range(num_users)]
    return Shop(kinds, styles, copies, [items for items, _ in users], [times for _, times in users])


def _choose_num_kinds_and_styles(num_items: int) -> tuple[int, int]:
    """Choose as many kinds and styles as give `ITEMS_PER_PAIR` items per pair, in the ratio of `KINDS` to `STYLES`."""
    num_pairs = max(1, num_items // ITEMS_PER_PAIR)
    num_kinds = min(len(KINDS), max(2, round(float(np.sqrt(num_pairs * len(KINDS) / len(STYLES))))))
    return num_kinds, min(len(STYLES), max(2, num_pairs // num_kinds))


class _ChoiceRules:
    """The rules by which every user chooses the next item.

    Args:
        kinds: int64 [N], the kind of each item.
        styles: int64 [N], the style of each item.
        popularity: float64 [N], the weight of each item among the items of its kind and style.
        companions: for each kind, the kind that sometimes follows it besides the next of the chain.
    """

    def __init__(
        self,
        kinds: NDArray[np.int64],
        styles: NDArray[np.int64],
        popularity: NDArray[np.float64],
        companions: NDArray[np.int64],
    ) -> None:
        self.num_kinds, self.num_styles = int(kinds.max()) + 1, int(styles.max()) + 1
        self._companions = companions.tolist()
        self._popularity = popularity.tolist()
        self._items_by_pair: dict[tuple[int, int], list[int]] = {}
        for item, pair in enumerate(zip(kinds.tolist(), styles.tolist(), strict=True)):
            self._items_by_pair.setdefault(pair, []).append(item)

    def next_kind(self, kind: int, where: str, favourites: Sequence[int], generator: np.random.Generator) -> int:
        """Choose the next kind of the chain, sometimes the companion of the current kind, else a favourite."""
        chance = generator.random()
        if chance < _CONTINUE_KIND[where]:
            return (kind + 1) % self.num_kinds
        if chance < _CONTINUE_KIND[where] + _COMPANION_KIND:
            return int(self._companions[kind])
        return favourites[_choose(_TASTE, generator)]

    def next_style(self, style: int, where: str, favourites: Sequence[int], generator: np.random.Generator) -> int:
        """Choose the current style again, else a favourite."""
        if generator.random() < _KEEP_STYLE[where]:
            return style
        return favourites[_choose(_TASTE, generator)]

    def choose_item(self, kind: int, style: int, seen: set[int], generator: np.random.Generator) -> int | None:
        """Choose an unseen item of this kind and style, popular ones more often; None if there is none left."""
        unseen = [item for item in self._items_by_pair.get((kind, style), []) if item not in seen]
        return unseen[_choose([self._popularity[item] for item in unseen], generator)] if unseen else None


def _simulate_user(rules: _ChoiceRules, generator: np.random.Generator) -> tuple[list[int], list[int]]:
    """Return the items and the times of one user's events."""
    favourite_kinds = _choose_favourites(rules.num_kinds, generator)
    favourite_styles = _choose_favourites(rules.num_styles, generator)
    kind, style = favourite_kinds[0], favourite_styles[0]
    now = _OPENING_MS + int(generator.integers(0, 300)) * DAY_MS + int(generator.integers(0, 720)) * MINUTE_MS
    items: list[int] = []
    times: list[int] = []
    length = int(generator.integers(MIN_EVENTS, MAX_EVENTS + 1))
    while len(items) < length:
        starts_session = not items or generator.random() < _SESSION_ENDS
        where = "begin" if starts_session else "inside"
        item = None
        for _ in range(_MAX_TRIES):  # if the user has seen every item of a kind and style, another pair is drawn
            next_kind = rules.next_kind(kind, where, favourite_kinds, generator)
            next_style = rules.next_style(style, where, favourite_styles, generator)
            item = rules.choose_item(next_kind, next_style, set(items), generator)
            if item is not None:
                break
        if item is None:
            break
        kind, style = next_kind, next_style
        now += int(generator.integers(2, 15)) * DAY_MS if starts_session else int(generator.integers(1, 9)) * MINUTE_MS
        items.append(item)
        times.append(now)
    return items, times


def _choose_favourites(num_choices: int, generator: np.random.Generator) -> list[int]:
    """Choose three favourites, best first; kinds and styles with low numbers are somewhat more fashionable."""
    fashion = 1.0 / (4.0 + np.arange(num_choices))
    chosen = generator.choice(
        num_choices, size=len(_TASTE), replace=num_choices < len(_TASTE), p=fashion / fashion.sum()
    )
    return [int(choice) for choice in chosen]


def _choose(weights: Sequence[float], generator: np.random.Generator) -> int:
    """Draw a position with probabilities proportional to `weights`."""
    cumulative = list(accumulate(weights))
    return min(bisect(cumulative, generator.random() * cumulative[-1]), len(cumulative) - 1)
