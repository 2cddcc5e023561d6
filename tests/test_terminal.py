"""What the terminal shows fits it, and shows texts as they are."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from macrec_pipeline.terminal import WIDE, answer_table, history_lines, metrics_table

VALUES = {"hr_1": 0.1, "hr_5": 0.2, "hr_10": 0.3, "ndcg_10": 0.25, "mrr": 0.15, "coverage": 0.5}
INTERVALS = {"hr_10_ci": [0.28, 0.32], "ndcg_10_ci": [0.24, 0.26]}
SYSTEMS = ("macrec", "macrec_text", "macrec_image", "sasrec", "item_knn", "popularity")
METRICS = {
    "dataset": "movielens-100k",
    "num_test_users": 943,
    "num_items": 1349,
    "systems": dict.fromkeys(SYSTEMS, VALUES | INTERVALS),
}
CATALOGUE: dict[str, dict[str, Any]] = {
    "a": {"title": "Lamp [red]", "image_path": "pictures/a.jpg"},
    "b": {"title": None, "image_path": None},
}


def _shown(renderable: Any, width: int) -> str:
    screen = Console(width=width, no_color=True)
    with screen.capture() as captured:
        screen.print(renderable)
    return captured.get()


@pytest.mark.parametrize(("width", "with_intervals"), [(80, False), (WIDE, True)])
def test_the_metrics_fit_the_terminal(width: int, with_intervals: bool) -> None:
    """Each system is one line with all its numbers, with intervals where there is room for them."""
    lines = _shown(metrics_table(METRICS, with_intervals=with_intervals), width).splitlines()
    for name in ("MACRec, fused", "MACRec, text route", "MACRec, image route", "SASRec", "item-kNN", "popularity"):
        (line,) = [line for line in lines if line.strip().startswith(name)]
        for number in ("0.1000", "0.2000", "0.3000", "0.2500", "0.1500", "0.500"):
            assert number in line
        assert ("[0.2800, 0.3200]" in line) == with_intervals
    assert "943 test users" in lines[0]
    assert "1,349 items" in lines[0]


def test_a_system_that_was_not_measured_has_no_line() -> None:
    """A model with one route has no line for the other."""
    only = {**METRICS, "systems": {"macrec": VALUES | INTERVALS}}
    assert "image route" not in _shown(metrics_table(only, with_intervals=False), 80)


def test_an_answer_shows_titles_scores_and_pictures() -> None:
    """Square brackets in a title are text, not markup; an item without title or picture says so."""
    answer = SimpleNamespace(item_ids=["a", "b"], scores=[0.5, -0.25], fallback="none")
    shown = _shown(answer_table(answer, CATALOGUE, data=Path("/data")), 100)
    assert "Lamp [red]" in shown
    assert "/data/pictures/a.jpg" in shown
    assert "-0.2500" in shown
    assert "(no title)" in shown


def test_a_history_marks_what_the_model_does_not_know() -> None:
    """Unknown items are skipped, and the person is told which."""
    shown = _shown(history_lines(["a", "x"], CATALOGUE), 100)
    assert "a  Lamp [red]" in shown
    assert "x  (not in the catalogue, skipped)" in shown
    assert _shown(history_lines([], CATALOGUE), 100).strip() == "No history."
