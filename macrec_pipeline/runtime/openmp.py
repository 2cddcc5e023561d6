"""How long OpenMP threads spin while they wait for work."""

import os

SPIN_COUNT = ("GOMP_SPINCOUNT", "5000")
"""Name and value of the environment variable that makes OpenMP threads spin only briefly."""


def spin_briefly() -> None:
    """Let waiting OpenMP threads give up the processor soon. Must be called before torch is loaded.

    By default they spin for long, which takes the processor away from other work: two processes that share two cores
    then take many times as long as one of them alone. Spinning briefly avoids that at a small cost on an idle machine;
    spinning even less costs considerably more (docs/performance.md). A value that the environment already has is kept,
    and child processes inherit the setting.
    """
    os.environ.setdefault(*SPIN_COUNT)
