"""What a training run needs to go on after it was cut off: one safetensors file, replaced as a whole.

A checkpoint belongs to one training: its identity is a digest of the settings and the data. Another training's file
counts as none; so does one that is damaged, which is set aside. A disk that refuses costs the checkpoint alone. Of
several ranks the first one alone reads and writes, and sends what it has read to the others.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import nn

from macrec_pipeline.runtime import distributed

_log = logging.getLogger(__name__)


def training_identity(settings: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> str:
    """SHA-256, in hexadecimal, of plain JSON settings and of the data that is trained on."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def save_checkpoint(path: Path, *, identity: str, tensors: Mapping[str, torch.Tensor], values: Any) -> None:
    """Replace the checkpoint; `values` is plain JSON.

    A process killed meanwhile leaves the one before; so does a full disk, with a warning: the work itself goes on.
    """
    if distributed.rank():
        return
    partial = path.with_suffix(".partial")
    # a clone each: safetensors refuses tensors that share memory, as tied weights do
    cloned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"identity": identity, "values": json.dumps(values), "digest": _digest(cloned)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(cloned, partial, metadata=metadata)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    except (SafetensorError, OSError) as error:
        _log.warning("%s cannot be written (%s). The work goes on, but a kill would now cost more of it.", path, error)
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def load_checkpoint(path: Path, *, identity: str) -> tuple[dict[str, torch.Tensor], Any] | None:
    """What `save_checkpoint` wrote for this training, on the CPU; None if there is nothing to go on from."""
    found = _read(path, identity) if distributed.rank() == 0 else None
    if distributed.count() == 1:
        return found
    values = json.loads(distributed.bytes_of_first(json.dumps(found and {"values": found[1]}).encode()))
    if values is None:
        return None
    return load(distributed.bytes_of_first(save(found[0]) if found else b"")), values["values"]


def _read(path: Path, identity: str) -> tuple[dict[str, torch.Tensor], Any] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("identity") != identity:
                _log.warning("%s is of another training, so this one starts at the beginning.", path)
                return None
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        if metadata["digest"] != _digest(tensors):
            raise ValueError("its numbers are not those that were written")
        return tensors, json.loads(metadata["values"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        aside = path.with_suffix(".damaged")
        _log.warning(
            "%s cannot be read (%s), so training starts at the beginning. It is kept as %s.", path, error, aside
        )
        path.replace(aside)
        return None


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 in hexadecimal of all bytes: safetensors itself does not notice a flipped one."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def training_tensors(
    model: nn.Module, best_state: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """The weights, the best ones so far and the optimizer's memory, as `model/..`, `best/..` and `optimizer/..`."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in best_state.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
    return tensors


def restore_training(
    tensors: Mapping[str, torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, torch.Tensor]]:
    """Put back the weights and the optimizer's memory of `training_tensors`.

    Returns:
        All tensors by what stands before the first slash of their names, "best" among them.
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
