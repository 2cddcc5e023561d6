"""Which version of this package's source is running."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


@cache
def git_commit(package: Path = _PACKAGE) -> str | None:
    """The commit of the checkout that a package folder lies in, with `-dirty` where files were changed since.

    None where the package does not lie directly in a checkout: an installed package must not report the commit of
    whatever repository its environment happens to be in.
    """
    checkout, git = package.parent, shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return None
    command = [git, "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
