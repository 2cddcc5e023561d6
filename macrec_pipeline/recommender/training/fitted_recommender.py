"""A trained recommender, its folder on disk, and training that starts from the weights in such a folder.

model.safetensors    the weights
recommender.json     the settings, the vocabulary and the epoch of the weights
training_log.json    one row per epoch
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender, ModelSpec
from macrec_pipeline.recommender.model.history_encoding import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(__name__)

_WEIGHTS_FILE, _DESCRIPTION_FILE, _LOG_FILE = "model.safetensors", "recommender.json", "training_log.json"
_TIED_WEIGHTS = ("embed_tokens.weight", "lm_head.weight")  # stored once, as `shared`


@dataclass(frozen=True)
class FittedRecommender:
    """A trained model and how it was trained.

    Attributes:
        model: on the training device, in evaluation mode.
        settings: the section `recommender` that it was trained with, as plain values.
        log: one row per epoch: epoch, train_loss and implicit_loss (means over the steps), validation_loss_text,
            validation_loss_image and their mean validation_loss (nats per code, except for the implicit loss), and
            validation_ndcg if it decides early stopping. A refit has no validation figures.
        best_epoch: the epoch of the model's weights, counted from 1.
        warm_start: "none", "taken over", or why the earlier weights could not be used.
    """

    model: GenerativeRecommender
    settings: Mapping[str, Any]
    log: list[dict[str, float]] = field(repr=False)
    best_epoch: int
    warm_start: str = "none"

    def save(self, folder: Path) -> None:
        """Write the files of a recommender into a folder."""
        self.model.save_weights(folder / _WEIGHTS_FILE)
        description = {
            "config": dict(self.settings),
            "vocabulary": asdict(self.model.vocabulary),
            "best_epoch": self.best_epoch,
        }
        (folder / _DESCRIPTION_FILE).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
        (folder / _LOG_FILE).write_text(json.dumps(self.log, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, *, device: torch.device, warm_start: str = "none") -> FittedRecommender:
        """Read what `save` wrote.

        Args:
            folder: of the recommender.
            device: of the model.
            warm_start: the attribute of this name, which is not stored.

        Raises:
            StorageError: A file is missing or damaged.
        """
        try:
            description = json.loads((folder / _DESCRIPTION_FILE).read_text())
            settings = description["config"]
            model = GenerativeRecommender(Vocabulary(**description["vocabulary"]), ModelSpec.from_settings(settings))
            model.load_weights(folder / _WEIGHTS_FILE)
            log = json.loads((folder / _LOG_FILE).read_text())
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise StorageError(
                f"The recommender in {folder} cannot be read: {error}. Materialize `recommender` again."
            ) from error
        return cls(model.to(device).eval(), settings, log, description["best_epoch"], warm_start)


def load_starting_weights(model: GenerativeRecommender, folder: Path) -> tuple[str | None, str]:
    """Load the weights of an earlier recommender into a new model if they fit; otherwise leave it and log a warning.

    Whether a code still means what it meant then is for the caller to know: after the semantic IDs were recomputed, the
    shapes are the same.

    Args:
        model: freshly initialized.
        folder: written by `FittedRecommender.save`.

    Returns:
        The SHA-256 of the weights, or None if they do not fit; and `FittedRecommender.warm_start`.

    Raises:
        StorageError: A file is missing or damaged.
    """
    mismatch = _load_if_same_shape(model, folder)
    if mismatch is not None:
        _log.warning("Training starts from random weights, because those in %s do not fit: %s.", folder, mismatch)
        return None, mismatch
    return hashlib.sha256((folder / _WEIGHTS_FILE).read_bytes()).hexdigest(), "taken over"


def _load_if_same_shape(model: GenerativeRecommender, folder: Path) -> str | None:
    """Load the weights if vocabulary and shapes are the same and return None; otherwise return what differs."""
    path = folder / _WEIGHTS_FILE
    try:
        description = json.loads((folder / _DESCRIPTION_FILE).read_text(encoding="utf-8"))
        with safe_open(path, framework="pt") as stored:
            stored_shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise StorageError(
            f"The recommender in {folder}, which training should start from, cannot be read: {error}. Restore the "
            "folder, or train without it by setting `recommender.warm_start` to false."
        ) from error
    stored_vocabulary, vocabulary = description.get("vocabulary"), asdict(model.vocabulary)
    if stored_vocabulary != vocabulary:
        return f"their vocabulary is {stored_vocabulary}, but the new model's is {vocabulary}"
    shapes = {
        name: tuple(value.shape) for name, value in model.state_dict().items() if not name.endswith(_TIED_WEIGHTS)
    }
    different = sorted(
        name for name in shapes.keys() | stored_shapes.keys() if shapes.get(name) != stored_shapes.get(name)
    )
    if different:
        name = different[0]
        return (
            f"the shape of {name} is {stored_shapes.get(name)}, but in the new model it is {shapes.get(name)} "
            f"({len(different)} tensors differ)"
        )
    model.load_weights(path)
    return None
