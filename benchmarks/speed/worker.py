"""One side of a case in a process of its own: does a run for every line that it is sent, and says what it cost.

    python -m benchmarks.speed.worker ROW-MODULE NAME SIDE FOLDER

SIDE is prepare, ours or baseline. Used by `measuring`, not by hand.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.speed.case import Case
from benchmarks.speed.machine import forget
from benchmarks.speed.rows import find


def _run(case: Case, timed: Any, folder: Path) -> dict[str, float]:
    for pattern in case.remove:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for pattern in case.drop_caches:
        for path in folder.glob(pattern):
            forget(path)
    _reset_peak()
    cpu, begin = _cpu_seconds(), time.perf_counter()
    timed()
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "cpu_seconds": _cpu_seconds() - cpu, "peak_rss_mb": _peak_mb()}


def _cpu_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak_mb() -> float:
    """The largest resident size since the reset, mapped files included; a child's where that is larger."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    own = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def main() -> None:
    """Serve one side of one case."""
    module, name, side, folder = *sys.argv[1:4], Path(sys.argv[4])
    case = find(module, name)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a stage prints is no answer
    if side == "prepare":
        case.prepare(folder)
        return
    timed = (case.ours if side == "ours" else case.baseline)(folder)
    for _ in sys.stdin:
        answers.write(json.dumps(_run(case, timed, folder)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
