"""A trained SASRec as a folder: weights, settings and log; and what others read out of that folder.

    model.safetensors    the weights; `items.weight` is what was learned of each item
    sasrec.json          the settings, the size of the catalogue, the epoch of the weights
    training_log.json    one row an epoch
    skipped.json         instead of all that, where SASRec was left out

N items, D `d_model`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.sasrec.model import Sasrec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from macrec_pipeline.config import SasrecConfig

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
    """A trained SASRec and how it came about.

    Attributes:
        model: on the training device, in evaluation mode.
        log: one mapping an epoch: epoch, train_loss (nats a target) and validation_ndcg (seen items allowed).
        best_epoch: the epoch whose weights the model has, from 1; 0 if there was nothing to train on.
    """

    model: Sasrec
    log: list[dict[str, float]] = field(repr=False)
    best_epoch: int

    @property
    def item_embeddings(self) -> np.ndarray:
        """What was learned of each item from who took it when: float32 [N, D]."""
        return self.model.item_embeddings()

    @property
    def validation_ndcg(self) -> float:
        """NDCG@10 of the epoch that was kept, on the validation targets; 0 if there was nothing to train on."""
        return self.log[self.best_epoch - 1]["validation_ndcg"] if self.log else 0.0

    def settings(self) -> dict[str, Any]:
        """What it was set to and which epoch was used, as plain values for a report."""
        return _plain(self.model.config) | {
            "num_epochs": len(self.log),
            "best_epoch": self.best_epoch,
            "validation_ndcg_10": self.validation_ndcg,
        }

    def save(self, folder: Path) -> None:
        """Write the weights, `sasrec.json` and `training_log.json` into a folder."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        save_file(tensors, folder / WEIGHTS_FILE)
        description = {
            "config": _plain(self.model.config),
            "num_items": self.model.num_items,
            "best_epoch": self.best_epoch,
        }
        (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
        (folder / LOG_FILE).write_text(json.dumps(self.log, indent=1) + "\n")

    @staticmethod
    def load(folder: Path, *, device: torch.device = _CPU) -> FittedSasrec:
        """Read what `save` wrote.

        Raises:
            StorageError: the folder says that SASRec was left out, or a file is missing or damaged.
        """
        if is_skipped(folder):
            raise StorageError(
                f"{folder} holds no model, since SASRec was left out when it was made, and here it is needed. "
                "Materialize `sasrec` again with sasrec.enabled=true."
            )
        description, log = (_read_json(folder / name) for name in (DESCRIPTION_FILE, LOG_FILE))
        model = load_sasrec(folder / WEIGHTS_FILE, description)
        return FittedSasrec(model.to(device), log, int(description["best_epoch"]))


def load_sasrec(weights: Path, description: Mapping[str, Any]) -> Sasrec:
    """A model in evaluation mode from its weights and what `sasrec.json` says.

    Raises:
        StorageError: the weights are missing, damaged or of another size than the description says.
    """
    try:
        config = cast("SasrecConfig", SimpleNamespace(**description["config"]))
        model = Sasrec(int(description["num_items"]), config)
        model.load_state_dict(load_file(weights))
    except (SafetensorError, OSError, RuntimeError, AttributeError, KeyError, TypeError) as error:
        raise StorageError(f"{weights} is not the SASRec that is described beside it: {error}. {_REMEDY}") from error
    return model.eval()


def load_item_embeddings(folder: Path) -> np.ndarray | None:
    """What SASRec learned of each item, float32 [N, D] in the order of the item index; None if it was left out.

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


def write_skipped(folder: Path, *, reason: str) -> None:
    """Say in a folder why there is no SASRec in it."""
    (folder / SKIPPED_FILE).write_text(json.dumps({"skipped": reason}) + "\n", encoding="utf-8")


def is_skipped(folder: Path) -> bool:
    """Whether a folder says that SASRec was left out."""
    return (folder / SKIPPED_FILE).is_file()


def _plain(config: SasrecConfig) -> dict[str, Any]:
    """The settings that make the model what it is."""
    return {name: value for name, value in vars(config).items() if name != "enabled"}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} is missing or damaged: {error}. {_REMEDY}") from error
