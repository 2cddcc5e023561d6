"""Shards under every driver: the same files, whoever dies meanwhile."""

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
from macrec_pipeline.defs.retries import may_pass
from macrec_pipeline.errors import ConfigError, MacrecError, StorageError, WorkerError
from macrec_pipeline.runtime.sharding import ray_tasks
from macrec_pipeline.runtime.sharding.shards import MAX_ATTEMPTS, map_shards, shards_of
from tests.runtime.shard_work import Squares

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -c constraints.txt '.[ray]'"
)
RAY = pytest.param("ray", 2, marks=[NEEDS_RAY, pytest.mark.slow])
RAY_ALONE = pytest.param("ray", marks=[NEEDS_RAY, pytest.mark.slow])
Drive = Callable[..., list[int]]
# Makes shard 0 and then waits in shard 1.
PARENT = """
import sys, torch
from pathlib import Path
from macrec_pipeline.config import RuntimeConfig
from macrec_pipeline.runtime.sharding.shards import map_shards, shards_of
from tests.runtime.shard_work import Squares
runtime = RuntimeConfig(device="cpu", num_threads=1, driver="processes", workers=2)
map_shards(Squares(Path(sys.argv[1]), waits_at=1), shards_of(4, 2), runtime, device=torch.device("cpu"))
"""
# Looks, from a process of its own, at what Ray has started while a shard is finished, and at what is left afterwards.
ALONE = """
import json, signal, sys, torch
from macrec_pipeline.runtime import ray_tasks
ray_tasks._imported()
import psutil  # Ray brings its own
from pathlib import Path
from macrec_pipeline.config import RuntimeConfig
from macrec_pipeline.runtime.sharding.shards import map_shards, shards_of
from tests.runtime.shard_work import Squares
told, before, started = {}, signal.getsignal(signal.SIGTERM), []
def look(shard):
    if started:
        return
    from ray._common.usage.usage_lib import usage_stats_enabled
    started.extend(psutil.Process().children(recursive=True))
    everything = [psutil.Process(), *started]
    sockets = [socket for process in everything for socket in process.net_connections("inet")]
    listening = [socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN]
    told["addresses"] = sorted({address.removeprefix("::ffff:") for address in listening})
    told["pages"] = [line for each in started if "--disable-frontend" not in (line := each.cmdline())
                     and any("dashboard.py" in word for word in line)]
    told["usage_stats"] = usage_stats_enabled()
runtime = RuntimeConfig(device="cpu", num_threads=1, driver="ray", workers=1)
map_shards(Squares(Path(sys.argv[1])), shards_of(4, 2), runtime, device=torch.device("cpu"), done=look)
psutil.wait_procs(started, timeout=60)
told["left"] = [process.pid for process in started if process.is_running() and process.status() != "zombie"]
told["sigterm_is_own"] = signal.getsignal(signal.SIGTERM) == before
print(json.dumps(told))
"""


def runtime(driver: str = "processes", workers: int = 2) -> RuntimeConfig:
    return RuntimeConfig.model_validate({"device": "cpu", "num_threads": 1, "driver": driver, "workers": workers})


@pytest.fixture
def kept() -> Iterator[None]:
    """The threads and the kernels of this process, as they were."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])


@given(rows=st.integers(0, 40), size=st.integers(1, 12))
def test_shards_cover_the_rows_once(rows: int, size: int) -> None:
    """In order, each of the size asked for but the last; one without rows of a table without rows."""
    shards = shards_of(rows, size)
    covered = [row for shard in shards for row in range(shard.first, shard.first + shard.count)]
    assert covered == list(range(rows))
    assert [shard.number for shard in shards] == list(range(max(1, -(-rows // size))))
    assert all(shard.count == size for shard in shards[:-1])


@pytest.fixture(scope="module")
def _one_ray() -> Iterator[None]:
    """A Ray of this machine for all tests that ask for it."""
    ray = ray_tasks._imported()
    with ray_tasks._connected(ray, runtime("ray", 2)):
        yield


@pytest.fixture
def drive(request: pytest.FixtureRequest, kept: None) -> Drive:
    """Make the shards of some work by a driver."""

    def driven(work: Squares, driver: str, workers: int = 1, *, num_shards: int = 5) -> list[int]:
        if driver == "ray":
            request.getfixturevalue("_one_ray")
        finished: list[int] = []
        map_shards(
            work,
            shards_of(2 * num_shards, 2),
            runtime(driver, workers),
            device=CPU,
            done=lambda shard: finished.append(shard.number),
        )
        return finished

    return driven


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.txt")}


@pytest.mark.parametrize(("driver", "workers"), [("in_process", 1), ("processes", 2), RAY])
def test_every_shard_is_made_once_and_a_worker_loads_once(
    driver: str, workers: int, tmp_path: Path, drive: Drive
) -> None:
    """The same files by whichever driver, each worker with the threads of the settings."""
    work = Squares(tmp_path)
    assert sorted(drive(work, driver, workers)) == [0, 1, 2, 3, 4]
    assert files(tmp_path) == {f"{shard}.txt": f"{(2 * shard) ** 2} {(2 * shard + 1) ** 2}" for shard in range(5)}
    assert sorted(work.noted("made")) == ["0", "1", "2", "3", "4"]
    loaded, began = [line.split() for line in work.noted("load")], {line.split()[0] for line in work.noted("begin")}
    assert len(loaded) == len(began) <= workers
    if driver != "in_process":
        assert all(words[1:] == ["cpu", "1"] for words in loaded)
        assert str(os.getpid()) not in began


@pytest.mark.parametrize("driver", ["processes", RAY_ALONE])
def test_a_worker_that_is_killed_is_replaced(driver: str, tmp_path: Path, drive: Drive) -> None:
    """kill -9 over shard 2: it is made in the end, the others once, and every file is as it should be."""
    work = Squares(tmp_path, dies_at=2, deaths=1)
    assert sorted(drive(work, driver)) == [0, 1, 2, 3, 4]
    assert work.noted("died") == ["2"]
    assert sorted(work.noted("made")) == ["0", "1", "2", "3", "4"]
    assert files(tmp_path)["2.txt"] == "16 25"


@pytest.mark.parametrize("driver", ["processes", RAY_ALONE])
def test_a_shard_that_kills_every_worker_is_named_and_given_up(driver: str, tmp_path: Path, drive: Drive) -> None:
    """After three workers, and what is finished stays."""
    work = Squares(tmp_path, dies_at=1, deaths=99)
    with pytest.raises(WorkerError, match=r"shard 1 \(2 rows from row 2\)"):
        drive(work, driver)
    assert work.noted("died") == ["1"] * MAX_ATTEMPTS
    assert files(tmp_path) == {"0.txt": "0 1"}


@pytest.mark.parametrize("driver", ["in_process", "processes", RAY_ALONE])
def test_an_error_arrives_as_it_was(driver: str, tmp_path: Path, drive: Drive) -> None:
    """Of its own kind, with the shard in front; what may pass by itself is still known as such."""
    with pytest.raises(MacrecError, match=r"^shard 1 \(2 rows from row 2\): The disk hiccups\.$") as raised:
        drive(Squares(tmp_path, fails_at=1, why="disk"), driver, num_shards=2)
    assert type(raised.value) is StorageError
    assert may_pass(raised.value)


def test_a_fault_keeps_its_traceback(tmp_path: Path, drive: Drive) -> None:
    """What is no error of this package says where it happened, though that was in another process."""
    with pytest.raises(RuntimeError, match=r"(?s)shard 1 .*shard_work\.py.*ZeroDivisionError: a fault of this package"):
        drive(Squares(tmp_path, fails_at=1, why="fault"), "processes", num_shards=2)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(sent: signal.Signals, tmp_path: Path) -> None:
    """Interrupted or killed in the middle of a shard, it leaves nobody behind."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE)
    work = Squares(tmp_path)
    try:
        _until(lambda: len(work.noted("begin")) >= 2 and "made 0" in (tmp_path / "log").read_text())
        workers = [int(line.split()[0]) for line in work.noted("load")]
        parent.send_signal(sent)
        _, said = parent.communicate(timeout=60)
    finally:
        parent.kill()
    assert (b"KeyboardInterrupt" in said) == (sent == signal.SIGINT)
    _until(lambda: not any(_is_alive(worker) for worker in workers))
    assert files(tmp_path) == {"0.txt": "0 1"}


def test_workers_without_a_driver_are_refused() -> None:
    """Nobody is to believe that several work where one does. A shard has the threads of the run if none are said."""
    with pytest.raises(ValidationError, match=r"set runtime\.driver"):
        runtime("in_process", 2)
    assert RuntimeConfig(num_threads=3).for_shards().num_threads == 3
    assert RuntimeConfig(num_threads=3, threads_per_shard=1).for_shards().num_threads == 1


def test_without_ray_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: None) -> None:
    """In one line, before anything is begun."""
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in (*ray_tasks._SILENT, *ray_tasks._LOCAL):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ConfigError, match=r"Ray is not installed.*\[ray\]"):
        map_shards(Squares(tmp_path), shards_of(2, 2), runtime("ray"), device=CPU)


@NEEDS_RAY
@pytest.mark.slow
def test_ray_keeps_to_this_machine(tmp_path: Path) -> None:
    """It listens on the loopback interface alone, shows no dashboard, reports nothing, and ends with the work."""
    found = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["addresses"] == ["127.0.0.1"]
    assert told["pages"] == []
    assert told["usage_stats"] is False
    assert told["left"] == []
    assert told["sigterm_is_own"] is True
    assert sorted(Squares(tmp_path).noted("made")) == ["0", "1"]


def _until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def _is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
