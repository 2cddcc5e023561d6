"""The Dagster UI and the MLflow UI on this machine, as child processes that end with this one.

They use the state of one home and two ports of 127.0.0.1. Their output goes to files below the home.
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
    """A running server.

    Attributes:
        name: its name, for a person.
        url: where it responds.
        log: the file with its output.
        process: the child process.
    """

    name: str
    url: str
    log: Path
    process: subprocess.Popen[bytes]


@dataclass(frozen=True)
class ServerPlan:
    """How a server is started.

    Attributes:
        name: its name, for a person.
        port: the port that it listens on.
        port_option: the option of `macrec ui` that chooses the port.
        probe: a path of the server that responds once it is ready.
        command, environment: of the child process.
    """

    name: str
    port: int
    port_option: str
    probe: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


def local_plans(home: Path, data: Path, *, port: int, mlflow_port: int, url: str | None = None) -> list[ServerPlan]:
    """Plan Dagster (webserver, daemon and code server) and MLflow for the state of one home.

    Args:
        home: the absolute folder of the state.
        data: the absolute folder of the data sets' files.
        port: the port of Dagster.
        mlflow_port: the port of MLflow.
        url: where the assets are published; None: in the home.

    Raises:
        ConfigError: the home cannot be written.
        TrackingError: the MLflow store is a server, which has its own UI, or it cannot be opened.
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
        # Dagster warns that this command is superseded, which a user of `macrec ui` can do nothing about.
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
    """Start the servers, yield once all of them respond, and finally end them with all processes they started.

    Args:
        plans: the servers.
        logs: the folder for the files with their output.

    Raises:
        ConfigError: a port is in use.
        MacrecError: a server ended or did not respond in time; the message quotes the end of its output.
    """
    for plan in plans:
        _require_free_port(plan)
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        servers = [stack.enter_context(_child(plan, logs / f"{plan.name.lower()}.log")) for plan in plans]
        # All servers get the signal to end before any of them is waited for.
        for server in servers:
            stack.callback(server.process.terminate)
        for plan, server in zip(plans, servers, strict=True):
            _wait_until_ready(plan, server)
        yield servers


def wait_until_stopped(servers: list[Server]) -> None:
    """Block until Ctrl-C or SIGTERM raises `KeyboardInterrupt`, or raise `MacrecError` if a server ends by itself."""
    while True:
        for server in servers:
            if server.process.poll() is not None:
                raise MacrecError(f"{server.name} stopped unexpectedly. {_last_output(server.log)}")
        time.sleep(_POLL_SECONDS)


def _require_free_port(plan: ServerPlan) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, plan.port))
        except OSError as error:
            raise ConfigError(
                f"Port {plan.port} of {ADDRESS} cannot be used for {plan.name}: {error.strerror}. "
                f"Choose another one with {plan.port_option}."
            ) from None


@contextmanager
def _child(plan: ServerPlan, log: Path) -> Iterator[Server]:
    # The child gets a session of its own, so that Ctrl-C in the terminal reaches only this process, which then ends the
    # child's whole process group.
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  # a fixed command with numbers, no shell
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
        # Processes that the server started and left behind are in its process group.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(plan: ServerPlan, server: Server) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise MacrecError(f"{plan.name} stopped while it was starting. {_last_output(server.log)}")
        try:
            with urllib.request.urlopen(server.url + plan.probe, timeout=2):  # noqa: S310  # always http on loopback
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_SECONDS)
    raise MacrecError(f"{plan.name} did not respond within {_START_SECONDS:.0f} seconds. {_last_output(server.log)}")


def _last_output(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"The last line in {log} is: {lines[-1] if lines else '(none)'}"
