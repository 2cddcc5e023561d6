"""Find the files of a table: one file, the files of a folder, or those that match a pattern.

The name of a file that exists is a name, whatever characters it contains. In a pattern, only `*` stands for other
characters, and `**` for any number of folders. Files are read in the order of their paths. In a folder, hidden files
and those whose names begin with `_`, such as `_SUCCESS`, are left out. Of several text files,
those of zero bytes have no rows and are left out too. Folders named `key=value` (hive partitions) are columns of the
files below them.
"""

import glob
import os
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from macrec_pipeline.data.readers.text_files import require_file
from macrec_pipeline.errors import MissingFileError, SchemaError

_ENDINGS = {
    "csv": (".csv", ".tsv", ".txt", ".dat"),
    "parquet": (".parquet", ".pq"),
    "jsonl": (".jsonl", ".ndjson"),
}
_PACKED = (".gz", ".zst")
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


def format_of(file: str) -> str | None:
    """Return csv, parquet or jsonl by the ending of a file's name; None for other endings."""
    name = file.lower()
    for ending in _PACKED:
        name = name.removesuffix(ending)
    return next((kind for kind, endings in _ENDINGS.items() if name.endswith(endings)), None)


def matching_files(data_dir: Path, named: str, *, file_format: str | None, what: str) -> list[str]:
    """Return the files that a data set names, as paths below the data folder, in the order of their paths.

    Args:
        data_dir: the data folder.
        named: a file, a folder, or a pattern with `*`, relative to the data folder.
        file_format: csv, parquet or jsonl; None if the data set does not say.
        what: the setting that names the files, for error messages.

    Raises:
        MissingFileError: there is no such file; names the setting.
        SchemaError: a folder holds files of several formats, and the data set does not say which ones to read.
    """
    path = data_dir / named
    if path.is_file():
        return [named]
    if not path.is_dir() and "*" not in named:
        require_file(data_dir, named, what=what)
    if path.is_dir():
        return _files_of_folder(data_dir, named, file_format=file_format, what=what)
    pattern = "".join(character if character == "*" else glob.escape(character) for character in named)
    names = glob.glob(pattern, root_dir=data_dir, recursive=True)  # noqa: PTH207 (leaves out hidden files)
    found = [name for name in names if (data_dir / name).is_file()]
    if not found:
        raise MissingFileError(
            f"No file in {data_dir} matches {named!r} ({what}). Put the files there, or set MACREC_DATA to the folder "
            "that contains them."
        )
    return _without_empty_files(data_dir, sorted(PurePosixPath(name).as_posix() for name in found), file_format)


def _without_empty_files(data_dir: Path, files: list[str], file_format: str | None) -> list[str]:
    """Leave out text files of zero bytes, as some programs write for a day without rows, unless all are empty."""
    filled = [
        file for file in files if "parquet" in (file_format, format_of(file)) or (data_dir / file).stat().st_size > 0
    ]
    return filled or files


def partition_columns(file: str) -> dict[str, str | None]:
    """Return the columns that the folders of a path hold: `log/dt=2024-01-31/part-0.parquet` gives dt."""
    pairs = [part.split("=", 1) for part in PurePosixPath(file).parts[:-1] if "=" in part]
    return {unquote(key): None if value == _NO_PARTITION else unquote(value) for key, value in pairs if key}


def _files_of_folder(data_dir: Path, named: str, *, file_format: str | None, what: str) -> list[str]:
    found: list[str] = []
    for folder, folders, names in os.walk(data_dir / named):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        below = Path(folder).relative_to(data_dir)
        found.extend((below / name).as_posix() for name in names if not name.startswith((".", "_")))
    formats = {file: format_of(file) for file in sorted(found)}
    present = sorted({kind for kind in formats.values() if kind is not None})
    if file_format is None and len(present) > 1:
        raise SchemaError(
            f"The folder {data_dir / named} holds files of several formats: {', '.join(present)} ({what}). Set "
            "`format` to the one to read."
        )
    chosen = [file for file, kind in formats.items() if kind is not None and kind == (file_format or kind)]
    if not chosen and file_format is not None and not present:  # for example part-00000, which has no ending
        chosen = list(formats)
    if not chosen:
        others = f" It holds other files, such as {next(iter(formats))}: set `format` to read them." if formats else ""
        raise MissingFileError(
            f"The folder {data_dir / named} holds no {file_format or 'CSV, TSV, parquet or JSON lines'} file ({what})."
            f"{others} Put the files there, or set MACREC_DATA to the folder that contains it."
        )
    return _without_empty_files(data_dir, chosen, file_format)
