"""A process for one side of a case: it runs once per line on standard input, and reports the cost as JSON.

    python -m benchmarks.speed.worker ROW-MODULE NAME SIDE FOLDER

SIDE is prepare, pipeline or baseline. `measuring` starts these processes.
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
from benchmarks.speed.machine import drop_from_cache
from benchmarks.speed.rows import find


def _run(case: Case, timed: Any, folder: Path) -> dict[str, float]:
    for pattern in case.remove:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for pattern in case.drop_caches:
        for path in folder.glob(pattern):
            drop_from_cache(path)
    _reset_peak()
    cpu_start, start = _cpu_seconds(), time.perf_counter()
    timed()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "cpu_seconds": _cpu_seconds() - cpu_start, "peak_rss_mb": _peak_mb()}


def _cpu_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak_mb() -> float:
    """Return the peak resident size since the reset, including mapped files, or that of a child if it is larger."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak_kb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return max(peak_kb, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def main() -> None:
    """Run one side of one case."""
    module, name, side, folder = *sys.argv[1:4], Path(sys.argv[4])
    case = find(module, name)
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keep what a stage prints apart from the results
    if side == "prepare":
        case.prepare(folder)
        return
    timed = (case.pipeline if side == "pipeline" else case.baseline)(folder)
    for _ in sys.stdin:
        output.write(json.dumps(_run(case, timed, folder)) + "\n")
        output.flush()


if __name__ == "__main__":
    main()
