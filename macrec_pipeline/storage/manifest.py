"""Manifests: the SHA-256 of each file of an asset's version, and one digest of all of them.

`seal` takes a folder that has just been written and adds its manifest; `read_manifest` and `verify` take a folder that
is about to be read and raise a `StorageError` that names any file that differs from what was written. The digest
depends on the names and bytes of the files alone, so the same content has the same digest on every machine.
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
    """The content of a version of an asset.

    Attributes:
        asset: the asset's name.
        digest: SHA-256 in hexadecimal over the sorted (file name, file's SHA-256) pairs; the asset's data version.
        files: file name relative to the folder, with '/' -> SHA-256 in hexadecimal. The manifest itself is not listed.
        details: what the writer stored beside the files, as plain JSON. It is not part of the digest.
    """

    asset: str
    digest: str
    files: dict[str, str]
    details: dict[str, Any]


def content_digest(files: Mapping[str, str]) -> str:
    """Return the SHA-256 in hexadecimal over the sorted (file name, file's SHA-256) pairs."""
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def seal(folder: Path, asset: str, details: Mapping[str, Any]) -> Manifest:
    """Hash every file of a folder, write the manifest last, and flush everything to the disk.

    Args:
        folder: the folder to seal.
        asset: the asset's name.
        details: plain JSON to store in the manifest.

    Raises:
        StorageError: the folder has no file, a link, or a file with the manifest's name, or the details are not JSON.
    """
    if (folder / MANIFEST_FILE).exists():
        raise StorageError(
            f"{asset}: the name {MANIFEST_FILE} is reserved for the store's manifest. Give the asset's file another "
            "name."
        )
    with ThreadPoolExecutor(max_workers=1) as pool:  # so that the disk writes while the processor hashes
        flushes = [pool.submit(flush, path) for path in folder.rglob("*") if path.is_file()]
        files = _hash_files(folder, asset)
        for pending in flushes:
            pending.result()
    if not files:
        raise StorageError(f"{asset}: the folder holds no file. Write the asset's files before the block ends.")
    manifest = Manifest(asset, content_digest(files), files, dict(details))
    document = {"asset": asset, "digest": manifest.digest, "files": files, "details": manifest.details}
    try:
        text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StorageError(f"{asset}: the details must be plain JSON with finite numbers: {error}.") from None
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
    flush(folder / MANIFEST_FILE)
    for directory, _, _ in os.walk(folder):
        flush(Path(directory))
    return manifest


def read_manifest(folder: Path, asset: str, *, remedy: str) -> Manifest:
    """Read the manifest of a version.

    Args:
        folder: the version's folder.
        asset: the asset that the manifest must describe.
        remedy: what to do about an error, as the last sentence of its message.

    Raises:
        StorageError: the manifest is missing or unreadable, or describes another asset.
    """
    path = folder / MANIFEST_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise StorageError(f"{path} is missing. {remedy}") from None
    except OSError as error:
        raise StorageError(f"{path} is not a readable manifest ({type(error).__name__}: {error}). {remedy}") from None
    return parse_manifest(content, asset, location=path, remedy=remedy)


def parse_manifest(content: bytes, asset: str, *, location: object, remedy: str) -> Manifest:
    """Parse the content of a manifest file; `location` is where it was read from. For errors, see `read_manifest`."""
    try:
        document = json.loads(content.decode("utf-8"))
        manifest = Manifest(document["asset"], document["digest"], dict(document["files"]), dict(document["details"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{location} is not a readable manifest ({type(error).__name__}: {error}). {remedy}"
        ) from None
    if manifest.asset != asset or manifest.digest != content_digest(manifest.files):
        raise StorageError(f"{location} does not describe {asset}: it was changed after it was written. {remedy}")
    return manifest


def verify(folder: Path, manifest: Manifest, *, remedy: str) -> None:
    """Compare every file of a version with its manifest.

    Args:
        folder: the version's folder.
        manifest: its manifest.
        remedy: what to do about an error, as the last sentence of its message.

    Raises:
        StorageError: a file is missing, was changed, or was added after the version was written.
    """
    found = _hash_files(folder, manifest.asset)
    for name in sorted(manifest.files.keys() | found.keys()):
        expected_hash, found_hash = manifest.files.get(name), found.get(name)
        if found_hash == expected_hash:
            continue
        if found_hash is None:
            problem = "is missing"
        elif expected_hash is None:
            problem = "is not part of the version that was written"
        else:
            problem = (
                f"was changed after it was written: its SHA-256 is {found_hash[:16]}..., not {expected_hash[:16]}..."
            )
        raise StorageError(f"{folder / name} {problem}. {remedy}")


def flush(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash_files(folder: Path, asset: str) -> dict[str, str]:
    """Return file name -> SHA-256 for every file of a folder but the manifest."""
    hashes: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise StorageError(f"{path} is a link, but {asset} may only hold regular files. Copy the file instead.")
        if path.is_file() and name != MANIFEST_FILE:
            with path.open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
