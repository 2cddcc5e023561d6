"""Plan the refit of a champion: how its evaluated weights are trained on all interactions that there are today.

Unlike the refit of a new model (`training/refit.py`), the evaluated weights may be weeks old. So the number of epochs
also follows how much is new since they were trained, as in a training that continues from earlier weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from macrec_pipeline.config import PipelineConfig, RecommenderConfig, SasrecConfig


@dataclass(frozen=True)
class ChampionRefitPlan:
    """How a champion is refitted.

    Attributes:
        recommender: the champion's own settings, with the epochs and the learning rate of the refit.
        sasrec: the same for SASRec; None if the champion has no collaborative route.
        changed_share: share of the interactions or items that the evaluated weights have not seen, in [0, 1]. What
            today's evaluation holds out does not count.
    """

    recommender: RecommenderConfig
    sasrec: SasrecConfig | None
    changed_share: float


def plan_champion_refit(
    description: Mapping[str, Any],
    config: PipelineConfig,
    *,
    num_learned: int,
    num_training: int,
    num_new_items: int,
    num_items: int,
) -> ChampionRefitPlan:
    """Plan the refit.

    The sizes of the models are the champion's. The epochs and the learning rate start from today's settings, because
    the champion's own may be those of a short training that continued from earlier weights.

    Args:
        description: the content of `bundle.json` in the champion's evaluated bundle.
        config: today's settings.
        num_learned: interactions that the evaluated weights were trained on.
        num_training: interactions that a model is trained on today if the targets are held out.
        num_new_items: items of today's catalogue that the evaluated bundle does not know.
        num_items: items of today's catalogue.
    """
    new_interactions = (num_training - num_learned) / max(1, num_training)
    share = min(1.0, max(0.0, new_interactions, num_new_items / num_items))

    def changes(epochs_from_scratch: int, learning_rate: float) -> tuple[int, float]:
        by_change = config.continuation.num_epochs(epochs_from_scratch, changed_share=share)
        of_refit = int(round(config.refit.epoch_share * epochs_from_scratch, 6))
        return max(by_change, of_refit), learning_rate * config.refit.learning_rate_share

    trained = type(config.recommender).model_validate(config.recommender.model_dump() | description["recommender"])
    epochs, rate = changes(config.recommender.num_epochs, config.recommender.learning_rate)
    recommender = trained.model_copy(update={"num_epochs": epochs, "learning_rate": rate})
    if "sasrec" not in description:
        return ChampionRefitPlan(recommender, None, share)
    trained_sasrec = type(config.sasrec).model_validate(config.sasrec.model_dump() | description["sasrec"]["config"])
    epochs, rate = changes(config.sasrec.max_epochs, config.sasrec.learning_rate)
    sasrec = trained_sasrec.model_copy(update={"max_epochs": epochs, "learning_rate": rate})
    return ChampionRefitPlan(recommender, sasrec, share)
