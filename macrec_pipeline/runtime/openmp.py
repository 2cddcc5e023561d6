"""How long OpenMP threads spin while they wait for work."""

import os

SPIN_COUNT = ("GOMP_SPINCOUNT", "5000")
"""Name and value of the environment variable that makes OpenMP threads spin only briefly."""


def spin_briefly() -> None:
    """Make waiting OpenMP threads release the processor soon. Call this function before torch is loaded.

    By default, waiting threads spin for a long time and keep other processes from running: two processes that share two
    cores then each take many times as long as one process alone. A short spin avoids that at a small cost on an idle
    machine; an even shorter one costs considerably more (docs/performance.md). A value that is already set in the
    environment is kept. Child processes inherit the setting.
    """
    os.environ.setdefault(*SPIN_COUNT)
