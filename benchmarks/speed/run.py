"""Measures every row of the table and writes it down.

    python -m benchmarks.speed.run                      the table of docs/performance.md, to results/latest.json
    python -m benchmarks.speed.run --growth             the same stages at growing sizes, to results/growth.json
    python -m benchmarks.speed.run --only evaluation    one stage; the other rows of the file stay

The machine should have nothing else to do. `--work` names a folder on the disk that is to be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.machine import measure_machine
from benchmarks.speed.measuring import ROOT, measure
from benchmarks.speed.rows import MODULES, cases

RESULTS = Path(__file__).resolve().parent / "results"
_COLUMNS = ("name", "unit", "ours", "baseline", "ratio", "target", "met", "roofline_share", "peak_rss_mb", "spread")


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--growth", action="store_true", help="growing sizes instead of the table")
    parser.add_argument("--only", nargs="+", choices=MODULES, default=MODULES, help="these stages alone")
    parser.add_argument("--name", help="only cases whose name holds this")
    parser.add_argument("--work", type=Path, help="folder for the inputs; default: the system's temporary one")
    parser.add_argument("--out", type=Path, help="results file")
    asked = parser.parse_args(words)
    out = asked.out or RESULTS / ("growth.json" if asked.growth else "latest.json")
    machine = measure_machine()
    print(f"{machine.name}: {machine.gigaflops:.0f} GFLOP/s, {machine.gigabytes_a_second:.1f} GB/s of copy")
    print(f"load before: {os.getloadavg()[0]:.1f}")
    for module, case in cases("growing" if asked.growth else "cases"):
        if module in asked.only and (asked.name or "") in case.name:
            if case.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                print(f"left as it was, since this processor has no products in bfloat16: {case.name}")
                continue
            row = measure(module, case, machine, commit=commit(), work=asked.work)
            row["load"] = round(os.getloadavg()[0], 1)
            print(line(row), flush=True)
            _keep(out, row)
    print("\n" + table(_read(out)))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as markdown, and below them why targets are not met."""
    head = ["| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
    reasons = [f"- {row['name']}, not met: {row['why_not']}" for row in rows if row.get("why_not")]
    return "\n".join([*head, *(line(row) for row in rows), *([""] if reasons else []), *reasons])


def line(row: dict[str, Any]) -> str:
    """One row as markdown; what is not there is left empty."""
    shown = {True: "yes", False: "no", None: ""}
    cells = (
        shown[value] if value is None or isinstance(value, bool) else str(value) for value in map(row.get, _COLUMNS)
    )
    return "| " + " | ".join(cells) + " |"


def commit() -> str:
    """The commit that is measured, with `+` if files differ from it."""
    told = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or "unknown"


def _keep(path: Path, row: dict[str, Any]) -> None:
    """Put a row in the place of the one with its name, so that a command that is cut leaves what it measured."""
    rows = [old for old in _read(path) if old["name"] != row["name"]] + [row]
    order = [case.name for kind in ("cases", "growing") for _, case in cases(kind)]
    rows.sort(key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


if __name__ == "__main__":
    main()
