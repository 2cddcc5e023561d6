"""The files that the images are built from have every package, in the tested version and with its hashes."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from tests.deployment.compose_file import ROOT
from tests.tracking.only_requirements import needed_packages

LOCKED = ROOT / "deployment" / "locked"
ENTRY = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>[\w.]+)[^\n]*\n(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}[ \\]*\n)+)"
)
NOT_SERVED = {"dagster", "polars", "mlflow", "torchvision", "faiss-cpu", "timm", "sqlalchemy", "matplotlib"}


def locked(name: str) -> dict[str, str]:
    """Return the version of each package in a file; anything that is not a pinned package with hashes is an error."""
    text = (LOCKED / f"{name}.txt").read_text(encoding="utf-8")
    entries = list(ENTRY.finditer(text))
    assert ENTRY.sub("", text).strip() == "# Written by `make lock`; see deployment/lock.py."
    return {canonicalize_name(entry["name"]): entry["version"] for entry in entries}


def locked_for(image: str) -> dict[str, str]:
    """Return all packages of an image."""
    return {
        package: version for path in sorted(LOCKED.glob(f"{image}*")) for package, version in locked(path.stem).items()
    }


def requirements(image: str) -> list[str]:
    """Return what pyproject.toml says that an image needs."""
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups, project = content["dependency-groups"], content["project"]

    def of_group(name: str) -> Iterator[str]:
        for entry in groups[name]:
            yield from [entry] if isinstance(entry, str) else of_group(entry["include-group"])

    of_project = project["dependencies"] + project["optional-dependencies"]["demo"] if image == "pipeline" else []
    return [*of_project, *of_group(f"image-{image}")]


@pytest.mark.parametrize("image", ["mlflow", "pipeline", "serve"])
def test_each_image_has_what_it_needs_in_the_tested_versions(image: str) -> None:
    """All requirements and what they need are there, with the versions of constraints.txt. `make lock` updates them."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    tested = {
        canonicalize_name(line.partition("==")[0]): line.partition("==")[2]
        for line in constraints.splitlines()
        if "==" in line and not line.startswith("#")
    }
    packages = locked_for(image)
    needed = {canonicalize_name(each.metadata["Name"]) for each in needed_packages(requirements(image)).values()}
    assert len(needed) > 40
    assert needed - packages.keys() == set()
    assert {name: version for name, version in packages.items() if tested.get(name, version) != version} == {}


def test_the_service_is_small() -> None:
    """Its image has neither Dagster nor polars nor other parts of the pipeline, and torch has a file of its own."""
    assert locked_for("serve").keys() & NOT_SERVED == set()
    for image in ("pipeline", "serve"):
        assert "torch" in locked(f"{image}-torch")
        assert not any(name.startswith(("torch", "nvidia", "cuda", "triton")) for name in locked(image))
