"""Running a case: a warm-up, then pipeline and baseline in turns, so that other load affects both alike.

Each side has its own process, and so its own peak memory. The output is one row of `latest.json`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.case import Case
from benchmarks.speed.machine import Machine
from macrec_pipeline.runtime.openmp import SPIN_COUNT

ROOT = Path(__file__).resolve().parents[2]
Run = dict[str, float]


class Worker:
    """The process of one side of a case, which waits for its turns."""

    def __init__(self, module: str, case: Case, side: str, folder: Path) -> None:
        # the pipeline sets how its threads wait, the baseline keeps the default
        environment = dict([SPIN_COUNT]) | os.environ if side == "pipeline" else os.environ
        self._process = subprocess.Popen(
            _command(module, case, side, folder),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self) -> Run:
        """Run once, and return the cost."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write("go\n")
        stdin.flush()
        output = stdout.readline()
        if not output:
            raise RuntimeError(
                f"A benchmark process exited with status {self._process.wait()}. See its messages above."
            )
        run: Run = json.loads(output)
        return run

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(module: str, case: Case, machine: Machine, *, commit: str, work: Path | None = None) -> dict[str, Any]:
    """Measure a case, and return its row of the results.

    Args:
        module: name of the stage's module in this folder.
        case: what to run.
        machine: measured by the same command.
        commit: of the measured code.
        work: folder on the disk to measure; None for the system's temporary folder.
    """
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        subprocess.run(_command(module, case, "prepare", folder), cwd=ROOT, check=True)
        pipeline, baseline = _run_in_turns(module, case, folder)
    return row_of(case, pipeline, baseline, machine, commit=commit)


def row_of(
    case: Case, pipeline: Sequence[Run], baseline: Sequence[Run], machine: Machine, *, commit: str
) -> dict[str, Any]:
    """Summarise the runs of both sides as a row."""
    seconds = statistics.median(run["seconds"] for run in pipeline)
    ratio = _ratio(pipeline, baseline)
    peak = max(run["peak_rss_mb"] for run in pipeline)
    baseline_seconds = statistics.median(run["seconds"] for run in baseline) if baseline else None
    spread = (max(run["seconds"] for run in pipeline) - min(run["seconds"] for run in pipeline)) / seconds
    met = case.met(seconds=seconds, ratio=ratio, peak_mb=peak)
    return {
        "name": case.name,
        "unit": case.unit,
        "ours": _rounded(case.in_unit(seconds)),
        "baseline": None if baseline_seconds is None else _rounded(case.in_unit(baseline_seconds)),
        "ratio": None if ratio is None else _rounded(ratio),
        "target": _target(case),
        "met": met,
        "roofline_share": None if case.limit is None else _rounded(case.limit(machine) / seconds),
        "peak_rss_mb": round(peak),
        "machine": machine.name,
        "commit": commit,
        "size": case.size,
        "size_of": case.size_of,
        "spread": _rounded(spread),
        "runs": len(pipeline),
        "cpu_seconds": _rounded(statistics.median(run["cpu_seconds"] for run in pipeline)),
        "why_not": case.why_not if met is False else "",
    }


def _run_in_turns(module: str, case: Case, folder: Path) -> tuple[list[Run], list[Run]]:
    sides = {"pipeline": case.repeats, "baseline": case.baseline_repeats}

    def start(side: str) -> Worker:
        return Worker(module, case, side, folder)

    workers = {side: start(side) for side, repeats in sides.items() if repeats}
    runs: dict[str, list[Run]] = {"pipeline": [], "baseline": []}
    try:
        for turn in range(1 + max(sides.values())):
            for side, worker in list(workers.items()):
                # a slow side that runs only once has no warm-up
                if turn <= sides[side] and not (turn == 0 and sides[side] == 1):
                    run = worker.run()
                    if turn:
                        runs[side].append(run)
                    if case.new_process_per_run and side == "pipeline":
                        worker.close()
                        workers[side] = start(side)
    finally:
        for worker in workers.values():
            worker.close()
    return runs["pipeline"], runs["baseline"]


def _ratio(pipeline: Sequence[Run], baseline: Sequence[Run]) -> float | None:
    """Compute how many times as fast the pipeline is: the median over pairs of runs, if there are pairs."""
    if not baseline:
        return None
    if len(pipeline) == len(baseline):
        return statistics.median(b["seconds"] / a["seconds"] for a, b in zip(pipeline, baseline, strict=True))
    return statistics.median(b["seconds"] for b in baseline) / statistics.median(a["seconds"] for a in pipeline)


def _target(case: Case) -> str | None:
    conditions = []
    if case.target is not None:
        conditions.append(f"at least {case.target:g}x" if case.by_ratio else f"at most {case.target:g} s")
    if case.peak_limit_mb is not None:
        conditions.append(f"at most {case.peak_limit_mb:g} MB")
    return ", ".join(conditions) or None


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _command(module: str, case: Case, side: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.speed.worker", module, case.name, side, str(folder)]
