"""Determine which commit of this package's source code is running."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


@cache
def git_commit(package: Path = _PACKAGE) -> str | None:
    """Return the commit of the checkout that contains a package folder, with the suffix `-dirty` if files were changed.

    Returns None unless the package is directly below the root of a checkout: an installed package must not report the
    commit of an unrelated repository that contains its environment.
    """
    checkout, git = package.parent, shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return None
    command = [git, "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
