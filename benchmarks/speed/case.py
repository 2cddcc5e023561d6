"""What a benchmark is made of; a row of the table is one `Case`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.machine import Machine

Timed = Callable[[], Any]
Side = Callable[[Path], Timed]


@dataclass(frozen=True)
class Case:
    """One stage at one size.

    Attributes:
        name: the row, with its size.
        size: what the cost grows with; `size_of` says what it counts.
        prepare: writes the input into a folder, in a process of its own.
        ours, baseline: read the input from that folder and return what is timed, which returns a result.
        same: raises AssertionError unless both results agree.
        limit: the seconds below which the machine cannot do it; None if nothing says.
        target: seconds at most (or, with `by_ratio`, times the baseline's speed at least); None: not of the time.
        by_ratio: the target is of the ratio.
        peak_limit_mb: memory of ours at most.
        unit: of the figures: "s", or "MB/s" with `megabytes`.
        megabytes: what one run moves.
        repeats: of ours, beside the warm-up.
        baseline_repeats: the same of the baseline, which may be slow; 0 leaves it out.
        drop_caches: patterns of files in the folder that the system forgets before each run.
        remove: patterns of what is taken out of the folder before each run.
        bfloat16: ours multiplies in it, which says nothing on a processor that has to emulate it.
        afresh: each run of ours has a process of its own, as the stage has; in one process what the allocators keep of
            the runs before would count as memory.
        why_not: of a target that is not met: what takes the time, and the limit that was measured.
    """

    name: str
    size: int
    size_of: str
    prepare: Callable[[Path], None]
    ours: Side
    baseline: Side
    same: Callable[[Any, Any], None]
    limit: Callable[[Machine], float] | None = None
    target: float | None = None
    by_ratio: bool = False
    peak_limit_mb: float | None = None
    unit: str = "s"
    megabytes: float = 0.0
    repeats: int = 5
    baseline_repeats: int = 5
    drop_caches: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    bfloat16: bool = False
    afresh: bool = False
    why_not: str = ""

    def figure(self, seconds: float) -> float:
        """Seconds in the case's unit."""
        return seconds if self.unit == "s" else self.megabytes / seconds

    def met(self, *, seconds: float, ratio: float | None, peak_mb: float) -> bool | None:
        """Whether the target is met; None where there is none or nothing to compare with."""
        reached = ratio if self.by_ratio else seconds
        if reached is None or (self.target is None and self.peak_limit_mb is None):
            return None
        fast = self.target is None or (reached >= self.target if self.by_ratio else reached <= self.target)
        return fast and (self.peak_limit_mb is None or peak_mb <= self.peak_limit_mb)
