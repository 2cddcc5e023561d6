"""Plans a refit: training on all interactions, after the evaluation has decided everything that validation decides.

The input is the folder of an evaluated model; the output is what `fit_recommender` or `fit_sasrec` needs to train the
same model on whole histories, with the validation and test targets that the evaluated model has never seen. Nothing is
chosen here: the number of epochs comes from the evaluated model's training, and the settings are those it had.

There are two ways. "from_scratch" repeats the training from random weights, up to the epoch that validation chose.
"continue" starts from the evaluated weights and trains for a share of the epochs. In these, the recommender gives more
weight to what it has not learned yet, since the training showed it everything else in every epoch.

Shapes (docs/notation.md): T history items, U users.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from macrec_pipeline.errors import StorageError

if TYPE_CHECKING:
    from macrec_pipeline.config import RecommenderConfig, RefitConfig, SasrecConfig, Section

SectionT = TypeVar("SectionT", bound="Section")


@dataclass(frozen=True)
class RefitPlan(Generic[SectionT]):
    """How a model is refitted.

    Attributes:
        method: "from_scratch" or "continue".
        config: the settings to train with.
        num_epochs: the epochs to train for; `refit_epochs` of the training.
        start: the folder of the starting weights; None for random ones.
        new_interaction_weight: what an interaction counts that the evaluated model has not learned, compared with one
            that it has.
    """

    method: str
    config: SectionT
    num_epochs: int
    start: Path | None
    new_interaction_weight: float = 1.0

    def target_weights(self, num_learned: np.ndarray, lengths: np.ndarray) -> np.ndarray | None:
        """Return what each item counts as a target; see `fit_recommender`.

        Args:
            num_learned: int64 [U], the items at the beginning of each history that the evaluated model was trained on.
            lengths: int64 [U], the items of each whole history.

        Returns:
            float32 [sum of T], with a mean of 1 over the targets, which are all items but the first of each history.
            None if everything counts the same.
        """
        positions = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        is_new, is_target = positions >= np.repeat(num_learned, lengths), positions > 0
        if self.new_interaction_weight == 1 or not is_target.any():
            return None
        weights: np.ndarray = np.where(is_new, self.new_interaction_weight, 1.0)
        weights /= weights[is_target].mean()
        return weights.astype(np.float32)


def plan_recommender_refit(
    evaluated: Path, config: RecommenderConfig, refit: RefitConfig, *, warm_started: bool
) -> RefitPlan[RecommenderConfig]:
    """Plan the refit of a generative recommender.

    Args:
        evaluated: what `FittedRecommender.save` wrote.
        config: the present settings; the evaluated model's own take precedence.
        refit: the section `refit`.
        warm_started: whether the evaluated model was trained from earlier weights. Such a training cannot be repeated
            from random weights, so the refit continues from the evaluated weights.

    Raises:
        StorageError: the folder cannot be read.
    """
    description, log = _read(evaluated, "recommender.json")
    trained = type(config).model_validate(config.model_dump() | description["config"])
    if refit.method == "from_scratch" and not warm_started:
        return RefitPlan("from_scratch", trained, description["best_epoch"], None)
    num_epochs = _share_of_epochs(len(log), refit)
    rate = trained.learning_rate * refit.learning_rate_share
    changed = trained.model_copy(update={"num_epochs": num_epochs, "learning_rate": rate})
    return RefitPlan("continue", changed, num_epochs, evaluated, refit.new_interaction_weight)


def plan_sasrec_refit(
    evaluated: Path, config: SasrecConfig, refit: RefitConfig, *, warm_started: bool
) -> RefitPlan[SasrecConfig]:
    """Plan the refit of SASRec.

    Args:
        evaluated: what `FittedSasrec.save` wrote.
        config: the present settings; the evaluated model's own take precedence.
        refit: the section `refit`.
        warm_started: as for `plan_recommender_refit`.

    Raises:
        StorageError: the folder cannot be read.
    """
    description, log = _read(evaluated, "sasrec.json")
    trained = type(config).model_validate(config.model_dump() | description["config"])
    if (refit.sasrec_method == "from_scratch" and not warm_started) or not log:
        return RefitPlan("from_scratch", trained, max(1, description["best_epoch"]), None)
    rate = trained.learning_rate * refit.learning_rate_share
    changed = trained.model_copy(update={"learning_rate": rate})
    return RefitPlan("continue", changed, _share_of_epochs(len(log), refit), evaluated)


def _share_of_epochs(num_epochs: int, refit: RefitConfig) -> int:
    return max(1, int(round(refit.epoch_share * num_epochs, 6)))  # rounded, or 0.3 of 10 might give 2


def _read(folder: Path, name: str) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Read the description and the training log of an evaluated model."""
    try:
        description, log = (
            json.loads((folder / file).read_text(encoding="utf-8")) for file in (name, "training_log.json")
        )
    except (OSError, ValueError) as error:
        raise StorageError(
            f"The evaluated model in {folder} cannot be read, so it cannot be refitted: {error}. Materialize "
            "`sasrec` and `recommender` again."
        ) from error
    return description, log
