"""A trained SASRec, and its folder on disk.

    model.safetensors    the weights; `items.weight` holds the item embeddings
    sasrec.json          the settings, the size of the catalogue and the epoch of the weights
    training_log.json    one row per epoch
    skipped.json         instead of all of these, if SASRec was not trained

Shapes (docs/notation.md): D hidden width (`d_model`), N items.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.sasrec.model import Sasrec, SasrecSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

WEIGHTS_FILE, DESCRIPTION_FILE, LOG_FILE, SKIPPED_FILE = (
    "model.safetensors",
    "sasrec.json",
    "training_log.json",
    "skipped.json",
)
_REMEDY = "Materialize `sasrec` again."
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class FittedSasrec:
    """A trained SASRec and how it was trained.

    Attributes:
        model: on the training device, in evaluation mode.
        config: the section `sasrec` that it was trained with, without `enabled`, as plain values.
        log: one row per epoch: epoch, train_loss (nats per target) and validation_ndcg (seen items allowed; not in a
            refit).
        best_epoch: the epoch of the model's weights, counted from 1; 0 if there was nothing to train on.
    """

    model: Sasrec
    config: Mapping[str, Any]
    log: list[dict[str, float]] = field(repr=False)
    best_epoch: int

    @property
    def item_embeddings(self) -> np.ndarray:
        """A collaborative vector per item, learned from the histories: float32 [N, D]."""
        return self.model.item_embeddings()

    @property
    def validation_ndcg(self) -> float:
        """NDCG@10 of the best epoch on the validation targets; 0 if there was nothing to train on, or after a refit."""
        return self.log[self.best_epoch - 1].get("validation_ndcg", 0.0) if self.log else 0.0

    def settings(self) -> dict[str, Any]:
        """Return the settings, the best epoch and its validation figure, as plain values for a report."""
        return dict(self.config) | {
            "num_epochs": len(self.log),
            "best_epoch": self.best_epoch,
            "validation_ndcg_10": self.validation_ndcg,
        }

    def save(self, folder: Path) -> None:
        """Write the weights, `sasrec.json` and `training_log.json` into a folder."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        save_file(tensors, folder / WEIGHTS_FILE)
        description = {
            "config": dict(self.config),
            "num_items": self.model.num_items,
            "best_epoch": self.best_epoch,
        }
        (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
        (folder / LOG_FILE).write_text(json.dumps(self.log, indent=1) + "\n")

    @staticmethod
    def load(folder: Path, *, device: torch.device = _CPU) -> FittedSasrec:
        """Read what `save` wrote.

        Raises:
            StorageError: SASRec was not trained, or a file is missing or damaged.
        """
        if is_skipped(folder):
            raise StorageError(
                f"{folder} holds no SASRec model: `sasrec` was materialized with `sasrec.enabled` set to false, but "
                "this step needs the model. Materialize `sasrec` again with sasrec.enabled=true."
            )
        description, log = (_read_json(folder / name) for name in (DESCRIPTION_FILE, LOG_FILE))
        model = load_sasrec(folder / WEIGHTS_FILE, description)
        return FittedSasrec(model.to(device), description["config"], log, int(description["best_epoch"]))


def load_sasrec(weights: Path, description: Mapping[str, Any]) -> Sasrec:
    """Return a model in evaluation mode from its weights and the contents of `sasrec.json`.

    Raises:
        StorageError: the weights are missing or damaged, or their sizes differ from the description.
    """
    try:
        model = Sasrec(int(description["num_items"]), SasrecSpec.from_settings(description["config"]))
        model.load_state_dict(load_file(weights))
    except (SafetensorError, OSError, RuntimeError, AttributeError, KeyError, TypeError) as error:
        raise StorageError(
            f"{weights} does not hold the SASRec model that its description gives: {error}. {_REMEDY}"
        ) from error
    return model.eval()


def load_item_embeddings(folder: Path) -> np.ndarray | None:
    """Return the item embeddings, float32 [N, D] by item index; None if SASRec was not trained.

    Raises:
        StorageError: the weights are missing or damaged.
    """
    if is_skipped(folder):
        return None
    path = folder / WEIGHTS_FILE
    try:
        with safe_open(path, framework="np") as stored:
            embeddings: np.ndarray = stored.get_tensor("items.weight")
            return embeddings
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path} is missing or damaged: {error}. {_REMEDY}") from error


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of the weights in a folder that `FittedSasrec.save` wrote, in hexadecimal.

    Raises:
        StorageError: the weights are missing.
    """
    try:
        return hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    except OSError as error:
        raise StorageError(f"{folder / WEIGHTS_FILE} is missing or damaged: {error}. {_REMEDY}") from error


def write_skipped(folder: Path, *, reason: str) -> None:
    """Record in a folder why SASRec was not trained."""
    (folder / SKIPPED_FILE).write_text(json.dumps({"skipped": reason}) + "\n", encoding="utf-8")


def is_skipped(folder: Path) -> bool:
    """Return whether `write_skipped` has written to this folder."""
    return (folder / SKIPPED_FILE).is_file()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} is missing or damaged: {error}. {_REMEDY}") from error
