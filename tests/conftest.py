"""Fixtures for every test folder."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3_server import S3Server, serving

# Shorter than the package's own value, because other test processes run on the same cores. It must be set before torch
# is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# One thread per test process, since `make test` starts as many processes as there are cores. Tests of threads set their
# own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background makes them ignore Ctrl-C, and their child processes inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The files that take longest come first, so that no worker is left with one of them while the others have finished.
LONGEST_FIRST = (
    "tests/deployment/test_end_to_end.py",
    "tests/benchmarks/test_twelve_weeks.py",
    "tests/benchmarks/test_demo_ordering.py",
    "tests/test_pipeline.py",
    "tests/serving/test_service.py",
    "tests/test_drivers.py",
    "tests/faults/test_killed_everywhere.py",
    "tests/ui/",
    "tests/test_noise.py",
    "tests/test_one_route.py",
    "tests/faults/test_concurrent_runs.py",
    "tests/torchrun/",
    "tests/recommender/test_train.py",
    "tests/recommender/test_fitted_recommender.py",
    "tests/data/test_cleaning_result.py",
    "tests/data/test_row_splitting.py",
    "tests/benchmarks/",
    "tests/runtime/test_sharding.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by file, the longest files first; the order within a file stays."""
    root = Path(__file__).resolve().parents[1]

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(root).as_posix()
        return next((n for n, prefix in enumerate(LONGEST_FIRST) if path.startswith(prefix)), len(LONGEST_FIRST))

    items.sort(key=place)


_UMASK = os.umask(0o022)
os.umask(_UMASK)


@pytest.fixture(autouse=True, scope="module")
def _umask_of_the_module() -> None:
    """Undo the umask that the definitions set when a test module imports them."""
    os.umask(_UMASK)


@pytest.fixture(autouse=True)
def _umask_of_the_test(_umask_of_the_module: None) -> Iterator[None]:
    """Undo the umask of a test that opens a home in the test process."""
    yield
    os.umask(_UMASK)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real public data next to the checkout. Tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("MACREC_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}: set MACREC_TEST_DATA to the folder that contains movielens-100k")
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server on this machine."""
    with serving() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with its address and keys in the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server
