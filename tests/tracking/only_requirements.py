"""Build a clean environment: a folder of links to only those installed packages that some requirements need."""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def link_packages(requirements: list[str], folder: Path) -> Path:
    """Create `folder` and link the packages of `requirements` and all their dependencies into it."""
    folder.mkdir()
    for package in needed_packages(requirements).values():
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(str(package.locate_file(top)))
    return folder


def needed_packages(requirements: list[str]) -> dict[str, Distribution]:
    """Return the installed packages that some requirements need, by name; those of other platforms are left out."""
    waiting, found = [Requirement(line) for line in requirements], {}
    while waiting:
        requirement = waiting.pop()
        key = re.sub(r"[-_.]+", "-", requirement.name).lower() + str(sorted(requirement.extras))
        if key in found:
            continue
        try:
            found[key] = distribution(requirement.name)
        except PackageNotFoundError:  # meant for another platform, or replaced by an installed package
            continue
        dependencies = [Requirement(line) for line in found[key].requires or ()]
        extras = requirement.extras or {""}
        waiting += [
            one
            for one in dependencies
            if not one.marker or any(one.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return found
