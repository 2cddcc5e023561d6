"""The exceptions of the package, and the suggestions in their messages."""

import inspect

import pytest

from macrec_pipeline import errors
from macrec_pipeline.errors import MacrecError, did_you_mean


def _subclasses(error: type[Exception]) -> list[type[Exception]]:
    return [each for below in error.__subclasses__() for each in (below, *_subclasses(below))]


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    """Every exception is drawn once, one level below its base class, and has a docstring."""
    lines = [line for line in (errors.__doc__ or "").splitlines() if "──" in line]
    drawn = {line.split("── ")[1].split()[0]: line.index("── ") for line in lines}
    declared = [each for each in _subclasses(MacrecError) if each.__module__ == errors.__name__]
    assert sorted(drawn) == sorted(each.__name__ for each in declared)
    assert len(lines) == len(drawn) > 10
    for each in declared:
        (base,) = each.__bases__
        assert drawn[each.__name__] == (drawn[base.__name__] + 4 if base is not MacrecError else 5)
        assert inspect.cleandoc(each.__doc__ or "").endswith(".")


@pytest.mark.parametrize(
    ("name", "also", "suggestion"),
    [
        ("num_epoch", [], " Did you mean `num_epochs`?"),
        ("num_epochs_", ["seed"], " Did you mean `num_epochs` or `seed`?"),
        ("zzz", [], ""),
        ("zzz", ["seed"], " Did you mean `seed`?"),
    ],
)
def test_similar_names_are_suggested(name: str, also: list[str], suggestion: str) -> None:
    """A name that resembles nothing gets no suggestion, rather than a misleading one."""
    assert did_you_mean(name, ["num_epochs", "patience"], also=also) == suggestion
