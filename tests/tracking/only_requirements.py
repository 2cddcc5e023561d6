"""A folder of links to the installed packages that some requirements need, and to no others: a clean environment."""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def link_packages(requirements: list[str], folder: Path) -> Path:
    """Link each package of `requirements`, and all that these need, into `folder`, which is made."""
    folder.mkdir()
    for package in _needed(requirements).values():
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(str(package.locate_file(top)))
    return folder


def _needed(requirements: list[str]) -> dict[str, Distribution]:
    todo, found = [Requirement(line) for line in requirements], {}
    while todo:
        asked = todo.pop()
        key = re.sub(r"[-_.]+", "-", asked.name).lower() + str(sorted(asked.extras))
        if key in found:
            continue
        try:
            found[key] = distribution(asked.name)
        except PackageNotFoundError:  # of another platform, or replaced by one that is there
            continue
        inner = [Requirement(line) for line in found[key].requires or ()]
        wanted = asked.extras or {""}
        todo += [one for one in inner if not one.marker or any(one.marker.evaluate({"extra": e}) for e in wanted)]
    return found
