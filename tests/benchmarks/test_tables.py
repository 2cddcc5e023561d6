"""The tables of docs/results.md are generated from the results files."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.accuracy.tables import DOCUMENT, HERE, RESULTS, main, rendered, stale_tables

MARKED = "before\n<!-- table:instruments -->\nold\n<!-- /table -->\nafter\n"


def test_the_document_is_up_to_date() -> None:
    """If this fails, run tables.py."""
    assert stale_tables(DOCUMENT.read_text(encoding="utf-8"), results=RESULTS) == []


def test_only_marked_tables_are_written(tmp_path: Path) -> None:
    """The text around a table stays, and a second update changes nothing."""
    once = rendered(MARKED, results=tmp_path)
    assert once.startswith("before\n<!-- table:instruments -->\n`python benchmarks/accuracy/instruments.py")
    assert once.endswith("<!-- /table -->\nafter\n")
    assert "| MACRec, published (" in once
    assert rendered(once, results=tmp_path) == once


def test_a_data_set_without_results_says_so(tmp_path: Path) -> None:
    """The table shows the command that measures it."""
    text = rendered("<!-- table:ablations-demo -->\n<!-- /table -->", results=tmp_path)
    assert "Not measured yet: `python benchmarks/accuracy/ablations.py demo" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table:weather -->\n<!-- /table -->", "unknown table 'weather'"),
        ("<!-- table:instruments -->\n", "is not closed"),
    ],
)
def test_an_invalid_marker_is_rejected(text: str, message: str, tmp_path: Path) -> None:
    """A marker that would never be filled in raises an error."""
    with pytest.raises(ValueError, match=message):
        rendered(text, results=tmp_path)


def test_check_changes_nothing_and_fails_on_an_outdated_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status is 1, and 0 after the update."""
    document = tmp_path / "results.md"
    document.write_text(MARKED)
    words = ["--results", str(tmp_path), "--document", str(document)]
    with pytest.raises(SystemExit) as exit_info:
        main([*words, "--check"])
    assert exit_info.value.code == 1
    assert "outdated tables: instruments" in capsys.readouterr().err
    assert document.read_text() == MARKED
    main(words)
    with pytest.raises(SystemExit) as exit_info:
        main([*words, "--check"])
    assert exit_info.value.code == 0


@pytest.mark.parametrize("script", ["ablations.py", "tables.py", "ties.py"])
def test_the_scripts_start_from_any_folder(script: str, tmp_path: Path) -> None:
    """The scripts can be run by path from any working directory."""
    command = [sys.executable, str(HERE / script), "--help"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
