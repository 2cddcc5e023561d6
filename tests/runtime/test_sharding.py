"""Shards with each driver: the same files, even if workers die."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from macrec_pipeline.config import RuntimeConfig
from macrec_pipeline.defs.retries import is_transient
from macrec_pipeline.errors import ConfigError, MacrecError, StorageError, WorkerError
from macrec_pipeline.runtime.sharding import ray_tasks
from macrec_pipeline.runtime.sharding.drivers import map_shards
from macrec_pipeline.runtime.sharding.shards import MAX_ATTEMPTS, split_into_shards
from tests.runtime.shard_work import Squares

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -c constraints.txt '.[ray]'"
)
RAY = pytest.param("ray", 2, marks=[NEEDS_RAY, pytest.mark.slow])
RAY_ONE_WORKER = pytest.param("ray", marks=[NEEDS_RAY, pytest.mark.slow])
Drive = Callable[..., list[int]]
# A program that computes shard 0 and then waits in shard 1.
PARENT = """
import sys, torch
from pathlib import Path
from macrec_pipeline.config import RuntimeConfig
from macrec_pipeline.runtime.sharding.drivers import map_shards
from macrec_pipeline.runtime.sharding.shards import split_into_shards
from tests.runtime.shard_work import Squares
runtime = RuntimeConfig(device="cpu", num_threads=1, driver="processes", workers=2)
map_shards(Squares(Path(sys.argv[1]), waits_at=1), split_into_shards(4, 2), runtime, device=torch.device("cpu"))
"""
# A program that observes what Ray has started when a shard is finished, and what is left afterwards.
OBSERVE_RAY = """
import json, signal, sys, torch
from macrec_pipeline.runtime.sharding import ray_tasks
ray_tasks._import_ray()
import psutil  # Ray contains a copy of it
from pathlib import Path
from macrec_pipeline.config import RuntimeConfig
from macrec_pipeline.runtime.sharding.drivers import map_shards
from macrec_pipeline.runtime.sharding.shards import split_into_shards
from tests.runtime.shard_work import Squares
observed, handler, started = {}, signal.getsignal(signal.SIGTERM), []
def observe(shard):
    if started:
        return
    from ray._common.usage.usage_lib import usage_stats_enabled
    started.extend(psutil.Process().children(recursive=True))
    processes = [psutil.Process(), *started]
    sockets = [socket for process in processes for socket in process.net_connections("inet")]
    listening = [socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN]
    observed["addresses"] = sorted({address.removeprefix("::ffff:") for address in listening})
    observed["dashboards"] = [line for process in started if "--disable-frontend" not in (line := process.cmdline())
                              and any("dashboard.py" in argument for argument in line)]
    observed["usage_stats"] = usage_stats_enabled()
runtime = RuntimeConfig(device="cpu", num_threads=1, driver="ray", workers=1)
map_shards(Squares(Path(sys.argv[1])), split_into_shards(4, 2), runtime, device=torch.device("cpu"),
           on_finished=observe)
psutil.wait_procs(started, timeout=60)
observed["left"] = [process.pid for process in started if process.is_running() and process.status() != "zombie"]
observed["handler_restored"] = signal.getsignal(signal.SIGTERM) == handler
print(json.dumps(observed))
"""


def runtime(driver: str = "processes", workers: int = 2) -> RuntimeConfig:
    return RuntimeConfig.model_validate({"device": "cpu", "num_threads": 1, "driver": driver, "workers": workers})


@pytest.fixture
def restored_settings() -> Iterator[None]:
    """Restore torch's number of threads and choice of kernels after the test."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])


@given(rows=st.integers(0, 40), size=st.integers(1, 12))
def test_shards_cover_every_row_once(rows: int, size: int) -> None:
    """Shards are in order and of the given size, except the last; a table without rows has one empty shard."""
    shards = split_into_shards(rows, size)
    covered = [row for shard in shards for row in range(shard.first, shard.first + shard.count)]
    assert covered == list(range(rows))
    assert [shard.number for shard in shards] == list(range(max(1, -(-rows // size))))
    assert all(shard.count == size for shard in shards[:-1])


@pytest.fixture(scope="module")
def _local_ray() -> Iterator[None]:
    """A local Ray that all tests with the driver "ray" share."""
    ray = ray_tasks._import_ray()
    with ray_tasks._ray_connection(ray, runtime("ray", 2)):
        yield


@pytest.fixture
def drive(request: pytest.FixtureRequest, restored_settings: None) -> Drive:
    """Return a function that computes shards with a driver and returns their numbers in the order of completion."""

    def compute(load: Squares, driver: str, workers: int = 1, *, num_shards: int = 5) -> list[int]:
        if driver == "ray":
            request.getfixturevalue("_local_ray")
        finished: list[int] = []
        map_shards(
            load,
            split_into_shards(2 * num_shards, 2),
            runtime(driver, workers),
            device=CPU,
            on_finished=lambda shard: finished.append(shard.number),
        )
        return finished

    return compute


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.txt")}


@pytest.mark.parametrize(("driver", "workers"), [("in_process", 1), ("processes", 2), RAY])
def test_every_shard_is_computed_once_and_a_worker_loads_once(
    driver: str, workers: int, tmp_path: Path, drive: Drive
) -> None:
    """Every driver writes the same files, and each worker has the number of threads of the settings."""
    work = Squares(tmp_path)
    assert sorted(drive(work, driver, workers)) == [0, 1, 2, 3, 4]
    assert files(tmp_path) == {f"{shard}.txt": f"{(2 * shard) ** 2} {(2 * shard + 1) ** 2}" for shard in range(5)}
    assert sorted(work.logged("finished")) == ["0", "1", "2", "3", "4"]
    loads, begins = [line.split() for line in work.logged("load")], {line.split()[0] for line in work.logged("begin")}
    assert len(loads) == len(begins) <= workers
    if driver != "in_process":
        assert all(fields[1:] == ["cpu", "1"] for fields in loads)
        assert str(os.getpid()) not in begins


@pytest.mark.parametrize("driver", ["processes", RAY_ONE_WORKER])
def test_a_worker_that_is_killed_is_replaced(driver: str, tmp_path: Path, drive: Drive) -> None:
    """After kill -9 on shard 2, that shard is computed again, the others are not, and all files are correct."""
    work = Squares(tmp_path, dies_at=2, deaths=1)
    assert sorted(drive(work, driver)) == [0, 1, 2, 3, 4]
    assert work.logged("died") == ["2"]
    assert sorted(work.logged("finished")) == ["0", "1", "2", "3", "4"]
    assert files(tmp_path)["2.txt"] == "16 25"


@pytest.mark.parametrize("driver", ["processes", RAY_ONE_WORKER])
def test_a_shard_that_kills_every_worker_ends_the_run(driver: str, tmp_path: Path, drive: Drive) -> None:
    """After three dead workers, the error names the shard, and finished shards stay."""
    work = Squares(tmp_path, dies_at=1, deaths=99)
    with pytest.raises(WorkerError, match=r"shard 1 \(2 rows from row 2\)"):
        drive(work, driver)
    assert work.logged("died") == ["1"] * MAX_ATTEMPTS
    assert files(tmp_path) == {"0.txt": "0 1"}


@pytest.mark.parametrize("driver", ["in_process", "processes", RAY_ONE_WORKER])
def test_an_error_keeps_its_type(driver: str, tmp_path: Path, drive: Drive) -> None:
    """An error's message starts with the shard, and an error that a retry may solve is still recognized."""
    with pytest.raises(MacrecError, match=r"^shard 1 \(2 rows from row 2\): The disk is not available\.$") as raised:
        drive(Squares(tmp_path, fails_at=1, failure="disk"), driver, num_shards=2)
    assert type(raised.value) is StorageError
    assert is_transient(raised.value)


def test_an_unexpected_exception_keeps_its_traceback(tmp_path: Path, drive: Drive) -> None:
    """The message about an unexpected exception in another process contains the traceback."""
    with pytest.raises(RuntimeError, match=r"(?s)shard 1 .*shard_work\.py.*ZeroDivisionError: a bug"):
        drive(Squares(tmp_path, fails_at=1, failure="bug"), "processes", num_shards=2)


@pytest.mark.parametrize("sent_signal", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(sent_signal: signal.Signals, tmp_path: Path) -> None:
    """A parent that is interrupted or killed in the middle of a shard leaves no worker behind."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE)
    work = Squares(tmp_path)
    try:
        _wait_until(lambda: len(work.logged("begin")) >= 2 and "finished 0" in (tmp_path / "log").read_text())
        workers = [int(line.split()[0]) for line in work.logged("load")]
        parent.send_signal(sent_signal)
        _, output = parent.communicate(timeout=60)
    finally:
        parent.kill()
    assert (b"KeyboardInterrupt" in output) == (sent_signal == signal.SIGINT)
    _wait_until(lambda: not any(_is_alive(worker) for worker in workers))
    assert files(tmp_path) == {"0.txt": "0 1"}


def test_workers_need_a_driver_that_has_workers() -> None:
    """More workers with the driver in_process are an error. By default, a shard has the threads of the run."""
    with pytest.raises(ValidationError, match=r"set runtime\.driver"):
        runtime("in_process", 2)
    assert RuntimeConfig(num_threads=3).for_shards().num_threads == 3
    assert RuntimeConfig(num_threads=3, threads_per_shard=1).for_shards().num_threads == 1


def test_the_error_without_ray_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored_settings: None
) -> None:
    """The error is raised before any shard is computed."""
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in (*ray_tasks._NO_USAGE_REPORTS, *ray_tasks._LOOPBACK_ONLY):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ConfigError, match=r"Ray is not installed.*\[ray\]"):
        map_shards(Squares(tmp_path), split_into_shards(2, 2), runtime("ray"), device=CPU)


@NEEDS_RAY
@pytest.mark.slow
def test_a_local_ray_is_not_reachable_from_the_network(tmp_path: Path) -> None:
    """A local Ray listens only on loopback, has no dashboard, sends no reports, and ends with the run."""
    completed = subprocess.run(
        [sys.executable, "-c", OBSERVE_RAY, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stderr
    observed = json.loads(completed.stdout.splitlines()[-1])
    assert observed["addresses"] == ["127.0.0.1"]
    assert observed["dashboards"] == []
    assert observed["usage_stats"] is False
    assert observed["left"] == []
    assert observed["handler_restored"] is True
    assert sorted(Squares(tmp_path).logged("finished")) == ["0", "1"]


def _wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.05)


def _is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
