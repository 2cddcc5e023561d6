"""Lock files that tell whether the process behind a piece of work is alive."""

import subprocess
import sys
from pathlib import Path

import pytest

from macrec_pipeline.runtime.process_locks import ProcessState, hold_lock, process_state

HOLD_LOCK = """
import sys, time
from pathlib import Path
from macrec_pipeline.runtime.process_locks import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "running" / "run.lock"


def test_a_holder_is_alive_until_it_ends_in_order(path: Path) -> None:
    """While the block runs the process is alive; afterwards the file is gone, and so is any claim about the process."""
    assert process_state(path) is ProcessState.UNKNOWN
    with hold_lock(path):
        assert process_state(path) is ProcessState.ALIVE
    assert process_state(path) is ProcessState.UNKNOWN
    assert not path.exists()


def test_an_error_releases_the_lock(path: Path) -> None:
    """The lock is free after an error in the block, even though the process continues."""
    with pytest.raises(RuntimeError), hold_lock(path):
        raise RuntimeError
    assert process_state(path) is ProcessState.UNKNOWN


def test_a_killed_process_is_dead(path: Path) -> None:
    """The kernel releases the lock of a process that is killed with SIGKILL, but leaves its file."""
    with subprocess.Popen([sys.executable, "-c", HOLD_LOCK, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert process_state(path) is ProcessState.ALIVE
        process.kill()
    assert path.exists()
    assert process_state(path) is ProcessState.DEAD
    assert process_state(path) is ProcessState.DEAD  # looking at it changes nothing


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """The caller knows which folder it is and turns the error into its own."""
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    with pytest.raises(OSError, match="file"), hold_lock(tmp_path / "file" / "run.lock"):
        pytest.fail("must not be reached")
