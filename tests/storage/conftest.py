"""Fixtures for the store: tests that take `store` run for each place where assets can be stored."""

import uuid
from pathlib import Path

import pytest

from macrec_pipeline.storage import AssetStore


@pytest.fixture(params=["folder", "s3", "fsspec+memory"])
def url(request: pytest.FixtureRequest) -> str | None:
    """The URL where assets are published; None if they are stored in the home folder."""
    if request.param == "s3":
        return request.getfixturevalue("s3").new_url()
    return None if request.param == "folder" else f"fsspec+memory://{uuid.uuid4().hex}/home"


@pytest.fixture
def store(tmp_path: Path, url: str | None) -> AssetStore:
    return AssetStore(tmp_path, "demo", url=url)
