"""Makes sure that the files of the demo shop exist in the data folder and are up to date.

`ensure_demo` takes the parameters of the shop. It generates the files if they do not exist, and again if the parameters
have changed. The folder is written under a temporary name and then renamed, under a lock, so a process that is killed
or runs at the same time as another never leaves an incomplete shop. `demo_tables` describes the files to the reader
`tables`.
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

_PARAMETERS_FILE = "shop.json"
# Raise this whenever the generator writes different files for the same parameters.
_GENERATOR_VERSION = 2


def demo_tables(source: DemoSource) -> TablesSource:
    """Return the shop's files as a source for the reader `tables`."""
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
    """Write the shop into the data folder, unless a shop with these parameters is already there.

    Returns:
        The shop's folder.

    Raises:
        DataError: the folder exists but is not a generated shop, or the data folder is not writable.
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
            f"Cannot write the demo shop to {folder}: {error}. Set MACREC_DATA to a folder that is writable."
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
        return bool(json.loads((folder / _PARAMETERS_FILE).read_text(encoding="utf-8")) == _parameters(source))
    except (OSError, ValueError):
        return False


def _replace(folder: Path, source: DemoSource) -> None:
    """Write the shop to a temporary folder and swap it in; the caller holds the lock."""
    if folder.exists() and not (folder / _PARAMETERS_FILE).is_file():
        raise DataError(
            f"{folder} exists but is not a generated demo shop (it has no {_PARAMETERS_FILE}), so it was left alone. "
            "Move it away, or set source.folder in the data set's YAML file to another name."
        )
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (new, old):  # of a process that was killed
        if leftover.exists():
            shutil.rmtree(leftover)
    new.mkdir()
    write_shop(source, new)
    (new / _PARAMETERS_FILE).write_text(json.dumps(_parameters(source), indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    if old.exists():
        shutil.rmtree(old)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the operating system releases it when the process ends, however it ends."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
