"""Fixtures that every test folder may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3_server import S3Server, serving

# Less than the pipeline's own: other test processes work beside, on the same cores. Before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public data beside the checkout; tests that need it say so when it is not there."""
    folder = Path(os.environ.get("MACREC_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data is not there: {folder} (set MACREC_TEST_DATA to the folder that holds movielens-100k)")
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server of this machine."""
    with serving() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The same, named in the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server
