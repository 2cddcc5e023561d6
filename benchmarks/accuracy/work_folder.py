"""A cache of finished results, so that a long command can be interrupted and repeated.

A result consists of arrays and plain JSON facts. It is stored in one file, whose name contains a digest of everything
that the result depends on. Files are written atomically: a killed command leaves every finished result, and no partial
one.
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
    """Arrays by name, plain JSON facts, and the digest of everything they depend on."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    digest: str


def cached_result(
    folder: Path,
    name: str,
    identity: Mapping[str, Any],
    compute: Callable[[], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]],
) -> Result:
    """Return the result of `compute`, from the folder if it was computed before with the same identity.

    Args:
        folder: contains the files; created if it does not exist.
        name: start of the file's name, for people who look into the folder.
        identity: everything that the result depends on, as plain JSON.
        compute: returns arrays and plain JSON facts.
    """
    digest = digest_of(identity)
    path = folder / f"{name}-{digest[:16]}.npz"
    stored = _read(path, digest)
    if stored is not None:
        return stored
    arrays, facts = compute()
    result = Result(dict(arrays), dict(facts), digest)
    _write(path, result)
    return result


def digest_of(value: Any) -> str:
    """Return the hexadecimal SHA-256 digest of plain JSON; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_arrays(arrays: Sequence[np.ndarray]) -> str:
    """Return the hexadecimal SHA-256 digest of the dtypes, shapes and bytes of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@cache
def code_digest(*parts: str) -> str:
    """Return the hexadecimal SHA-256 digest of code; docstrings, comments and formatting do not matter.

    Args:
        parts: folders or files below `macrec_pipeline`; each must exist.
    """
    digest = hashlib.sha256()
    for part in parts:
        path = _PACKAGE / part
        assert path.exists(), f"{path} does not exist in the package"
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
        _log.warning("Cannot read %s (%s). Computing its result again.", path, error)
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
