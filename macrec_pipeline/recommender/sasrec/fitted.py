"""A trained SASRec, and its folder on disk.

    model.safetensors    the weights; `items.weight` holds the item embeddings
    sasrec.json          the settings, the size of the catalogue and the epoch of the weights
    training_log.json    one row per epoch
    items.json           the item IDs in the order of the embeddings, from which a later training can continue
    skipped.json         instead of all of these, if SASRec was not trained

Shapes (docs/notation.md): D hidden width (`d_model`), N items.
"""

from __future__ import annotations

import hashlib
import json
import logging
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
    from collections.abc import Mapping, Sequence

WEIGHTS_FILE, DESCRIPTION_FILE, LOG_FILE, ITEMS_FILE, SKIPPED_FILE = (
    "model.safetensors",
    "sasrec.json",
    "training_log.json",
    "items.json",
    "skipped.json",
)
_log = logging.getLogger(__name__)
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
        warm_start: "none", "taken over", or why the earlier weights could not be used. It is not stored.
    """

    model: Sasrec
    config: Mapping[str, Any]
    log: list[dict[str, float]] = field(repr=False)
    best_epoch: int
    warm_start: str = "none"

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


def save_item_ids(item_ids: Sequence[str], folder: Path) -> None:
    """Write the item IDs, in the order of the embeddings, beside what `FittedSasrec.save` wrote."""
    text = json.dumps(list(item_ids), ensure_ascii=False, indent=0)
    (folder / ITEMS_FILE).write_text(text + "\n", encoding="utf-8")


def load_starting_weights(model: Sasrec, folder: Path, item_ids: Sequence[str]) -> tuple[str | None, str]:
    """Load the weights of an earlier SASRec into a new model if they fit; otherwise leave it and log a warning.

    Items are matched by ID. An item that the earlier model does not know gets the mean of all its embeddings beside the
    small random numbers that it has already: it then scores like an average item, and not higher than most.

    Args:
        model: freshly initialized.
        folder: of the earlier SASRec.
        item_ids: the IDs of the new model's items, in their order.

    Returns:
        The SHA-256 of the weights and the item IDs, or None if they do not fit; and `FittedSasrec.warm_start`.

    Raises:
        StorageError: a file is missing or damaged.
    """
    try:
        mismatch = _why_not_to_start_from(model, folder)
        if mismatch is not None:
            _log.warning("The training of SASRec starts from random weights: %s.", mismatch)
            return None, mismatch
        earlier_ids: list[str] = _read_json(folder / ITEMS_FILE)
        weights = load_sasrec(folder / WEIGHTS_FILE, _read_json(folder / DESCRIPTION_FILE)).state_dict()
    except StorageError as error:
        raise StorageError(
            f"The training of SASRec should start from the weights in {folder}, but they cannot be read: {error} "
            "Restore the folder, or train without it by setting `sasrec.warm_start` to false."
        ) from error
    embeddings = weights["items.weight"]
    row_of = {item_id: row for row, item_id in enumerate(earlier_ids)}
    rows = torch.tensor([row_of.get(item_id, -1) for item_id in item_ids])
    initial = model.items.weight.detach().cpu() + embeddings.mean(dim=0)
    weights["items.weight"] = torch.where((rows >= 0)[:, None], embeddings[rows.clamp(min=0)], initial)
    model.load_state_dict(weights)
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (WEIGHTS_FILE, ITEMS_FILE)]
    return " ".join(digests), "taken over"


def _why_not_to_start_from(model: Sasrec, folder: Path) -> str | None:
    """Return why a model cannot start from the weights in a folder; None if it can."""
    if is_skipped(folder):
        return "the previous run trained no SASRec"
    if not (folder / ITEMS_FILE).is_file():
        return "the previous SASRec was stored without its item IDs, by an earlier version of this program"
    earlier = SasrecSpec.from_settings(_read_json(folder / DESCRIPTION_FILE)["config"])
    for name, value in vars(earlier).items():
        if name != "dropout" and value != getattr(model.spec, name):
            return f"the previous SASRec has sasrec.{name} {value}, but the setting is now {getattr(model.spec, name)}"
    return None


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
