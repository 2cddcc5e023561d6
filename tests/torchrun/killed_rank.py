"""A launcher for `MACREC_TORCHRUN` whose rank 1 is killed once, in the middle of the second epoch.

Called as a launcher, it starts `torchrun` with itself as the program. Called by `torchrun`, it is a rank, which records
the epochs that it begins in the file `epochs` beside the job.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from macrec_pipeline.recommender.training import train
from macrec_pipeline.runtime import distributed
from macrec_pipeline.runtime.checkpoint import Checkpoint
from macrec_pipeline.torchrun.__main__ import main

ATTEMPT = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")


def record_epochs(file: Path) -> None:
    """Append a line to a file whenever this rank begins an epoch."""
    train_epoch = train.RecommenderTraining.train_epoch

    def recorded(training: train.RecommenderTraining, epoch: int) -> dict[str, float]:
        with file.open("a") as lines:
            lines.write(f"attempt {ATTEMPT}, rank {distributed.rank()}, epoch {epoch}\n")
        return train_epoch(training, epoch)

    train.RecommenderTraining.train_epoch = recorded  # type: ignore[method-assign]


def kill_rank_1_after_a_checkpoint() -> None:
    """Let rank 1 end itself by SIGKILL in the second step after the first checkpoint."""
    step, save = train.guarded_step, Checkpoint.save
    steps_since_checkpoint: list[None] = []

    def save_and_count(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        steps_since_checkpoint.append(None)

    def step_or_die(*arguments: Any, **options: Any) -> None:
        # not in the first step, which cannot finish before rank 0 has written the checkpoint
        if len(steps_since_checkpoint) == 2 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        steps_since_checkpoint.extend([None] * bool(steps_since_checkpoint))
        step(*arguments, **options)

    Checkpoint.save, train.guarded_step = save_and_count, step_or_die  # type: ignore[method-assign]


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:
        record_epochs(Path(sys.argv[1]).parent / "epochs")
        if ATTEMPT == "0":
            kill_rank_1_after_a_checkpoint()
        main(Path(sys.argv[1]))
    else:
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1")
        os.execv(sys.executable, [sys.executable, *torchrun, "-m", __spec__.name, sys.argv[-1]])
