"""Checkpoints from which interrupted work resumes: one safetensors file each, always replaced as a whole.

A checkpoint belongs to one piece of work, which its identity names: a digest of the settings and the data. A file with
another identity is ignored. So is a damaged one, which is renamed. If the disk refuses a write, only the checkpoint is
lost. In distributed training rank 0 alone reads and writes, and sends what it has read to the other ranks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import nn

from macrec_pipeline.runtime import distributed

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint file of one training.

    Attributes:
        path: the file, whether or not it exists yet.
        identity: from `training_identity`.
        min_seconds: minimum time from one write to the next.
    """

    path: Path
    identity: str
    min_seconds: float = 0.0

    def save(self, tensors: Mapping[str, torch.Tensor], values: Any) -> None:
        """See `save_checkpoint`."""
        save_checkpoint(self.path, identity=self.identity, tensors=tensors, values=values)

    def load(self) -> tuple[dict[str, torch.Tensor], Any] | None:
        """See `load_checkpoint`."""
        return load_checkpoint(self.path, identity=self.identity)


def training_identity(settings: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> str:
    """Return the SHA-256, in hexadecimal, of settings (plain JSON) and training data."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def save_checkpoint(path: Path, *, identity: str, tensors: Mapping[str, torch.Tensor], values: Any) -> None:
    """Replace a checkpoint, completely or not at all.

    If the process is killed meanwhile, the previous checkpoint stays. If the disk is full or broken, it stays as well,
    and this only logs a warning.

    Args:
        path: the file.
        identity: names the work that may resume from it.
        tensors: any tensors, by name.
        values: plain JSON.
    """
    if distributed.rank():
        return
    partial = path.with_suffix(".partial")
    # cloned one by one, because safetensors rejects tensors that share memory, as tied weights do
    cloned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"identity": identity, "values": json.dumps(values), "digest": _digest(cloned)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(cloned, partial, metadata=metadata)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    except (SafetensorError, OSError) as error:
        _log.warning(
            "The checkpoint %s cannot be written (%s). The work continues, but if it is interrupted, everything since "
            "the previous checkpoint has to be repeated.",
            path,
            error,
        )
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def load_checkpoint(path: Path, *, identity: str) -> tuple[dict[str, torch.Tensor], Any] | None:
    """Read what `save_checkpoint` wrote under the same identity.

    Returns:
        The tensors, on the CPU, and the values; None if there is nothing to resume from.
    """
    stored = _read(path, identity) if distributed.rank() == 0 else None
    if distributed.world_size() == 1:
        return stored
    values = json.loads(distributed.broadcast_bytes(json.dumps(stored and {"values": stored[1]}).encode()))
    if values is None:
        return None
    return load(distributed.broadcast_bytes(save(stored[0]) if stored else b"")), values["values"]


def _read(path: Path, identity: str) -> tuple[dict[str, torch.Tensor], Any] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("identity") != identity:
                _log.warning(
                    "The checkpoint %s belongs to work with other settings or data, so this work starts from the "
                    "beginning.",
                    path,
                )
                return None
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        if metadata["digest"] != _digest(tensors):
            raise ValueError("its contents do not match its digest")
        return tensors, json.loads(metadata["values"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        renamed = path.with_suffix(".damaged")
        _log.warning(
            "The checkpoint %s cannot be read (%s), so this work starts from the beginning. The file was renamed to "
            "%s.",
            path,
            error,
            renamed,
        )
        path.replace(renamed)
        return None


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256, in hexadecimal, of all bytes; safetensors itself does not detect a flipped bit."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def training_tensors(
    model: nn.Module, best_weights: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Return current weights, best weights and optimizer state as `model/..`, `best/..` and `optimizer/..`."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in best_weights.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
    return tensors


def restore_training(
    tensors: Mapping[str, torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, torch.Tensor]]:
    """Restore the weights and the optimizer state from `training_tensors`.

    Returns:
        All tensors, grouped by the part of their name before the first slash: {group: {rest of the name: tensor}}.
    """
    groups: dict[str, dict[str, torch.Tensor]] = {"optimizer": {}}
    for name, value in tensors.items():
        group, rest = name.split("/", 1)
        groups.setdefault(group, {})[rest] = value
    model.load_state_dict(groups["model"])
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in groups["optimizer"].items():
        index, _, moment = name.partition("/")
        moments.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return groups
