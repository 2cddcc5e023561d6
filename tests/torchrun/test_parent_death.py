"""A training does not outlive the run that it belongs to."""

import os
import signal
import subprocess
import sys

import pytest

_CHILD = "from macrec_pipeline.torchrun.parent_death import end_with_parent as e; e(); print('up', flush=True); input()"
_PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=False)"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux notifies a process of its parent's death")
def test_a_process_ends_when_its_parent_is_killed() -> None:
    """SIGKILL leaves the parent no time to end its child, yet the child's end of the pipe closes."""
    reader, writer = os.pipe()  # stays open, so that the child would wait forever
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, _CHILD], stdin=reader, stdout=subprocess.PIPE)
    os.close(reader)
    assert parent.stdout is not None
    with parent.stdout as output:
        assert output.readline() == b"up\n"
        os.kill(parent.pid, signal.SIGKILL)
        assert output.read() == b"", "returns once no process can write to the pipe any more"
    assert parent.wait(10) == -signal.SIGKILL
    os.close(writer)
