"""How OpenMP's threads wait for one another."""

import os

BRIEFLY = ("GOMP_SPINCOUNT", "5000")
"""The variable of the environment, and what it is set to."""


def spin_briefly() -> None:
    """Let OpenMP's threads give up the processor soon after they begin to wait; to be called before torch is loaded.

    As a rule they spin for long, which takes the processor from those that work as soon as anything else runs: of two
    processes with two threads on two cores each then takes thirty times as long as alone, with this 2.6 times. On a
    quiet machine it costs a twentieth; spinning even less costs a quarter (docs/performance.md). What the environment
    says already is left alone, and this process's children inherit it.
    """
    os.environ.setdefault(*BRIEFLY)
