"""A launcher for `MACREC_TORCHRUN` whose rank 1 dies by SIGKILL in the middle of the second epoch, the first time.

Called as a launcher it starts `torchrun` with itself as the program. Called by `torchrun` it is a rank, which notes the
epochs that it begins in `epochs` beside the job.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from macrec_pipeline.recommender.training import fit
from macrec_pipeline.runtime import distributed
from macrec_pipeline.torchrun.__main__ import main

ATTEMPT = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")


def _note(file: Path) -> None:
    train = fit._Fit._train_epoch

    def noted(fit: Any, epoch: int) -> dict[str, float]:
        with file.open("a") as notes:
            notes.write(f"attempt {ATTEMPT}, rank {distributed.rank()}, epoch {epoch}\n")
        return train(fit, epoch)

    fit._Fit._train_epoch = noted  # type: ignore[method-assign]


def _arm() -> None:
    step, save = fit.guarded_step, fit.save_checkpoint
    steps_since_checkpoint: list[None] = []

    def save_and_arm(*where: Any, **what: Any) -> None:
        save(*where, **what)
        steps_since_checkpoint.append(None)

    def step_or_die(*parts: Any, **how: Any) -> None:
        # the second step: the first one cannot be made before rank 0 has written the checkpoint
        if len(steps_since_checkpoint) == 2 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        steps_since_checkpoint.extend([None] * bool(steps_since_checkpoint))
        step(*parts, **how)

    fit.save_checkpoint, fit.guarded_step = save_and_arm, step_or_die


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:
        _note(Path(sys.argv[1]).parent / "epochs")
        if ATTEMPT == "0":
            _arm()
        main(Path(sys.argv[1]))
    else:
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1")
        os.execv(sys.executable, [sys.executable, *torchrun, "-m", __spec__.name, sys.argv[-1]])
