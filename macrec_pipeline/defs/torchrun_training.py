"""An asset's training on several processes: `torchrun`, started and listened to through Dagster Pipes.

In: a job, and a folder that every rank can read. Out: the folder that rank 0's `save` filled. The progress that rank 0
reports goes where the asset's own reports go, while it trains.
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
from dagster._core.errors import DagsterPipesExecutionError
from dagster_pipes import PipesParams

from macrec_pipeline import errors
from macrec_pipeline.defs.asset_context import AssetContext
from macrec_pipeline.torchrun.jobs import FITTED, Job, Result
from macrec_pipeline.torchrun.parent_death import OWN_STORE

LAUNCHER = "MACREC_TORCHRUN"
"""In the environment: what starts the ranks, in place of this machine's `torchrun`; it gets `-m module folder`."""
MAX_RESTARTS = 3
"""Of all ranks together, after one has died; each goes on from the last checkpoint."""


@contextmanager
def trained_by_several(
    context: dg.AssetExecutionContext, work: AssetContext, job: Job, scratch: Path
) -> Iterator[tuple[Path, Result]]:
    """Train, and hand over what rank 0 wrote, for as long as the block lasts, and what it said of it.

    Args:
        context: of the asset.
        work: of the asset.
        job: the training.
        scratch: a folder that every rank can read; the job lies in it as a hidden one.

    Raises:
        MacrecError: what rank 0 met.
        TrainingError: the ranks died more often than they are started again, or left no result.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ranks-", dir=scratch) as name:
        folder = Path(name).absolute()
        job.write(folder)
        reports = _Reports(folder / "messages", work.progress)
        client = dg.PipesSubprocessClient(
            message_reader=reports, context_injector=dg.PipesFileContextInjector(str(folder / "context"))
        )
        command = [
            *_launcher(work.config.runtime.training_processes, folder),
            "-m",
            "macrec_pipeline.torchrun",
            str(folder),
        ]
        failure: Exception | None = None
        try:
            # an asset's own context warns of what Dagster itself asks it for
            operation = context.op_execution_context
            client.run(context=operation, command=command, env=_environment(work.config.runtime.num_threads))
        except DagsterPipesExecutionError as error:
            failure = error
        yield folder / FITTED, _result(folder, job.stage, failure)


class _Reports(dg.PipesFileMessageReader):
    """Reads rank 0's messages: this package's own here, all others as Dagster does."""

    def __init__(self, path: Path, progress: Callable[..., None]) -> None:
        super().__init__(str(path))
        self._progress = progress

    @property
    def expected_writer_count(self) -> int:
        return 1  # as inherited, but without a warning that Dagster may change it

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[PipesParams]:
        with super().read_messages(cast("dg.PipesMessageHandler", _Divided(handler, self._take))) as params:
            yield params

    def _take(self, payload: Mapping[str, Any]) -> None:
        self._progress(*payload["progress"])


class _Divided:
    """A message handler that hands what `report_custom_message` sends to a function, at once."""

    def __init__(self, handler: dg.PipesMessageHandler, take: Callable[[Mapping[str, Any]], None]) -> None:
        self._handler, self._take = handler, take

    def handle_message(self, message: Any) -> None:
        if message["method"] == "report_custom_message":
            self._take(message["params"]["payload"])
        else:
            self._handler.handle_message(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)


def _result(folder: Path, stage: str, failure: Exception | None) -> Result:
    result = Result.read(folder)
    if result is not None and result.error is not None:
        kind, message = result.error
        raise getattr(errors, kind)(message)
    if failure is not None or result is None:
        raise errors.TrainingError(
            f"The processes that train the {stage} ended without a result: {failure or 'rank 0 left none'}. What "
            f"they said is in this run's output; {LAUNCHER}, if it is set, has to hand on its environment. The next "
            "run goes on from the last checkpoint; with runtime.training_processes=1 the stage trains by itself."
        ) from failure
    return result


def _launcher(processes: int, folder: Path) -> list[str]:
    if own := os.environ.get(LAUNCHER):
        return shlex.split(own)
    # as --standalone, but by a file: the server that it would start listens to every network
    by_file = ("--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={folder / 'rendezvous'}")
    ranks = (f"--nproc-per-node={processes}", f"--max-restarts={MAX_RESTARTS}")
    return [sys.executable, "-m", "macrec_pipeline.torchrun.parent_death", *by_file, *ranks]


def _environment(num_threads: int) -> dict[str, str]:
    """Threads as a process alone has them; on this machine ranks talk by loopback."""
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    loopback = dict.fromkeys(names, "lo") if sys.platform == "linux" and LAUNCHER not in os.environ else {}
    return {"OMP_NUM_THREADS": str(num_threads), **OWN_STORE, **loopback}
