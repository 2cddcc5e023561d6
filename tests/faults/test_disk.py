"""A full disk, and files that are damaged on disk, for every kind of asset."""

import errno
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from macrec_pipeline.errors import StorageError
from macrec_pipeline.schemas import EARLIEST_MS, TABLES
from macrec_pipeline.storage import FOLDER_ASSETS, AssetStore, manifest

ASSETS = (*TABLES, *FOLDER_ASSETS)
# A value for a column, by the beginning of the name of its dtype.
VALUES: dict[str, Any] = {
    "String": "a",
    "Int": 1,
    "Float": 0.5,
    "Boolean": False,
    "List(Int": [1],
    "List(Float": [0.5],
    "List(String": ["a"],
}


@pytest.fixture
def store(tmp_path: Path) -> AssetStore:
    return AssetStore(tmp_path, "demo")


def _write(store: AssetStore, asset: str, *, second: bool = False) -> None:
    """Write the first version of an asset, or a second version with other content."""
    if asset in TABLES:
        store.write_table(asset, _one_row(asset) if second else TABLES[asset].empty())
        return
    with store.new_folder(asset) as folder:
        (folder / "weights").mkdir()
        (folder / "weights" / "model.safetensors").write_bytes(bytes(4000) + bytes([second]))


def _one_row(asset: str) -> pl.DataFrame:
    def column(dtype: Any) -> pl.Series:
        if str(dtype).startswith("list[float32]"):  # vectors may have any width
            return pl.Series([[0.5, 1.5]], dtype=pl.Array(pl.Float32, 2))
        return pl.Series([next(value for name, value in VALUES.items() if str(dtype).startswith(name))], dtype=dtype)

    row = pl.DataFrame({name: column(dtype) for name, dtype in TABLES[asset].columns.items()})
    if asset == "histories":  # its only user is not tested, so there is no target
        return row.with_columns(num_at_target_time=pl.lit(None, dtype=pl.Int64))
    return row.with_columns(pl.lit(EARLIEST_MS).alias("timestamp")) if asset == "interactions" else row


@contextmanager
def _file_size_limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond 100 bytes. Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _failing_at(target: Any, name: str) -> Callable[[pytest.MonkeyPatch], Any]:
    @contextmanager
    def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(target, name, refuse)
            yield

    return failing


MOMENTS: dict[str, Callable[[pytest.MonkeyPatch], Any]] = {
    "in the file": _file_size_limited,
    "when it is flushed": _failing_at(manifest, "flush"),
    "when the version is put in place": _failing_at(Path, "rename"),
    "when the link is made": _failing_at(Path, "symlink_to"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("asset", ASSETS)
def test_a_full_disk(asset: str, moment: str, store: AssetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says where and what to run; no partial version is visible; the previous version stays in place."""
    _write(store, asset)
    before, home = store.manifest(asset), store.location(asset).parent
    message = rf"^{asset} cannot be stored: {re.escape(str(home))}\S*: .*(No space left|File too large).*"
    with MOMENTS[moment](monkeypatch), pytest.raises(StorageError, match=message + r"`macrec run demo --resume`\.$"):
        _write(store, asset, second=True)
    assert store.manifest(asset) == before
    store.folder(asset)
    assert not list((home / ".versions" / asset).glob("writing-*"))
    _write(store, asset, second=True)
    assert store.manifest(asset).digest != before.digest


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flipped": _flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("asset", ASSETS)
def test_damaged_files(asset: str, damage: str, store: AssetStore) -> None:
    """For each file, the manifest too, the error names it and the command that repairs it, which then does."""
    _write(store, asset)
    _write(store, asset, second=True)
    folder = store.folder(asset)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        DAMAGES[damage](file)
        read = store.read_table if asset in TABLES else store.folder
        with pytest.raises(StorageError, match=rf"{re.escape(str(file))} .*run `macrec run demo`\.$"):
            read(asset)
        _write(store, asset, second=True)
        assert store.folder(asset) == folder
