"""Find the image file of each item, never outside the folder that holds the images.

Item ids come from the source data and are not trusted: an id such as `../../x` must not reach another file. Fetched
images get their file names from `image_file_name`, which is defined for every id.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

import polars as pl

PLACEHOLDER = "{item_id}"
_ANY_PLACEHOLDER = re.compile(r"\{item_id(?:\[:(\d+)\])?\}")
WORK_FOLDER = ".fetch"
"""Subfolder of the image folder for the files of `macrec fetch images`. No image has this name, whatever its id."""
_MAX_NAME_LENGTH = 120  # with a file extension, this stays below the limit of 255 bytes of common file systems


def image_folder(template: str) -> str:
    """Return the part of the template that is the same for all items: `posters/{item_id}.jpg` gives `posters`."""
    fixed_parts: list[str] = []
    for part in PurePosixPath(template).parts:
        if _ANY_PLACEHOLDER.search(part):
            break
        fixed_parts.append(part)
    return "/".join(fixed_parts) or "."


def fill_template(template: str, name: str) -> str:
    """Put a name in the place of `{item_id}`, and its first characters in the place of `{item_id[:3]}`.

    Subfolders are often named by the beginning of the id, as in `images/010/0108775015.jpg`.
    """
    return _ANY_PLACEHOLDER.sub(lambda match: name[: int(match.group(1))] if match.group(1) else name, template)


def image_file_name(item_id: str) -> str:
    """Return a file name that no other id has. It is the id itself if that has only A-Z a-z 0-9 _ . - ~.

    Every other character is percent-encoded, and so is a leading dot. A long name becomes `%%` and the SHA-256 of the
    id.
    """
    name = quote(item_id, safe="")
    if len(name) > _MAX_NAME_LENGTH:
        return "%%" + hashlib.sha256(item_id.encode()).hexdigest()
    return f"%2E{name[1:]}" if name.startswith(".") else name


def existing_images(item_ids: pl.Series, template: str, data_dir: Path) -> pl.Series:
    """Return the image of each item as a path relative to the data folder; null where there is none.

    A file named by the id itself takes precedence over one named by `image_file_name`. An id that looks like the
    encoded file name of another id (`a%2Fb`) is only found under its own encoded name. The image folder itself may be
    a symbolic link, as data folders often are, but links inside it must not lead out of it.

    Args:
        item_ids: strings, null where the id is missing.
        template: relative path that contains `{item_id}`.
        data_dir: the data folder.
    """
    folder = os.path.realpath(data_dir / image_folder(template))
    if not os.path.isdir(folder):  # noqa: PTH112 (the path is a string here)
        return pl.repeat(None, len(item_ids), dtype=pl.String, eager=True).alias("image_path")
    paths = [_image_path(item_id, template, data_dir, folder) for item_id in item_ids.to_list()]
    return pl.Series("image_path", paths, dtype=pl.String)


def existing_image_files(names: pl.Series, folder: str, data_dir: Path) -> pl.Series:
    """Return each image that a column names as a path relative to the data folder; null where there is none.

    Args:
        names: paths below `folder`, null where an item has no image.
        folder: the folder of the images, relative to the data folder; links inside it must not lead out of it.
        data_dir: the data folder.
    """
    real = os.path.realpath(data_dir / folder)
    paths = [None if not name else _existing_file(f"{folder}/{name}", data_dir, real) for name in names.to_list()]
    return pl.Series("image_path", paths, dtype=pl.String)


def tried_images(items: pl.DataFrame, templates: Sequence[str], *, num_items: int = 2) -> list[str]:
    """Return where the images of the first items without one were looked for, relative to the data folder.

    Args:
        items: `RAW_ITEMS`.
        templates: relative paths that contain `{item_id}`, the preferred place first.
        num_items: the number of items.
    """
    missing = items.filter(pl.col("image_path").is_null() & pl.col("item_id").is_not_null())["item_id"]
    return [
        fill_template(template, item_id)
        for item_id in missing.unique(maintain_order=True)[:num_items]
        for template in templates
    ]


def _image_path(item_id: str | None, template: str, data_dir: Path, folder: str) -> str | None:
    if not item_id:
        return None
    is_name_of_another = item_id.startswith("%%") or ("%" in item_id and image_file_name(unquote(item_id)) == item_id)
    path = None if is_name_of_another else _existing_file(fill_template(template, item_id), data_dir, folder)
    if path is None and (name := image_file_name(item_id)) != item_id:
        path = _existing_file(fill_template(template, name), data_dir, folder)
    return path


def _existing_file(relative: str, data_dir: Path, folder: str) -> str | None:
    try:
        real = os.path.realpath(data_dir / relative)
        inside = real.startswith(folder + os.sep) and not {"..", WORK_FOLDER} & set(PurePosixPath(relative).parts)
        return relative if inside and os.path.isfile(real) else None  # noqa: PTH113 (the path is a string here)
    except (OSError, ValueError):  # the name is too long for the file system, or contains a null byte
        return None
