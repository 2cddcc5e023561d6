"""Why an item was recommended: which route carried it, how each route scores it, and which codes it shares.

`MultiRouteRetriever.rank` returns `RouteEvidence` with a list, and `explain` turns it into one `Explanation` per item.

Shapes (docs/notation.md): L levels, N items, T items of a history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

POPULAR = "popular"
"""The route of an item that was recommended because it is popular, and not by a retrieval route."""


@dataclass(frozen=True)
class RouteEvidence:
    """What each route says about the k items of one list.

    Attributes:
        weights: route -> how much the route counts in the list; 0 if it does not.
        scores: route -> float64 [k], mean log-probability per code of a generative route and log-probability of the
            collaborative one, in nats.
        found: route -> bool [k], whether the route itself found the item.
        num_codes: route -> number of codes that `scores` is the mean of.
    """

    weights: Mapping[str, float]
    scores: Mapping[str, np.ndarray]
    found: Mapping[str, np.ndarray]
    num_codes: Mapping[str, int]

    def carrying_routes(self) -> list[str]:
        """Name the route that carried each of the k items.

        Among the routes that count and found the item, it is the one with the largest product of weight and probability
        of the item. If none of them found it, all routes that count are compared. The first route wins a tie.
        """
        routes = [route for route, weight in self.weights.items() if weight > 0]
        log_shares = np.stack(
            [np.log(self.weights[route]) + self.num_codes[route] * self.scores[route] for route in routes]
        )  # [routes, k]
        found = np.stack([self.found[route] for route in routes])
        candidates = np.where(found | ~found.any(axis=0), log_shares, -np.inf)
        return [routes[place] for place in candidates.argmax(axis=0)]


@dataclass(frozen=True)
class SharedCodes:
    """The item of the history whose semantic ID starts with the most codes of a recommended item's ID.

    Attributes:
        item_id: of the item of the history.
        codes: with which both semantic IDs start; at least one.
    """

    item_id: str
    codes: tuple[int, ...]


@dataclass(frozen=True)
class Explanation:
    """Why one item was recommended.

    Attributes:
        route: the route that carried the item: "text", "image", "collaborative", or "popular" for a fallback.
        scores: route -> the item's score by that route alone, in nats: mean log-probability per code of a generative
            route, log-probability of the collaborative one. Empty for a fallback.
        shared_codes: modality -> what the item shares with the history; without the modalities in which not even the
            first code is shared.
    """

    route: str
    scores: dict[str, float]
    shared_codes: dict[str, SharedCodes]


def explanations(
    items: np.ndarray,
    evidence: RouteEvidence | None,
    *,
    history: np.ndarray,
    codes: Mapping[str, np.ndarray],
    item_ids: Sequence[str],
) -> list[Explanation]:
    """Explain each item of a list.

    Args:
        items: int64 [k] item indices.
        evidence: of the same items; None if they were recommended because they are popular.
        history: int64 [T] item indices, oldest first.
        codes: {modality: int64 [N, L]}.
        item_ids: N ids.
    """
    if evidence is None or not len(items):
        return [Explanation(POPULAR, {}, {}) for _ in items]
    shared = {
        modality: longest_shared_prefixes(of_modality[items], of_modality[history])
        for modality, of_modality in codes.items()
    }
    return [
        Explanation(
            route,
            {name: float(scores[number]) for name, scores in evidence.scores.items()},
            {
                modality: SharedCodes(item_ids[history[places[number]]], tuple(codes[modality][item, :length].tolist()))
                for modality, (places, lengths) in shared.items()
                if (length := int(lengths[number]))
            },
        )
        for number, (item, route) in enumerate(zip(items, evidence.carrying_routes(), strict=True))
    ]


def longest_shared_prefixes(ids: np.ndarray, history_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find, for each item, the item of the history that shares the most leading codes; the newest one if several do.

    Args:
        ids: int64 [k, L], semantic IDs of the items.
        history_ids: int64 [T, L], semantic IDs of the history, oldest first, T >= 1.

    Returns:
        places: int64 [k], positions in the history.
        lengths: int64 [k], numbers of shared codes, from 0 to L.
    """
    lengths = np.stack([np.cumprod(history_ids == item_id, axis=1).sum(axis=1) for item_id in ids])  # [k, T]
    places = lengths.shape[1] - 1 - lengths[:, ::-1].argmax(axis=1)
    return places, lengths.max(axis=1)
