"""Reader `demo`: a generated shop as real files in the data folder, which are then read like anybody's tables.

The folder is made beside its place and renamed into it under a lock, so that two processes at once, or one that is
killed, leave either a whole shop or none. It is made again when its parameters differ.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from macrec_pipeline.data.demo.files import write_shop
from macrec_pipeline.datasets import DemoSource, InteractionsTable, ItemsTable, TablesSource
from macrec_pipeline.errors import DataError

_PARAMETERS = "shop.json"
# Raise it whenever the generator writes other files for the same parameters.
_GENERATOR_VERSION = 2


def demo_tables(source: DemoSource) -> TablesSource:
    """The shop's files as a source of the reader `tables`."""
    return TablesSource(
        reader="tables",
        interactions=InteractionsTable(
            file=f"{source.folder}/interactions.csv",
            user_id="user_id",
            item_id="item_id",
            timestamp="event_time",
            timestamp_unit="iso",
        ),
        items=ItemsTable(
            file=f"{source.folder}/items.csv",
            item_id="item_id",
            title="title",
            texts=("description",),
            image=f"{source.folder}/pictures/{{item_id}}.jpg",
            categories="categories",
        ),
    )


def ensure_demo(source: DemoSource, data_dir: Path) -> Path:
    """Write the shop into the data folder, unless it is there with these parameters.

    Returns:
        The shop's folder.

    Raises:
        DataError: the folder is there but is no generated shop, or the data folder cannot be written.
    """
    folder = data_dir / source.folder
    if _is_current(folder, source):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock")):
            if not _is_current(folder, source):  # another process may have written it while this one waited
                _replace(folder, source)
    except OSError as error:
        raise DataError(
            f"The demo shop cannot be written to {folder}: {error}. Set MACREC_DATA to a folder that can be written."
        ) from None
    return folder


def _parameters(source: DemoSource) -> dict[str, Any]:
    return {
        "generator": _GENERATOR_VERSION,
        "num_items": source.num_items,
        "num_users": source.num_users,
        "seed": source.seed,
    }


def _is_current(folder: Path, source: DemoSource) -> bool:
    try:
        return bool(json.loads((folder / _PARAMETERS).read_text(encoding="utf-8")) == _parameters(source))
    except (OSError, ValueError):
        return False


def _replace(folder: Path, source: DemoSource) -> None:
    """Make the shop beside its place, then swap; only called under the lock."""
    if folder.exists() and not (folder / _PARAMETERS).is_file():
        raise DataError(
            f"{folder} is there but is no generated demo shop (it has no {_PARAMETERS}), so it is left alone. Move it, "
            "or set source.folder in the data set's file to another name."
        )
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (fresh, old):  # of a process that was killed
        if leftover.exists():
            shutil.rmtree(leftover)
    fresh.mkdir()
    write_shop(source, fresh)
    (fresh / _PARAMETERS).write_text(json.dumps(_parameters(source), indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    if old.exists():
        shutil.rmtree(old)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file alone; the system frees it when the process ends, however it ends."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
