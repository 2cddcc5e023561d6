"""The stages of the table. To add one, write a module with `cases`, `growing` and `tiny`, and list it here."""

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
    "image_decoding",
    "imports",
)


def row_module(name: str) -> ModuleType:
    """Import a stage: `cases()` are for the table, `growing()` for the cost by size, `tiny()` for the tests."""
    return import_module(f"benchmarks.speed.{name}")


def cases(kind: str) -> Iterator[tuple[str, Case]]:
    """Yield all cases of a kind ("cases", "growing" or "tiny"), each with the name of its module."""
    for module in MODULES:
        for case in getattr(row_module(module), kind)():
            yield module, case


def find(module: str, name: str) -> Case:
    """Find a case of a module by its name, in any kind."""
    candidates = (case for kind in ("cases", "growing", "tiny") for case in getattr(row_module(module), kind)())
    case: Case = next(case for case in candidates if case.name == name)
    return case
