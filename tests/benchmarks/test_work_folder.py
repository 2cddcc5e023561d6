"""What a long command keeps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy import work_folder
from benchmarks.accuracy.work_folder import code_digest, remembered


def _make(value: int) -> Any:
    return lambda: ({"numbers": np.arange(value)}, {"value": value})


def test_a_result_is_made_once(tmp_path: Path) -> None:
    """The same identity gives what is there, another one is another result."""
    first = remembered(tmp_path, "x", {"a": 1}, _make(3))
    again = remembered(tmp_path, "x", {"a": 1}, _make(4))
    assert again.facts == first.facts == {"value": 3}
    np.testing.assert_array_equal(again.arrays["numbers"], [0, 1, 2])
    assert remembered(tmp_path, "x", {"a": 2}, _make(4)).facts == {"value": 4}


def test_a_damaged_result_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that cannot be read counts as none, and that is said."""
    remembered(tmp_path, "x", {}, _make(3))
    next(tmp_path.glob("x-*.npz")).write_bytes(b"PK half a file")
    assert remembered(tmp_path, "x", {}, _make(4)).facts == {"value": 4}
    assert "cannot be read" in caplog.text


def test_what_fails_leaves_no_file(tmp_path: Path) -> None:
    """Nothing is kept of what was not finished."""

    def broken() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remembered(tmp_path, "x", {}, broken)
    assert not list(tmp_path.iterdir())


def test_the_digest_of_code_is_of_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments and docstrings do not make a result another one, a changed number does."""
    monkeypatch.setattr(work_folder, "_PACKAGE", tmp_path)
    digests = []
    for body in ("return 1", '"""One."""\n    return 1  # one', "return 2"):
        (tmp_path / "module.py").write_text(f"def f():\n    {body}\n")
        code_digest.cache_clear()
        digests.append(code_digest("module.py"))
    code_digest.cache_clear()
    assert digests[0] == digests[1] != digests[2]
