"""The cache of finished results of a long command."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy import work_folder
from benchmarks.accuracy.work_folder import cached_result, code_digest


def _compute(value: int) -> Any:
    return lambda: ({"numbers": np.arange(value)}, {"value": value})


def test_a_result_is_computed_once(tmp_path: Path) -> None:
    """The same identity returns the stored result; another identity is another result."""
    first = cached_result(tmp_path, "x", {"a": 1}, _compute(3))
    again = cached_result(tmp_path, "x", {"a": 1}, _compute(4))
    assert again.facts == first.facts == {"value": 3}
    np.testing.assert_array_equal(again.arrays["numbers"], [0, 1, 2])
    assert cached_result(tmp_path, "x", {"a": 2}, _compute(4)).facts == {"value": 4}


def test_a_damaged_result_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that cannot be read is replaced, and a warning is logged."""
    cached_result(tmp_path, "x", {}, _compute(3))
    next(tmp_path.glob("x-*.npz")).write_bytes(b"PK half a file")
    assert cached_result(tmp_path, "x", {}, _compute(4)).facts == {"value": 4}
    assert "Cannot read" in caplog.text


def test_a_failed_computation_leaves_no_file(tmp_path: Path) -> None:
    """Nothing is stored unless the computation finishes."""

    def broken() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_result(tmp_path, "x", {}, broken)
    assert not list(tmp_path.iterdir())


def test_the_digest_of_code_ignores_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments and docstrings do not change the digest, but a changed number does."""
    monkeypatch.setattr(work_folder, "_PACKAGE", tmp_path)
    digests = []
    for body in ("return 1", '"""One."""\n    return 1  # one', "return 2"):
        (tmp_path / "module.py").write_text(f"def f():\n    {body}\n")
        code_digest.cache_clear()
        digests.append(code_digest("module.py"))
    code_digest.cache_clear()
    assert digests[0] == digests[1] != digests[2]
