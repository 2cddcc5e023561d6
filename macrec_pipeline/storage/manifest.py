"""What a version of an asset holds: the hash of each file, and one digest of them all.

In: a folder that has just been written, or one that is about to be read. Out: a `Manifest`, or a `StorageError` that
says which file is not what was written. The digest depends on the files' names and bytes alone, so the same content
has the same digest on every machine and at every time.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macrec_pipeline.errors import StorageError

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a version of an asset holds.

    Attributes:
        asset: the asset's name.
        digest: SHA-256 in hexadecimal over the sorted (file name, file's SHA-256); the asset's data version.
        files: file name relative to the folder, with '/' -> SHA-256 in hexadecimal; the manifest itself is not in it.
        details: whatever the writer wants to keep beside the files; no part of the digest.
    """

    asset: str
    digest: str
    files: dict[str, str]
    details: dict[str, Any]


def content_digest(files: Mapping[str, str]) -> str:
    """SHA-256 in hexadecimal over the sorted (name, SHA-256) pairs."""
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def seal(folder: Path, asset: str, details: Mapping[str, Any]) -> Manifest:
    """Hash every file of a folder, write the manifest last, and flush all of it to the disk.

    Raises:
        StorageError: there is no file, one is a link or takes the manifest's name, or the details are not JSON.
    """
    if (folder / MANIFEST_FILE).exists():
        raise StorageError(f"{asset}: {MANIFEST_FILE} is the store's own file. Give the asset's file another name.")
    with ThreadPoolExecutor(max_workers=1) as pool:  # the disk writes while the processor hashes
        flushing = [pool.submit(flush, path) for path in folder.rglob("*") if path.is_file()]
        files = _hash_files(folder, asset)
        for flushed in flushing:
            flushed.result()
    if not files:
        raise StorageError(f"{asset}: the folder to store holds no file. Write its files before the block ends.")
    manifest = Manifest(asset, content_digest(files), files, dict(details))
    document = {"asset": asset, "digest": manifest.digest, "files": files, "details": manifest.details}
    try:
        text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StorageError(f"{asset}: the details must be plain, finite JSON: {error}.") from None
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
    flush(folder / MANIFEST_FILE)
    for directory, _, _ in os.walk(folder):
        flush(Path(directory))
    return manifest


def read_manifest(folder: Path, asset: str, *, remedy: str) -> Manifest:
    """Read the manifest of a version.

    Raises:
        StorageError: it is missing, unreadable, or of another asset; ends in `remedy`.
    """
    path = folder / MANIFEST_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise StorageError(f"{path} is missing. {remedy}") from None
    except OSError as error:
        raise StorageError(f"{path} is not a readable manifest ({type(error).__name__}: {error}). {remedy}") from None
    return parsed_manifest(content, asset, place=path, remedy=remedy)


def parsed_manifest(content: bytes, asset: str, *, place: object, remedy: str) -> Manifest:
    """The manifest that a file holds which was read from `place`. Raises `StorageError` as `read_manifest`."""
    try:
        document = json.loads(content.decode("utf-8"))
        manifest = Manifest(document["asset"], document["digest"], dict(document["files"]), dict(document["details"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{place} is not a readable manifest ({type(error).__name__}: {error}). {remedy}") from None
    if manifest.asset != asset or manifest.digest != content_digest(manifest.files):
        raise StorageError(f"{place} does not describe {asset}: it was changed after it was written. {remedy}")
    return manifest


def verify(folder: Path, manifest: Manifest, *, remedy: str) -> None:
    """Compare every file of a version with its manifest.

    Raises:
        StorageError: a file is missing, changed or was not there when the version was written; ends in `remedy`.
    """
    found = _hash_files(folder, manifest.asset)
    for name in sorted(manifest.files.keys() | found.keys()):
        expected, got = manifest.files.get(name), found.get(name)
        if got == expected:
            continue
        if got is None:
            problem = "is missing"
        elif expected is None:
            problem = "is no part of what was written"
        else:
            problem = f"was changed after it was written: its SHA-256 is {got[:16]}..., not {expected[:16]}..."
        raise StorageError(f"{folder / name} {problem}. {remedy}")


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash_files(folder: Path, asset: str) -> dict[str, str]:
    hashes: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise StorageError(f"{path} is a link, but {asset} must hold plain files only. Copy the file instead.")
        if path.is_file() and name != MANIFEST_FILE:
            with path.open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
