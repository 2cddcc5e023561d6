"""Training that starts from the weights of the recommender before, instead of random ones.

In: a fresh model, and the folder that `FittedRecommender.save` wrote. Out: the model with those weights, or why they do
not fit. Whether a code still means what it meant is for the caller to know: the shapes are the same after the semantic
IDs were made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from macrec_pipeline.errors import StorageError

if TYPE_CHECKING:
    from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender

_log = logging.getLogger(__name__)

_WEIGHTS = "model.safetensors"
_TIED = ("embed_tokens.weight", "lm_head.weight")  # written once, as `shared`


def start_from(model: GenerativeRecommender, folder: Path | None) -> tuple[dict[str, str], str]:
    """Put the weights of a folder into a model, or warn that they do not fit and leave it as it is.

    Returns:
        What the identity of the training has to hold of it: {"start": SHA-256 of the weights}, or {}; and what became
        of it in words: "none" (no folder), "taken over", or what does not fit.

    Raises:
        StorageError: a file is missing or damaged.
    """
    if folder is None:
        return {}, "none"
    problem = _load(model, folder)
    if problem is not None:
        _log.warning("Training starts from random weights, since those of %s do not fit: %s.", folder, problem)
        return {}, problem
    return {"start": hashlib.sha256((folder / _WEIGHTS).read_bytes()).hexdigest()}, "taken over"


def _load(model: GenerativeRecommender, folder: Path) -> str | None:
    """None if vocabulary and shapes are the same and the model has the weights; else what differs, in words."""
    path = folder / _WEIGHTS
    try:
        description = json.loads((folder / "recommender.json").read_text(encoding="utf-8"))
        with safe_open(path, framework="pt") as stored:
            found = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise StorageError(
            f"{folder} holds no recommender to start from: {error}. Train without recommender.warm_start."
        ) from error
    known, wanted = description.get("vocabulary"), asdict(model.vocabulary)
    if known != wanted:
        return f"its vocabulary is {known}, and now it is {wanted}"
    own = {name: tuple(value.shape) for name, value in model.state_dict().items() if not name.endswith(_TIED)}
    other = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
    if other:
        return f"{other[0]} is {found.get(other[0])}, and now {own.get(other[0])}; {len(other)} tensors differ in shape"
    model.load_weights(path)
    return None
