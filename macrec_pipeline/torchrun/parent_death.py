"""`torchrun` that does not outlive whoever started it: `python -m macrec_pipeline.torchrun.parent_death ARGUMENTS`.

A training that nobody waits for any more would go on for hours, and write its checkpoints beside those of the next one.
"""

import ctypes
import os
import signal
import sys

_SIGNAL_AT_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of Linux's <sys/prctl.h>

OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""For the environment of any `torchrun`. Else (torch 2.14) ranks that are started again share a store with the dead,
find their addresses there, and sometimes cannot connect."""


def end_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, however that ended; Linux alone can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGTERM)


if __name__ == "__main__":
    from torch.distributed.run import main

    end_with_parent()
    os.environ.update(OWN_STORE)
    main()
