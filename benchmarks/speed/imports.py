"""Import of `macrec_pipeline.definitions` in a fresh interpreter, as each of Dagster's processes does.

The baseline is `import dagster` alone, which no code location can go below.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.speed.case import Case, Timed
from benchmarks.speed.measuring import ROOT

HEAVY = ("torch", "transformers", "faiss", "mlflow", "matplotlib", "sentence_transformers", "open_clip")
_TELL = "; import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"


def cases() -> list[Case]:
    """The table."""
    return [_case(target=3, repeats=7, baseline_repeats=7)]


def growing() -> list[Case]:
    """Nothing grows."""
    return []


def tiny() -> list[Case]:
    """For the tests."""
    return cases()


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a statement loads in a fresh interpreter."""
    told = subprocess.run(
        [sys.executable, "-c", statement + _TELL],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(told.stdout.split())


def _same(ours: Any, theirs: Any) -> None:
    assert "dagster" in theirs & ours
    heavy = ours & set(HEAVY)
    assert not heavy, f"macrec_pipeline.definitions loads {sorted(heavy)}"


def _importing(statement: str) -> Timed:
    return lambda: loaded_by(statement)


def _case(**kwargs: Any) -> Case:
    return Case(
        name="import of macrec_pipeline.definitions",
        size=1,
        size_of="imports",
        prepare=lambda folder: Path(folder).mkdir(exist_ok=True),
        ours=lambda _: _importing("import macrec_pipeline.definitions"),
        baseline=lambda _: _importing("import dagster"),
        same=_same,
        **kwargs,
    )
