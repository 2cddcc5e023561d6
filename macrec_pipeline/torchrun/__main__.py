"""What every rank runs: `torchrun ... -m macrec_pipeline.torchrun JOB_FOLDER`.

Takes the folder of a `TrainingJob`. Rank 0 writes the fitted model and `result.json` into it, and is the only one to
report progress, to Dagster if Dagster started it. An error that would occur again on a retry is written to
`result.json`, and all ranks exit with status 0, so that `torchrun` does not restart them.
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
from macrec_pipeline.torchrun.jobs import FITTED_FOLDER, TrainingJob, TrainingResult
from macrec_pipeline.torchrun.parent_death import end_with_parent

_REPORT_SECONDS = 0.5  # minimum time between two progress messages


def main(folder: Path) -> None:
    """Take part in the training job of a folder."""
    end_with_parent()
    with distributed.process_group(folder):
        if distributed.rank():
            logging.disable(logging.WARNING)  # rank 0 logs the same
        # closed only on success: a rank that dies is restarted, and continues to report
        pipes = open_dagster_pipes() if distributed.rank() == 0 and _started_by_dagster() else None
        try:
            job = TrainingJob.read(folder)
            fitted = job.fit(prepare_device(job.runtime_config()), _progress(pipes))
        except MacrecError as error:
            result = TrainingResult(error=(type(error).__name__, str(error)))
        else:
            result = TrainingResult(warm_start=getattr(fitted, "warm_start", "none"))
            if distributed.rank() == 0:
                shutil.rmtree(folder / FITTED_FOLDER, ignore_errors=True)  # a previous attempt may have left it
                (folder / FITTED_FOLDER).mkdir()
                fitted.save(folder / FITTED_FOLDER)
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
    next_report = 0.0

    def report(stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        nonlocal next_report
        if done == total or time.monotonic() >= next_report:
            pipes.report_custom_message({"progress": [stage, done, total, dict(metrics or {})]})
            next_report = time.monotonic() + _REPORT_SECONDS

    return report


if __name__ == "__main__":
    main(Path(sys.argv[1]))
