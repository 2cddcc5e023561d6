"""Definition of a benchmark: each row of the table is one `Case`."""

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
        name: name of the row, including its size.
        size: quantity that the cost grows with.
        size_of: what `size` counts.
        prepare: writes the input into a folder, in its own process.
        pipeline, baseline: read the input from that folder, and return the function to time, which returns a result.
        check_equal: raises AssertionError unless both results agree.
        limit: least seconds that the machine needs; None if unknown.
        target: maximum seconds or, with `by_ratio`, minimum speed as a multiple of the baseline's; None for no target.
        by_ratio: the target is a ratio.
        peak_limit_mb: maximum memory of the pipeline; None for no limit.
        unit: of the results: "s", or "MB/s" with `megabytes`.
        megabytes: how much one run reads or writes.
        repeats: runs of the pipeline, not counting the warm-up.
        baseline_repeats: the same for the baseline, which may be slow; 0 skips it.
        drop_caches: patterns of files in the folder that are dropped from the page cache before each run.
        remove: patterns of files and folders that are removed before each run.
        bfloat16: the pipeline multiplies in bfloat16; skipped on processors that only emulate it.
        new_process_per_run: start each run of the pipeline in a new process, as the stage does; otherwise memory that
            allocators keep from earlier runs would be counted.
        why_not: why the target is not met, with measured limits.
    """

    name: str
    size: int
    size_of: str
    prepare: Callable[[Path], None]
    pipeline: Side
    baseline: Side
    check_equal: Callable[[Any, Any], None]
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
    new_process_per_run: bool = False
    why_not: str = ""

    def in_unit(self, seconds: float) -> float:
        """Convert seconds to the case's unit."""
        return seconds if self.unit == "s" else self.megabytes / seconds

    def met(self, *, seconds: float, ratio: float | None, peak_mb: float) -> bool | None:
        """Tell whether the target is met; None without a target, or without the baseline that it refers to."""
        value = ratio if self.by_ratio else seconds
        if value is None or (self.target is None and self.peak_limit_mb is None):
            return None
        is_fast = self.target is None or (value >= self.target if self.by_ratio else value <= self.target)
        return is_fast and (self.peak_limit_mb is None or peak_mb <= self.peak_limit_mb)
