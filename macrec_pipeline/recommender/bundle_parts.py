"""Which files make a bundle, and whether they belong together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from macrec_pipeline.errors import StorageError

FORMAT_VERSION = 1
PARTS = ("model.safetensors", "semantic_ids.safetensors", "catalogue.json")


def verified_description(folder: Path) -> dict[str, Any]:
    """Read a bundle's `bundle.json`, having compared the digests that it gives with the parts beside it.

    Raises:
        StorageError: a part is missing, damaged or from another bundle, or the format is another's; names the file.
    """
    path = folder / "bundle.json"
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, parts = description["format_version"], description["parts"]
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"{path} is missing or not a bundle's description: {error}") from error
    if version != FORMAT_VERSION:
        raise StorageError(f"{path} has format {version}; this package reads format {FORMAT_VERSION}.")
    for part in PARTS:
        if not (folder / part).is_file():
            raise StorageError(f"{folder / part} is missing. Materialize `recommender` again, or load another version.")
        if digest_of(folder / part) != parts.get(part):
            raise StorageError(
                f"{folder / part} does not belong to this bundle: its SHA-256 is not the one in bundle.json. "
                "Materialize `recommender` again, or load another version."
            )
    return description


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
