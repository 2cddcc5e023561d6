"""A trained recommender, and its folder on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender
from macrec_pipeline.recommender.model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from macrec_pipeline.config import RecommenderConfig


@dataclass(frozen=True)
class FittedRecommender:
    """A trained model and how it came about.

    Attributes:
        model: on the training device, in evaluation mode.
        log: one mapping an epoch: epoch, train_loss and implicit_loss (means over its steps), validation_loss_text,
            validation_loss_image and their mean validation_loss (nats a code, but for the implicit loss), and
            validation_ndcg if early stopping goes by it.
        best_epoch: the epoch whose weights the model has, from 1.
        warm_start: "none", "taken over", or why the weights before were not.
    """

    model: GenerativeRecommender
    log: list[dict[str, float]] = field(repr=False)
    best_epoch: int
    warm_start: str = "none"

    def save(self, folder: Path) -> None:
        """Write `model.safetensors`, `recommender.json` and `training_log.json` into a folder."""
        self.model.save_weights(folder / "model.safetensors")
        description = {
            "config": dict(vars(self.model.config)),
            "vocabulary": asdict(self.model.vocabulary),
            "best_epoch": self.best_epoch,
        }
        (folder / "recommender.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
        (folder / "training_log.json").write_text(json.dumps(self.log, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, *, device: torch.device, warm_start: str = "none") -> FittedRecommender:
        """Read what `save` wrote, which does not hold `warm_start`. Raises `StorageError` that names the folder."""
        try:
            description = json.loads((folder / "recommender.json").read_text())
            config = cast("RecommenderConfig", SimpleNamespace(**description["config"]))
            model = GenerativeRecommender(Vocabulary(**description["vocabulary"]), config)
            model.load_weights(folder / "model.safetensors")
            log = json.loads((folder / "training_log.json").read_text())
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise StorageError(f"{folder} is no usable recommender: {error}. Materialize it again.") from error
        return cls(model.to(device).eval(), log, description["best_epoch"], warm_start)
