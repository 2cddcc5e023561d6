"""The rows of the table: one module a stage. Add a module with `cases`, `growing` and `tiny`, and name it here."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

from benchmarks.speed.case import Case

MODULES = (
    "quantizer",
    "training",
    "decoding",
    "k_core",
    "assignment",
    "embedding_table",
    "evaluation",
    "pictures",
    "imports",
)


def row_module(name: str) -> ModuleType:
    """The module of a stage: `cases()` for the table, `growing()` for the cost by size, `tiny()` for the tests."""
    return import_module(f"benchmarks.speed.{name}")


def cases(kind: str) -> Iterator[tuple[str, Case]]:
    """Every stage's cases of a kind ("cases", "growing", "tiny"), each with its module."""
    for module in MODULES:
        for case in getattr(row_module(module), kind)():
            yield module, case


def find(module: str, name: str) -> Case:
    """The case of a module by its name, of whatever kind."""
    found = (case for kind in ("cases", "growing", "tiny") for case in getattr(row_module(module), kind)())
    case: Case = next(case for case in found if case.name == name)
    return case
