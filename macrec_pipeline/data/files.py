"""Files below the data folder: found, or reported in one line that says what to do."""

from pathlib import Path

from macrec_pipeline.errors import MissingFileError


def require_file(data_dir: Path, relative: str, *, what: str) -> Path:
    """The path of a file of the data folder.

    Args:
        data_dir: the data folder (`MACREC_DATA`).
        relative: path below it, as the data set's YAML file says.
        what: the setting that names the file, for the message.

    Raises:
        MissingFileError: there is nothing, or a folder.
    """
    path = data_dir / relative
    if path.is_file():
        return path
    found = "is a folder, not a file" if path.is_dir() else "is not there"
    raise MissingFileError(
        f"{path} {found} ({what}). Put the file there, or set MACREC_DATA to the folder that holds {relative} "
        f"(now {data_dir})."
    )


def require_file_or_gz(data_dir: Path, relative: str, *, what: str) -> tuple[Path, str]:
    """The path of a file or of the same name with `.gz`, and its path below the data folder.

    Raises:
        MissingFileError: neither is there.
    """
    for name in (relative, f"{relative}.gz"):
        if (data_dir / name).is_file():
            return data_dir / name, name
    return require_file(data_dir, relative, what=f"{what}; {relative}.gz would do as well"), relative
