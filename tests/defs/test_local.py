"""`macrec ui`: both UIs respond on loopback and end with the command."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from macrec_pipeline.defs.servers.local import ServerPlan, serving
from macrec_pipeline.errors import ConfigError, MacrecError


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _plan(code: str, port: int) -> ServerPlan:
    return ServerPlan("Test", port, "--port", "/", (sys.executable, "-c", code), dict(os.environ))


def _is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_server_ends_with_all_processes_that_it_started(tmp_path: Path) -> None:
    """A grandchild that ignores SIGTERM is killed too, because it is in the server's process group."""
    port = _free_port()
    code = (
        "import http.server, subprocess, sys\n"
        "stubborn = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', stubborn])\n"
        "print(child.pid, flush=True)\n"
        f"http.server.HTTPServer(('127.0.0.1', {port}), http.server.SimpleHTTPRequestHandler).serve_forever()"
    )
    with serving([_plan(code, port)], logs=tmp_path) as (server,):
        grandchild = int(server.log.read_text().split()[0])
        assert server.url == f"http://127.0.0.1:{port}"
        assert _is_running(server.process.pid)
        assert _is_running(grandchild)
    assert not _is_running(server.process.pid)
    deadline = time.monotonic() + 10
    while _is_running(grandchild) and time.monotonic() < deadline:  # the kernel takes a moment
        time.sleep(0.05)
    assert not _is_running(grandchild)


def test_a_server_that_dies_is_reported_with_its_last_output(tmp_path: Path) -> None:
    """The error quotes the last line of the output and names the file that has all of it."""
    with (
        pytest.raises(MacrecError, match=r"Test stopped while it was starting.*test\.log is: no such store"),
        serving([_plan("import sys; sys.exit('no such store')", _free_port())], logs=tmp_path),
    ):
        pytest.fail("must not be reached")


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """The message names the port and the option that chooses another."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"Port {port} .* --port"),
            serving([_plan("raise SystemExit", port)], logs=tmp_path),
        ):
            pytest.fail("must not be reached")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_both_uis_respond_and_end_with_the_command(tmp_path: Path) -> None:
    """The command prints both addresses once both respond. SIGTERM ends it and every process that it started."""
    ports = [_free_port(), _free_port()]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MACREC_", "DAGSTER_", "MLFLOW_"))
    }
    folders = {"MACREC_HOME": str(tmp_path / "home"), "MACREC_DATA": str(tmp_path / "data"), "PYTHONUNBUFFERED": "1"}
    command = [
        sys.executable,
        "-m",
        "macrec_pipeline.cli",
        "ui",
        "--port",
        str(ports[0]),
        "--mlflow-port",
        str(ports[1]),
    ]
    process = subprocess.Popen(
        command, env=environment | folders, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    output = "".join(lines)
    for port, path in zip(ports, ("/server_info", "/health"), strict=True):
        assert f"http://127.0.0.1:{port} " in output
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
            assert response.status == 200
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)  # a second signal does not interrupt the shutdown
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
