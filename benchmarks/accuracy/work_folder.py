"""What a long command has finished already: one file a result, named by all that the result depends on.

A result is arrays and plain JSON facts. A file is replaced as a whole, so a command that is killed leaves every
finished result behind and no half of one.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import macrec_pipeline

_log = logging.getLogger(__name__)
_FACTS = "facts"
_PACKAGE = Path(macrec_pipeline.__file__).parent


@dataclass(frozen=True)
class Result:
    """Arrays by name, plain JSON facts, and the digest of what they depend on."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    digest: str


def remembered(
    folder: Path,
    name: str,
    identity: Mapping[str, Any],
    make: Callable[[], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]],
) -> Result:
    """The result of `make`, from the folder if it was made before of the same things.

    Args:
        folder: holds the files; made when it is not there.
        name: begins the file's name, for those who look into the folder.
        identity: plain JSON of everything that the result depends on.
        make: gives arrays and plain JSON facts.
    """
    digest = digest_of(identity)
    path = folder / f"{name}-{digest[:16]}.npz"
    stored = _read(path, digest)
    if stored is not None:
        return stored
    arrays, facts = make()
    result = Result(dict(arrays), dict(facts), digest)
    _write(path, result)
    return result


def digest_of(value: Any) -> str:
    """SHA-256, in hexadecimal, of plain JSON; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_arrays(arrays: Sequence[np.ndarray]) -> str:
    """SHA-256, in hexadecimal, of the dtypes, shapes and bytes of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@cache
def code_digest(*parts: str) -> str:
    """SHA-256, in hexadecimal, of what modules of the package do; docstrings, comments and layout do not count.

    Args:
        parts: folders or files below `macrec_pipeline`; one that is not there is an error.
    """
    digest = hashlib.sha256()
    for part in parts:
        path = _PACKAGE / part
        assert path.exists(), f"{path} is no part of the package"
        for module in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            tree = _without_docstrings(ast.parse(module.read_text(encoding="utf-8")))
            digest.update(f"{module.relative_to(_PACKAGE)}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return tree


def _read(path: Path, digest: str) -> Result | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(str(stored[_FACTS]))
            arrays = {name: stored[name] for name in stored.files if name != _FACTS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("%s cannot be read (%s), so it is made again.", path, error)
        return None
    return Result(arrays, facts, digest)


def _write(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    facts = np.array(json.dumps(result.facts, sort_keys=True))
    with partial.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **{_FACTS: facts}, **result.arrays)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
