"""Challenger against champion: both models on the same test users, now, as they would serve them.

What enters: the lists that both give to the same histories, as item ids, since the champion may be of an older
catalogue with other item indices. What leaves: `HeadToHead`, figures of both and their paired differences. A target
that a model does not know is a miss of that model; how many those are is told. U users.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from macrec_pipeline.errors import DataError
from macrec_pipeline.evaluation.metrics import MISSED, FloatArray, hit_rate, ndcg
from macrec_pipeline.evaluation.promotion.held_out import HeldOut
from macrec_pipeline.evaluation.statistics import PairedDifference, paired_differences
from macrec_pipeline.runtime.seeds import numpy_generator

CUTOFF = 10
_STREAM = "evaluation/head_to_head"
Codes = tuple[tuple[int, ...], ...]
"""An item's semantic IDs, one a modality in the same order for every item."""


@dataclass(frozen=True)
class Answers:
    """What one model says to the test users.

    Attributes:
        lists: item ids of each user, best first.
        catalogue: the item ids that the model knows, each with its semantic IDs.
        milliseconds: a history, asked in batches.
        num_bytes: of the bundle's files that answers are made of; its quantizer is none.
    """

    lists: Sequence[Sequence[str]]
    catalogue: Mapping[str, Codes]
    milliseconds: float
    num_bytes: int


@dataclass(frozen=True)
class Standing:
    """How one model did.

    Attributes:
        hr_10, ndcg_10: means over the test users.
        coverage: share of the newest catalogue that is among the first ten items of at least one list.
        unknown_targets: share of the test targets that are not in the model's catalogue.
        milliseconds, num_bytes: as in `Answers`.
        num_items: the size of the model's catalogue.
    """

    hr_10: float
    ndcg_10: float
    coverage: float
    unknown_targets: float
    milliseconds: float
    num_bytes: int
    num_items: int


@dataclass(frozen=True)
class HeadToHead:
    """Challenger against champion.

    Attributes:
        challenger, champion: how each did.
        ndcg_10, hr_10: challenger less champion, over all test users.
        ndcg_10_known: the same NDCG@10 over the users whose target both know; None if there are none.
        popularity_ndcg_10: of the most popular items, on the same users.
        moved_ids: share of the items that both know whose semantic ID differs in a modality; None if they share none.
        num_shared_items: how many those are.
        num_users: U.
        confidence: of the intervals.
    """

    challenger: Standing
    champion: Standing
    ndcg_10: PairedDifference
    hr_10: PairedDifference
    ndcg_10_known: PairedDifference | None
    popularity_ndcg_10: float
    moved_ids: float | None
    num_shared_items: int
    num_users: int
    confidence: float

    def figures(self) -> dict[str, float]:
        """All of it as name -> number, for tags and metrics."""
        found: dict[str, float] = {
            "num_users": self.num_users,
            "confidence": self.confidence,
            "popularity_ndcg_10": self.popularity_ndcg_10,
            "num_shared_items": self.num_shared_items,
        }
        if self.moved_ids is not None:
            found["moved_ids"] = self.moved_ids
        for role, one in (("challenger", self.challenger), ("champion", self.champion)):
            found |= {f"{role}.{name}": value for name, value in asdict(one).items()}
        for name in ("ndcg_10", "hr_10", "ndcg_10_known"):
            paired: PairedDifference | None = getattr(self, name)
            if paired is not None:
                found |= {f"{name}.{part}": getattr(paired, part) for part in ("difference", "low", "high")}
        return found


def compare(
    challenger: Answers,
    champion: Answers,
    users: HeldOut,
    *,
    num_samples: int,
    confidence: float,
    seed: int,
) -> HeadToHead:
    """Score both on the same users.

    Args:
        challenger, champion: their answers to the same histories, in the same order.
        users: whose histories those were, with the newest catalogue.
        num_samples: resamples of the users.
        confidence: of the intervals, as in 0.95.
        seed: root seed of the resamples.

    Raises:
        DataError: there are no users, or a model did not answer each of them once.
    """
    ours, theirs = (_metrics(answers.lists, users) for answers in (challenger, champion))  # [U, 2] each

    def paired(chosen: slice | np.ndarray) -> list[PairedDifference]:
        generator = numpy_generator(seed, _STREAM)
        return paired_differences(
            ours[chosen], theirs[chosen], num_samples=num_samples, confidence=confidence, generator=generator
        )

    known = np.array([target in challenger.catalogue and target in champion.catalogue for target in users.targets])
    both = paired(slice(None))
    shared = challenger.catalogue.keys() & champion.catalogue.keys()
    moved = sum(challenger.catalogue[item] != champion.catalogue[item] for item in shared)
    return HeadToHead(
        challenger=standing(challenger, users),
        champion=standing(champion, users),
        ndcg_10=both[0],
        hr_10=both[1],
        ndcg_10_known=paired(known)[0] if known.any() else None,
        popularity_ndcg_10=float(_metrics(users.popular, users)[:, 0].mean()),
        moved_ids=moved / len(shared) if shared else None,
        num_shared_items=len(shared),
        num_users=len(users.targets),
        confidence=confidence,
    )


def against_popularity(
    champion: Answers, users: HeldOut, *, num_samples: int, confidence: float, seed: int
) -> tuple[Standing, PairedDifference]:
    """How the champion does by itself, and its NDCG@10 less that of the most popular items; see `compare`."""
    (difference,) = paired_differences(
        _metrics(champion.lists, users)[:, :1],
        _metrics(users.popular, users)[:, :1],
        num_samples=num_samples,
        confidence=confidence,
        generator=numpy_generator(seed, _STREAM),
    )
    return standing(champion, users), difference


def standing(answers: Answers, users: HeldOut) -> Standing:
    """How one model did; see `compare`. Raises `DataError`."""
    ndcg_10, hr_10 = _metrics(answers.lists, users).mean(axis=0)
    shown = {item for row in answers.lists for item in row[:CUTOFF]}
    return Standing(
        hr_10=float(hr_10),
        ndcg_10=float(ndcg_10),
        coverage=len(shown & users.catalogue) / len(users.catalogue),
        unknown_targets=sum(target not in answers.catalogue for target in users.targets) / len(users.targets),
        milliseconds=answers.milliseconds,
        num_bytes=answers.num_bytes,
        num_items=len(answers.catalogue),
    )


def _metrics(lists: Sequence[Sequence[str]], users: HeldOut) -> FloatArray:
    """NDCG@10 and HR@10 a user: float64 [U, 2]."""
    num_users = len(users.targets)
    if len(lists) != num_users or not num_users:
        raise DataError(f"{num_users} test users need one list each, got {len(lists)}. Materialize histories again.")
    places = [
        row.index(target) + 1 if target in row else MISSED
        for row, target in zip((list(row[:CUTOFF]) for row in lists), users.targets, strict=True)
    ]
    ranks = np.array(places, dtype=np.int64)
    return np.stack([ndcg(ranks, cutoff=CUTOFF), hit_rate(ranks, cutoff=CUTOFF)], axis=1)
