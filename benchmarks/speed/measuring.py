"""Runs a case: warm-up, then ours and the baseline in turn, so that what disturbs the machine disturbs both.

Each side is a process of its own, for its own peak memory. Out: one row of `latest.json`.
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
from macrec_pipeline.runtime.openmp import BRIEFLY

ROOT = Path(__file__).resolve().parents[2]
Run = dict[str, float]


class Worker:
    """One side of a case, waiting for its turn."""

    def __init__(self, module: str, case: Case, side: str, folder: Path) -> None:
        # each side's threads wait as they would outside: ours as the pipeline has them, the baseline's as ever
        environment = dict([BRIEFLY]) | os.environ if side == "ours" else os.environ
        self._process = subprocess.Popen(
            _command(module, case, side, folder),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self) -> Run:
        """One run."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write("go\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise RuntimeError(f"a benchmark's process ended with {self._process.wait()}; its messages are above")
        run: Run = json.loads(answer)
        return run

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(module: str, case: Case, machine: Machine, *, commit: str, work: Path | None = None) -> dict[str, Any]:
    """One row: figures of both sides, what they say beside the target and the limit.

    Args:
        module: the stage's module in this folder.
        case: what is run.
        machine: measured by the same command.
        commit: of the code that is measured.
        work: a folder on the disk that is measured; None: the system's temporary one.
    """
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        subprocess.run(_command(module, case, "prepare", folder), cwd=ROOT, check=True)
        ours, theirs = _in_turn(module, case, folder)
    return row_of(case, ours, theirs, machine, commit=commit)


def row_of(case: Case, ours: Sequence[Run], theirs: Sequence[Run], machine: Machine, *, commit: str) -> dict[str, Any]:
    """The row that some runs make."""
    seconds = statistics.median(run["seconds"] for run in ours)
    ratio = _ratio(ours, theirs)
    peak = max(run["peak_rss_mb"] for run in ours)
    baseline = statistics.median(run["seconds"] for run in theirs) if theirs else None
    spread = (max(run["seconds"] for run in ours) - min(run["seconds"] for run in ours)) / seconds
    met = case.met(seconds=seconds, ratio=ratio, peak_mb=peak)
    return {
        "name": case.name,
        "unit": case.unit,
        "ours": _rounded(case.figure(seconds)),
        "baseline": None if baseline is None else _rounded(case.figure(baseline)),
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
        "runs": len(ours),
        "cpu_seconds": _rounded(statistics.median(run["cpu_seconds"] for run in ours)),
        "why_not": case.why_not if met is False else "",
    }


def _in_turn(module: str, case: Case, folder: Path) -> tuple[list[Run], list[Run]]:
    sides = {"ours": case.repeats, "baseline": case.baseline_repeats}

    def start(side: str) -> Worker:
        return Worker(module, case, side, folder)

    workers = {side: start(side) for side, repeats in sides.items() if repeats}
    runs: dict[str, list[Run]] = {"ours": [], "baseline": []}
    try:
        for turn in range(1 + max(sides.values())):
            for side, worker in list(workers.items()):
                # One run of a slow side is its own warm-up.
                if turn <= sides[side] and not (turn == 0 and sides[side] == 1):
                    run = worker.run()
                    if turn:
                        runs[side].append(run)
                    if case.afresh and side == "ours":
                        worker.close()
                        workers[side] = start(side)
    finally:
        for worker in workers.values():
            worker.close()
    return runs["ours"], runs["baseline"]


def _ratio(ours: Sequence[Run], theirs: Sequence[Run]) -> float | None:
    """How many times as fast, pair by pair where there are pairs."""
    if not theirs:
        return None
    if len(ours) == len(theirs):
        return statistics.median(b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True))
    return statistics.median(b["seconds"] for b in theirs) / statistics.median(a["seconds"] for a in ours)


def _target(case: Case) -> str | None:
    asked = []
    if case.target is not None:
        asked.append(f"at least {case.target:g}x" if case.by_ratio else f"at most {case.target:g} s")
    if case.peak_limit_mb is not None:
        asked.append(f"at most {case.peak_limit_mb:g} MB")
    return ", ".join(asked) or None


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _command(module: str, case: Case, side: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.speed.worker", module, case.name, side, str(folder)]
