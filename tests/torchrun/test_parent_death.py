"""No training outlives the run that it belongs to."""

import os
import signal
import subprocess
import sys

import pytest

_CHILD = "from macrec_pipeline.torchrun.parent_death import end_with_parent as e; e(); print('up', flush=True); input()"
_PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=False)"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process that its parent is gone")
def test_a_process_ends_with_a_parent_that_is_killed() -> None:
    """SIGKILL leaves a parent no time to end its child; here the child's end of the pipe closes all the same."""
    reader, writer = os.pipe()  # stays open, so that the child would wait for ever
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, _CHILD], stdin=reader, stdout=subprocess.PIPE)
    os.close(reader)
    assert parent.stdout is not None
    with parent.stdout as said:
        assert said.readline() == b"up\n"
        os.kill(parent.pid, signal.SIGKILL)
        assert said.read() == b"", "ends when the last process that could write has"
    assert parent.wait(10) == -signal.SIGKILL
    os.close(writer)
