"""The tables of docs/results.md are what the results files say."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.accuracy.tables import DOCUMENT, HERE, RESULTS, main, rendered, stale_tables

MARKED = "before\n<!-- table:instruments -->\nold\n<!-- /table -->\nafter\n"


def test_the_document_is_up_to_date() -> None:
    """Whoever changes a results file runs tables.py."""
    assert stale_tables(DOCUMENT.read_text(encoding="utf-8"), results=RESULTS) == []


def test_only_what_is_marked_is_written(tmp_path: Path) -> None:
    """The prose around a table stays, and writing twice changes nothing."""
    once = rendered(MARKED, results=tmp_path)
    assert once.startswith("before\n<!-- table:instruments -->\n`python benchmarks/accuracy/instruments.py")
    assert once.endswith("<!-- /table -->\nafter\n")
    assert "| MACRec, published (" in once
    assert rendered(once, results=tmp_path) == once


def test_a_data_set_without_results_says_so(tmp_path: Path) -> None:
    """A table that nobody has measured names the command."""
    text = rendered("<!-- table:ablations-demo -->\n<!-- /table -->", results=tmp_path)
    assert "Not measured yet: `python benchmarks/accuracy/ablations.py demo" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- table:weather -->\n<!-- /table -->", "there is no table 'weather'"),
        ("<!-- table:instruments -->\n", "is not closed"),
    ],
)
def test_a_wrong_marker_is_refused(text: str, said: str, tmp_path: Path) -> None:
    """A marker that would never be filled in is no silent loss."""
    with pytest.raises(ValueError, match=said):
        rendered(text, results=tmp_path)


def test_check_changes_nothing_and_fails_on_a_stale_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1 and the table's name; after writing, 0."""
    document = tmp_path / "results.md"
    document.write_text(MARKED)
    words = ["--results", str(tmp_path), "--document", str(document)]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--check"])
    assert stopped.value.code == 1
    assert "stale: instruments" in capsys.readouterr().err
    assert document.read_text() == MARKED
    main(words)
    with pytest.raises(SystemExit) as passed:
        main([*words, "--check"])
    assert passed.value.code == 0


@pytest.mark.parametrize("script", ["ablations.py", "tables.py"])
def test_the_scripts_start_from_any_folder(script: str, tmp_path: Path) -> None:
    """They are run by their path, from a clone."""
    command = [sys.executable, str(HERE / script), "--help"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
