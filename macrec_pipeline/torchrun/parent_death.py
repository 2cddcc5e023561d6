"""A `torchrun` that ends with its parent process: `python -m macrec_pipeline.torchrun.parent_death ARGUMENTS`.

Without it, a training whose run was killed would continue for hours, and write its checkpoints beside those of the next
run.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>

OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Environment variables that every `torchrun` needs. Without them (torch 2.14), restarted ranks share a store with the
dead ones, find their addresses there, and sometimes cannot connect."""


def end_with_parent() -> None:
    """Have the kernel end this process when its parent ends, for whatever reason. Has an effect on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    from torch.distributed.run import main

    end_with_parent()
    os.environ.update(OWN_STORE)
    main()
