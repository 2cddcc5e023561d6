"""Run the speed benchmarks, and write the results files.

    python -m benchmarks.speed.run                      the table of docs/performance.md, in results/latest.json
    python -m benchmarks.speed.run --growth             the same stages at growing sizes, in results/growth.json
    python -m benchmarks.speed.run --only evaluation    one stage; other rows of the file are kept

The machine should be idle. `--work` is a folder on the disk to measure.
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
_KEYS = ("name", "unit", "ours", "baseline", "ratio", "target", "met", "roofline_share", "peak_rss_mb", "spread")
# results files record the pipeline under the key "ours"
_COLUMNS = ["pipeline" if key == "ours" else key for key in _KEYS]


def main(words: Sequence[str] | None = None) -> None:
    """Measure the selected cases, and print and write their rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--growth", action="store_true", help="measure growing sizes instead of the table")
    parser.add_argument("--only", nargs="+", choices=MODULES, default=MODULES, help="measure only these stages")
    parser.add_argument("--name", help="measure only cases whose name contains this")
    parser.add_argument("--work", type=Path, help="folder for the inputs (default: the system's temporary folder)")
    parser.add_argument("--out", type=Path, help="results file")
    arguments = parser.parse_args(words)
    out = arguments.out or RESULTS / ("growth.json" if arguments.growth else "latest.json")
    machine = measure_machine()
    print(f"{machine.name}: {machine.gigaflops:.0f} GFLOP/s, {machine.gigabytes_per_second:.1f} GB/s copied")
    print(f"load before: {os.getloadavg()[0]:.1f}")
    for module, case in cases("growing" if arguments.growth else "cases"):
        if module in arguments.only and (arguments.name or "") in case.name:
            if case.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                print(f"skipped, because this processor only emulates bfloat16 products: {case.name}")
                continue
            row = measure(module, case, machine, commit=commit(), work=arguments.work)
            row["load"] = round(os.getloadavg()[0], 1)
            print(line(row), flush=True)
            _store_row(out, row)
    print("\n" + table(_read(out)))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Render the rows as a markdown table, followed by the reasons why targets are not met."""
    head = ["| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_KEYS)]
    reasons = [f"- {row['name']}, not met: {row['why_not']}" for row in rows if row.get("why_not")]
    return "\n".join([*head, *(line(row) for row in rows), *([""] if reasons else []), *reasons])


def line(row: dict[str, Any]) -> str:
    """Render one row as markdown; missing values are empty."""
    words = {True: "yes", False: "no", None: ""}
    cells = (words[value] if value is None or isinstance(value, bool) else str(value) for value in map(row.get, _KEYS))
    return "| " + " | ".join(cells) + " |"


def commit() -> str:
    """Return the measured commit, with `+` if files differ from it."""
    result = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or "unknown"


def _store_row(path: Path, row: dict[str, Any]) -> None:
    """Replace the row of the same name in the file, so that an interrupted command loses no finished row."""
    rows = [old for old in _read(path) if old["name"] != row["name"]] + [row]
    order = [case.name for kind in ("cases", "growing") for _, case in cases(kind)]
    rows.sort(key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


if __name__ == "__main__":
    main()
