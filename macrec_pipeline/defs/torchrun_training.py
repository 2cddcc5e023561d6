"""Trains an asset's model in several processes: starts `torchrun` and follows it through Dagster Pipes.

The job is written to a folder that every rank can read. While the ranks train, rank 0's progress is reported as the
asset's own. The result is the folder that rank 0 saved the model to.
"""

import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import dagster as dg
from dagster_pipes import PipesParams

from macrec_pipeline import errors
from macrec_pipeline.defs.asset_context import AssetContext
from macrec_pipeline.defs.dagster_private import DagsterPipesExecutionError
from macrec_pipeline.runtime.progress import Progress
from macrec_pipeline.torchrun.jobs import FITTED_FOLDER, TrainingJob, TrainingResult
from macrec_pipeline.torchrun.parent_death import OWN_STORE

LAUNCHER = "MACREC_TORCHRUN"
"""Environment variable: a command that starts the ranks instead of this machine's `torchrun`. It is called with
`-m module folder`."""
MAX_RESTARTS = 3
"""How often all ranks are restarted after one has died; each time they continue from the last checkpoint."""


@contextmanager
def train_with_torchrun(
    context: dg.AssetExecutionContext,
    asset: AssetContext,
    job: TrainingJob,
    scratch: Path,
    *,
    progress: Progress | None = None,
) -> Iterator[tuple[Path, TrainingResult]]:
    """Train in several processes, and yield the folder that rank 0 saved to together with what it reported.

    Args:
        context: Dagster's context of the asset.
        asset: the asset's own context.
        job: what to train.
        scratch: a folder that every rank can read; a hidden folder in it holds the job until the block ends.
        progress: receives the progress of rank 0; None for the asset's own.

    Raises:
        MacrecError: the error of rank 0.
        TrainingError: the ranks died too often or left no result.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ranks-", dir=scratch) as name:
        folder = Path(name).absolute()
        job.write(folder)
        client = dg.PipesSubprocessClient(
            message_reader=_ProgressReader(folder / "messages", progress or asset.progress),
            context_injector=dg.PipesFileContextInjector(str(folder / "context")),
        )
        runtime = asset.config.runtime
        command = [*_launcher(runtime.training_processes, folder), "-m", "macrec_pipeline.torchrun", str(folder)]
        failure: Exception | None = None
        try:
            # With the asset's context, Dagster would warn about attributes that Dagster itself reads.
            client.run(context=context.op_execution_context, command=command, env=_environment(runtime.num_threads))
        except DagsterPipesExecutionError as error:
            failure = error
        yield folder / FITTED_FOLDER, _read_result(folder, job.stage, failure)


class _ProgressReader(dg.PipesFileMessageReader):
    """Reads rank 0's messages: progress goes to a callback, everything else to Dagster."""

    def __init__(self, path: Path, progress: Callable[..., None]) -> None:
        super().__init__(str(path))
        self._progress = progress

    @property
    def expected_writer_count(self) -> int:
        return 1  # the inherited value, without the warning that Dagster may change it

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[PipesParams]:
        with super().read_messages(
            cast("dg.PipesMessageHandler", _MessageSplitter(handler, self._report_progress))
        ) as params:
            yield params

    def _report_progress(self, payload: Mapping[str, Any]) -> None:
        self._progress(*payload["progress"])


class _MessageSplitter:
    """A message handler that passes custom messages to a callback at once, and the others to Dagster's handler."""

    def __init__(self, handler: dg.PipesMessageHandler, on_custom: Callable[[Mapping[str, Any]], None]) -> None:
        self._handler, self._on_custom = handler, on_custom

    def handle_message(self, message: Any) -> None:
        if message["method"] == "report_custom_message":
            self._on_custom(message["params"]["payload"])
        else:
            self._handler.handle_message(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)


def _read_result(folder: Path, stage: str, failure: Exception | None) -> TrainingResult:
    result = TrainingResult.read(folder)
    if result is not None and result.error is not None:
        kind, message = result.error
        raise getattr(errors, kind)(message)
    if failure is not None or result is None:
        raise errors.TrainingError(
            f"The processes that train the {stage} ended without a result: {failure or 'rank 0 left none'}. Their "
            f"output is in the output of this run. If {LAUNCHER} is set, its command must pass on its environment. The "
            "next run continues from the last checkpoint; with runtime.training_processes=1 the stage trains in a "
            "single process."
        ) from failure
    return result


def _launcher(num_processes: int, folder: Path) -> list[str]:
    if command := os.environ.get(LAUNCHER):
        return shlex.split(command)
    # Like --standalone, but the ranks meet through a file: the server of --standalone is open to every network.
    rendezvous = ("--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={folder / 'rendezvous'}")
    ranks = (f"--nproc-per-node={num_processes}", f"--max-restarts={MAX_RESTARTS}")
    return [sys.executable, "-m", "macrec_pipeline.torchrun.parent_death", *rendezvous, *ranks]


def _environment(num_threads: int) -> dict[str, str]:
    """Give each rank the threads of a single process; on one machine, let ranks communicate over loopback only."""
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    loopback = dict.fromkeys(names, "lo") if sys.platform == "linux" and LAUNCHER not in os.environ else {}
    return {"OMP_NUM_THREADS": str(num_threads), **OWN_STORE, **loopback}
