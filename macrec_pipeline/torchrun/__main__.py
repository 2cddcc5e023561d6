"""What every rank runs: `torchrun ... -m macrec_pipeline.torchrun JOB_FOLDER`.

In: the folder of a job. Out: `fitted` and `result.json` in it, written by rank 0, which alone reports progress, to
Dagster if that started it. An error that would come again ends all ranks as if they had succeeded, so that `torchrun`
does not try; `result.json` tells it.
"""

import logging
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from dagster_pipes import PipesContext, PipesEnvVarParamsLoader, open_dagster_pipes

from macrec_pipeline.errors import MacrecError
from macrec_pipeline.runtime import distributed
from macrec_pipeline.runtime.devices import prepare_device
from macrec_pipeline.runtime.progress import Progress, TerminalProgress, quiet_progress
from macrec_pipeline.torchrun.jobs import FITTED, Job, Result
from macrec_pipeline.torchrun.parent_death import end_with_parent

_SECONDS = 0.5  # between two reports


def main(folder: Path) -> None:
    """Take part in a training."""
    end_with_parent()
    with distributed.joined(folder):
        if distributed.rank():
            logging.disable(logging.WARNING)  # rank 0 says the same
        # closed by success alone: a rank that dies is started again, and goes on reporting
        pipes = open_dagster_pipes() if distributed.rank() == 0 and _started_by_dagster() else None
        try:
            job = Job.read(folder)
            fitted = job.fit(prepare_device(job.devices()), _progress(pipes))
        except MacrecError as error:
            result = Result(error=(type(error).__name__, str(error)))
        else:
            result = Result(warm_start=getattr(fitted, "warm_start", "none"))
            if distributed.rank() == 0:
                shutil.rmtree(folder / FITTED, ignore_errors=True)  # what an attempt before may have left
                (folder / FITTED).mkdir()
                fitted.save(folder / FITTED)
        if distributed.rank() == 0:
            result.write(folder)
            if pipes is not None:
                pipes.close()
            elif result.error:
                sys.exit(": ".join(result.error))


def _started_by_dagster() -> bool:
    return PipesEnvVarParamsLoader().is_dagster_pipes_process()  # type: ignore[no-untyped-call]


def _progress(pipes: PipesContext | None) -> Progress:
    if distributed.rank():
        return quiet_progress
    if pipes is None:
        return TerminalProgress(interactive=sys.stderr.isatty())
    due = 0.0

    def report(stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        nonlocal due
        if done == total or time.monotonic() >= due:
            pipes.report_custom_message({"progress": [stage, done, total, dict(metrics or {})]})
            due = time.monotonic() + _SECONDS

    return report


if __name__ == "__main__":
    main(Path(sys.argv[1]))
