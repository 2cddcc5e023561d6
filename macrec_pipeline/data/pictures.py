"""Item ids -> the paths of the pictures that are there, never outside the folder the pictures belong in.

An item id comes from the shop's data and is not trusted: `../../x` must not reach another file.
"""

import os
from pathlib import Path, PurePosixPath

import polars as pl

PLACEHOLDER = "{item_id}"


def pictures_folder(template: str) -> str:
    """The part of the template above what depends on the item: `posters` of `posters/{item_id}.jpg`."""
    fixed: list[str] = []
    for part in PurePosixPath(template).parts:
        if PLACEHOLDER in part:
            break
        fixed.append(part)
    return "/".join(fixed) or "."


def existing_pictures(item_ids: pl.Series, template: str, data_dir: Path) -> pl.Series:
    """The picture of each item, as a path relative to the data folder; null where there is none.

    The folder itself may be a link (data folders often are), but what it holds may not lead out of it.

    Args:
        item_ids: strings, null where the id is missing.
        template: relative path with `{item_id}` in it.
        data_dir: the data folder.
    """
    folder = os.path.realpath(data_dir / pictures_folder(template))
    paths = [_picture(item_id, template, data_dir, folder) for item_id in item_ids.to_list()]
    return pl.Series("image_path", paths, dtype=pl.String)


def _picture(item_id: str | None, template: str, data_dir: Path, folder: str) -> str | None:
    if item_id is None:
        return None
    relative = template.replace(PLACEHOLDER, item_id)
    try:
        real = os.path.realpath(data_dir / relative)
        inside = real.startswith(folder + os.sep) and ".." not in PurePosixPath(relative).parts
        return relative if inside and os.path.isfile(real) else None  # noqa: PTH113 (the path is a string here)
    except (OSError, ValueError):  # a name too long for the file system, or with a null byte
        return None
