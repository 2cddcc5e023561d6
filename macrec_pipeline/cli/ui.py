"""The command that opens the UIs: `macrec ui`."""

import signal
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.markup import escape

from macrec_pipeline.cli.options import DEFAULT_DATA, DEFAULT_HOME, DataOption, HomeOption
from macrec_pipeline.terminal import console, quieten_libraries

if TYPE_CHECKING:
    from types import FrameType

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def ui(
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="Port of the Dagster UI.")
    ] = 3000,
    mlflow_port: Annotated[
        int, typer.Option("--mlflow-port", metavar="PORT", min=1, max=65535, help="Port of the MLflow UI.")
    ] = 5000,
) -> None:
    """Open the Dagster UI and the MLflow UI on this machine, until Ctrl-C."""
    quieten_libraries()
    from macrec_pipeline.defs.runs.launch import open_instance
    from macrec_pipeline.defs.runs.liveness import close_dead_runs, close_runs_of_stopped_ui
    from macrec_pipeline.defs.servers.local import local_plans, serving, wait_until_stopped
    from macrec_pipeline.tracking import training_run_links

    for number in _STOP_SIGNALS:
        signal.signal(number, _interrupt)
    started = datetime.now(UTC)
    out = console()
    out.print("Starting the UIs, which takes about ten seconds.")
    plans = local_plans(home.folder, data.resolve(), port=port, mlflow_port=mlflow_port, url=home.url)
    with open_instance(home.folder) as instance:
        close_dead_runs(instance, home.folder)
    with serving(plans, logs=home.folder / "logs") as servers, suppress(KeyboardInterrupt):
        for server in servers:
            out.print(f"{server.name:<8} {server.url}   (log: {escape(str(server.log))})", highlight=False)
        for dataset, link in training_run_links(home.folder, servers[-1].url).items():
            out.print(f"Runs of {dataset} in MLflow: {link}", highlight=False, soft_wrap=True)
        out.print("Press Ctrl-C to stop both.")
        wait_until_stopped(servers)
    with open_instance(home.folder) as instance:
        for run_id in close_runs_of_stopped_ui(instance, home.folder, started=started):
            out.print(f"Run {run_id} had not finished and is now marked as canceled.", highlight=False)


def _interrupt(_signal: int, _frame: "FrameType | None") -> NoReturn:
    # A second signal must not interrupt the shutdown, which would leave servers or runs behind.
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
