"""Item ids -> the paths of the pictures that are there, never outside the folder the pictures belong in.

An item id comes from the shop's data and is not trusted: `../../x` must not reach another file. Pictures that this
package loads itself have names made by `image_file_name`, which exist for every id.
"""

import hashlib
import os
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

import polars as pl

PLACEHOLDER = "{item_id}"
WORK_FOLDER = ".fetch"
"""What fetching keeps in the pictures' folder; no picture has this name, whatever the ids are."""
_LONGEST_NAME = 120  # with an ending it fits into the 255 bytes of every file system


def image_folder(template: str) -> str:
    """The part of the template above what depends on the item: `posters` of `posters/{item_id}.jpg`."""
    fixed: list[str] = []
    for part in PurePosixPath(template).parts:
        if PLACEHOLDER in part:
            break
        fixed.append(part)
    return "/".join(fixed) or "."


def image_file_name(item_id: str) -> str:
    """A file name that no other id has, and that is the id itself where it has only A-Z a-z 0-9 _ . - ~.

    Everything else is percent-encoded, a leading dot too; a long name becomes `%%` and the SHA-256 of the id.
    """
    name = quote(item_id, safe="")
    if len(name) > _LONGEST_NAME:
        return "%%" + hashlib.sha256(item_id.encode()).hexdigest()
    return f"%2E{name[1:]}" if name.startswith(".") else name


def existing_images(item_ids: pl.Series, template: str, data_dir: Path) -> pl.Series:
    """The picture of each item, as a path relative to the data folder; null where there is none.

    A file named by the id as it is comes before one named by `image_file_name`; an id that reads like such a name of
    another id (`a%2Fb`) has only the latter. The folder itself may be a link (data folders often are), but what it
    holds may not lead out of it.

    Args:
        item_ids: strings, null where the id is missing.
        template: relative path with `{item_id}` in it.
        data_dir: the data folder.
    """
    folder = os.path.realpath(data_dir / image_folder(template))
    if not os.path.isdir(folder):  # noqa: PTH112 (the path is a string here)
        return pl.repeat(None, len(item_ids), dtype=pl.String, eager=True).alias("image_path")
    paths = [_picture(item_id, template, data_dir, folder) for item_id in item_ids.to_list()]
    return pl.Series("image_path", paths, dtype=pl.String)


def _picture(item_id: str | None, template: str, data_dir: Path, folder: str) -> str | None:
    if not item_id:
        return None
    named_for_another = item_id.startswith("%%") or ("%" in item_id and image_file_name(unquote(item_id)) == item_id)
    found = None if named_for_another else _file(template.replace(PLACEHOLDER, item_id), data_dir, folder)
    if found is None and (name := image_file_name(item_id)) != item_id:
        found = _file(template.replace(PLACEHOLDER, name), data_dir, folder)
    return found


def _file(relative: str, data_dir: Path, folder: str) -> str | None:
    try:
        real = os.path.realpath(data_dir / relative)
        inside = real.startswith(folder + os.sep) and not {"..", WORK_FOLDER} & set(PurePosixPath(relative).parts)
        return relative if inside and os.path.isfile(real) else None  # noqa: PTH113 (the path is a string here)
    except (OSError, ValueError):  # a name too long for the file system, or with a null byte
        return None
