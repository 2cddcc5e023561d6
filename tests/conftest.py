"""Fixtures that every test folder may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public data beside the checkout; tests that need it say so when it is not there."""
    folder = Path(os.environ.get("MACREC_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data is not there: {folder} (set MACREC_TEST_DATA to the folder that holds movielens-100k)")
    return folder
