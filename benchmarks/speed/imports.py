"""Import of `macrec_pipeline.definitions` in a new interpreter, as in each of Dagster's processes.

The baseline is `import dagster` alone, which every code location has to pay for.
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
_PRINT_MODULES = "; import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"


def cases() -> list[Case]:
    """Return the case of the table."""
    return [_case(target=3, repeats=7, baseline_repeats=7)]


def growing() -> list[Case]:
    """Return no cases, since there is no size."""
    return []


def tiny() -> list[Case]:
    """Return cases for the tests."""
    return cases()


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a statement loads in a new interpreter."""
    result = subprocess.run(
        [sys.executable, "-c", statement + _PRINT_MODULES],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stdout.split())


def _check_equal(pipeline: Any, baseline: Any) -> None:
    assert "dagster" in baseline & pipeline
    heavy = pipeline & set(HEAVY)
    assert not heavy, f"macrec_pipeline.definitions loads {sorted(heavy)}"


def _importing(statement: str) -> Timed:
    return lambda: loaded_by(statement)


def _case(**kwargs: Any) -> Case:
    return Case(
        name="import of macrec_pipeline.definitions",
        size=1,
        size_of="imports",
        prepare=lambda folder: Path(folder).mkdir(exist_ok=True),
        pipeline=lambda _: _importing("import macrec_pipeline.definitions"),
        baseline=lambda _: _importing("import dagster"),
        check_equal=_check_equal,
        **kwargs,
    )
