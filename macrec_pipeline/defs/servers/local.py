"""The Dagster UI and the MLflow UI on this machine, as child processes that end with this one.

In: folders and two ports of 127.0.0.1. Out: two servers that answer; their output goes to files below the home folder.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from macrec_pipeline.datasets import datasets_folder
from macrec_pipeline.defs.runs.launch import dagster_folder
from macrec_pipeline.errors import ConfigError, MacrecError
from macrec_pipeline.tracking import server_command

ADDRESS = "127.0.0.1"
_START_SECONDS = 180.0
_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Server:
    """A child process that serves on a port of this machine."""

    name: str
    url: str
    log: Path
    process: subprocess.Popen[bytes]


@dataclass(frozen=True)
class ServerPlan:
    """How a server is started, and which path of it answers when it is ready."""

    name: str
    port: int
    port_option: str
    probe: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


def local_plans(home: Path, data: Path, *, port: int, mlflow_port: int, url: str | None = None) -> list[ServerPlan]:
    """Dagster (webserver, daemon and code server) and MLflow on the state of one home.

    Args:
        home, data: absolute folders.
        url: where the assets are published; None: in the home.

    Raises:
        ConfigError: the home cannot be written.
        TrackingError: the MLflow store is a server, which has a UI of its own, or cannot be opened.
    """
    mlflow_command, mlflow_environment = server_command(home, mlflow_port)
    dagster_command = (sys.executable, "-m", "dagster", "dev", "-m", "macrec_pipeline.definitions")
    dagster_environment = {
        **os.environ,
        "DAGSTER_HOME": str(dagster_folder(home)),
        "MACREC_HOME": url or str(home),
        "MACREC_STATE": str(home),
        "MACREC_DATA": str(data),
        "MACREC_DATASETS": str(datasets_folder().absolute()),
        "MACREC_MLFLOW_UI_URL": f"http://{ADDRESS}:{mlflow_port}",
        # Dagster calls its own command superseded; the person who asked for the UI can do nothing about it.
        "PYTHONWARNINGS": "ignore",
    }
    return [
        ServerPlan(
            "Dagster",
            port,
            "--port",
            "/server_info",
            (*dagster_command, "-h", ADDRESS, "-p", str(port)),
            dagster_environment,
        ),
        ServerPlan("MLflow", mlflow_port, "--mlflow-port", "/health", tuple(mlflow_command), mlflow_environment),
    ]


@contextmanager
def serving(plans: list[ServerPlan], *, logs: Path) -> Iterator[list[Server]]:
    """Start the servers, yield when all of them answer, end them with everything that they started.

    Raises:
        ConfigError: a port is taken.
        MacrecError: a server ended or did not answer in time; quotes the end of its output.
    """
    for plan in plans:
        _require_free(plan)
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        servers = [stack.enter_context(_child(plan, logs / f"{plan.name.lower()}.log")) for plan in plans]
        # All are asked to end before the first is waited for.
        for server in servers:
            stack.callback(server.process.terminate)
        for plan, server in zip(plans, servers, strict=True):
            _wait_until_it_answers(plan, server)
        yield servers


def wait_for_the_end(servers: list[Server]) -> None:
    """Block until a server ends by itself, which is an error; Ctrl-C and SIGTERM raise `KeyboardInterrupt`."""
    while True:
        for server in servers:
            if server.process.poll() is not None:
                raise MacrecError(f"{server.name} ended by itself. {_end_of(server.log)}")
        time.sleep(_POLL_SECONDS)


def _require_free(plan: ServerPlan) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, plan.port))
        except OSError as error:
            raise ConfigError(
                f"Port {plan.port} of {ADDRESS} cannot be used for {plan.name} ({error.strerror}). "
                f"Choose another with {plan.port_option}."
            ) from None


@contextmanager
def _child(plan: ServerPlan, log: Path) -> Iterator[Server]:
    # A session of its own: Ctrl-C in the terminal reaches this process alone, which then ends the whole group.
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  # this package's own words and numbers, no shell
            plan.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(plan.environment),
            start_new_session=True,
        )
    try:
        yield Server(plan.name, f"http://{ADDRESS}:{plan.port}", log, process)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.terminate()
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Whatever the server started and left behind is in its process group.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_it_answers(plan: ServerPlan, server: Server) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise MacrecError(f"{plan.name} ended while it started. {_end_of(server.log)}")
        try:
            with urllib.request.urlopen(server.url + plan.probe, timeout=2):  # noqa: S310  # always http on loopback
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_SECONDS)
    raise MacrecError(f"{plan.name} did not answer within {_START_SECONDS:.0f} seconds. {_end_of(server.log)}")


def _end_of(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"Its last words in {log}: {lines[-1] if lines else 'none'}"
