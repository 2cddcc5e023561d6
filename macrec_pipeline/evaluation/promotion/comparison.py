"""Compare the challenger with the champion: both models recommend to the same test users, as they would in service.

The input is the lists that both models give for the same histories. They contain item ids, because the champion may
have been trained on an older catalogue with other item indices. The output is `ModelComparison`: the metrics of both
models and their paired differences. If a model does not know a test target, that target counts as a miss of the model;
the share of such targets is part of the metrics.
Shapes (docs/notation.md): U users.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from macrec_pipeline.errors import DataError
from macrec_pipeline.evaluation.metrics import MISSED, FloatArray, hit_rate, ndcg
from macrec_pipeline.evaluation.promotion.held_out import HeldOutUsers
from macrec_pipeline.evaluation.statistics import PairedDifference, paired_differences
from macrec_pipeline.runtime.seeds import numpy_generator

CUTOFF = 10
_STREAM = "evaluation/head_to_head"
SemanticIds = tuple[tuple[int, ...], ...]
"""The semantic IDs of an item (tuples of codes), one per modality, in the same order for every item."""


@dataclass(frozen=True)
class ModelRecommendations:
    """The recommendations of one model for the test users.

    Attributes:
        lists: item ids recommended to each user, best first.
        catalogue: item id -> semantic IDs, for every item that the model knows.
        milliseconds: time per history when histories are processed in batches.
        num_bytes: size of the bundle's files that serving needs; its quantizer is not one of them.
    """

    lists: Sequence[Sequence[str]]
    catalogue: Mapping[str, SemanticIds]
    milliseconds: float
    num_bytes: int


@dataclass(frozen=True)
class ModelMetrics:
    """The metrics of one model.

    Attributes:
        hr_10, ndcg_10: means over the test users.
        coverage: share of the newest catalogue that is among the first ten items of at least one list.
        unknown_targets: share of the test targets that are not in the model's catalogue.
        milliseconds, num_bytes: as in `ModelRecommendations`.
        num_items: size of the model's catalogue.
    """

    hr_10: float
    ndcg_10: float
    coverage: float
    unknown_targets: float
    milliseconds: float
    num_bytes: int
    num_items: int


@dataclass(frozen=True)
class ModelComparison:
    """The challenger compared with the champion.

    Attributes:
        challenger, champion: the metrics of each model.
        ndcg_10, hr_10: challenger minus champion, over all test users.
        ndcg_10_known: the difference in NDCG@10 over the users whose target both models know; None if there are none.
        popularity_ndcg_10: NDCG@10 of recommending the most popular items to the same users.
        moved_ids: share of the items known to both models whose semantic ID differs in at least one modality; None if
            the models have no item in common.
        num_shared_items: number of items known to both models.
        num_users: U.
        confidence: confidence level of the intervals.
    """

    challenger: ModelMetrics
    champion: ModelMetrics
    ndcg_10: PairedDifference
    hr_10: PairedDifference
    ndcg_10_known: PairedDifference | None
    popularity_ndcg_10: float
    moved_ids: float | None
    num_shared_items: int
    num_users: int
    confidence: float

    def figures(self) -> dict[str, float]:
        """Flatten the comparison to name -> number, for tags and metrics."""
        figures: dict[str, float] = {
            "num_users": self.num_users,
            "confidence": self.confidence,
            "popularity_ndcg_10": self.popularity_ndcg_10,
            "num_shared_items": self.num_shared_items,
        }
        if self.moved_ids is not None:
            figures["moved_ids"] = self.moved_ids
        for role, metrics in (("challenger", self.challenger), ("champion", self.champion)):
            figures |= {f"{role}.{name}": value for name, value in asdict(metrics).items()}
        for name in ("ndcg_10", "hr_10", "ndcg_10_known"):
            paired: PairedDifference | None = getattr(self, name)
            if paired is not None:
                figures |= {f"{name}.{part}": getattr(paired, part) for part in ("difference", "low", "high")}
        return figures


def compare_models(
    challenger: ModelRecommendations,
    champion: ModelRecommendations,
    users: HeldOutUsers,
    *,
    num_samples: int,
    confidence: float,
    seed: int,
) -> ModelComparison:
    """Measure both models on the same users.

    Args:
        challenger, champion: the recommendations of each model for the histories of `users`, in their order.
        users: the test users and the newest catalogue.
        num_samples: number of resamples of the users.
        confidence: confidence level of the intervals, such as 0.95.
        seed: root seed of the resamples.

    Raises:
        DataError: there are no users, or a model does not have exactly one list per user.
    """
    challenger_values = _metrics_by_user(challenger.lists, users)
    champion_values = _metrics_by_user(champion.lists, users)

    def paired(chosen: slice | np.ndarray) -> list[PairedDifference]:
        return paired_differences(
            challenger_values[chosen],
            champion_values[chosen],
            num_samples=num_samples,
            confidence=confidence,
            generator=numpy_generator(seed, _STREAM),
        )

    known_to_both = np.array(
        [target in challenger.catalogue and target in champion.catalogue for target in users.targets]
    )
    ndcg_10, hr_10 = paired(slice(None))
    shared = challenger.catalogue.keys() & champion.catalogue.keys()
    num_moved = sum(challenger.catalogue[item] != champion.catalogue[item] for item in shared)
    return ModelComparison(
        challenger=model_metrics(challenger, users),
        champion=model_metrics(champion, users),
        ndcg_10=ndcg_10,
        hr_10=hr_10,
        ndcg_10_known=paired(known_to_both)[0] if known_to_both.any() else None,
        popularity_ndcg_10=float(_metrics_by_user(users.popular, users)[:, 0].mean()),
        moved_ids=num_moved / len(shared) if shared else None,
        num_shared_items=len(shared),
        num_users=len(users.targets),
        confidence=confidence,
    )


def compare_with_popularity(
    champion: ModelRecommendations, users: HeldOutUsers, *, num_samples: int, confidence: float, seed: int
) -> tuple[ModelMetrics, PairedDifference]:
    """Measure the champion alone, and compare its NDCG@10 with that of the most popular items.

    Arguments and errors are those of `compare_models`.

    Returns:
        The champion's metrics, and its NDCG@10 minus that of the most popular items.
    """
    (difference,) = paired_differences(
        _metrics_by_user(champion.lists, users)[:, :1],
        _metrics_by_user(users.popular, users)[:, :1],
        num_samples=num_samples,
        confidence=confidence,
        generator=numpy_generator(seed, _STREAM),
    )
    return model_metrics(champion, users), difference


def ndcg_by_user(recommendations: ModelRecommendations, users: HeldOutUsers) -> FloatArray:
    """NDCG@10 of each user, float64 [U].

    Raises:
        DataError: there are no users, or the model does not have exactly one list per user.
    """
    return _metrics_by_user(recommendations.lists, users)[:, 0]


def model_metrics(recommendations: ModelRecommendations, users: HeldOutUsers) -> ModelMetrics:
    """Compute the metrics of one model.

    Raises:
        DataError: there are no users, or the model does not have exactly one list per user.
    """
    ndcg_10, hr_10 = _metrics_by_user(recommendations.lists, users).mean(axis=0)
    recommended = {item for row in recommendations.lists for item in row[:CUTOFF]}
    num_unknown = sum(target not in recommendations.catalogue for target in users.targets)
    return ModelMetrics(
        hr_10=float(hr_10),
        ndcg_10=float(ndcg_10),
        coverage=len(recommended & users.catalogue) / len(users.catalogue),
        unknown_targets=num_unknown / len(users.targets),
        milliseconds=recommendations.milliseconds,
        num_bytes=recommendations.num_bytes,
        num_items=len(recommendations.catalogue),
    )


def _metrics_by_user(lists: Sequence[Sequence[str]], users: HeldOutUsers) -> FloatArray:
    """NDCG@10 and HR@10 of each user: float64 [U, 2]."""
    num_users = len(users.targets)
    if len(lists) != num_users or not num_users:
        raise DataError(
            f"There are {num_users} test users and {len(lists)} recommendation lists, but there must be at least one "
            "user and exactly one list per user. Materialize histories again."
        )
    ranks = [
        row.index(target) + 1 if target in row else MISSED
        for row, target in zip((list(row[:CUTOFF]) for row in lists), users.targets, strict=True)
    ]
    rank_array = np.array(ranks, dtype=np.int64)
    return np.stack([ndcg(rank_array, cutoff=CUTOFF), hit_rate(rank_array, cutoff=CUTOFF)], axis=1)
