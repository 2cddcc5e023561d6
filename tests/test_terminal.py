"""The tables of the terminal fit its width and show texts unchanged."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from macrec_pipeline.terminal import (
    WIDE,
    answer_table,
    backtest_table,
    champion_change_lines,
    champion_lines,
    explanation_table,
    failures_table,
    history_lines,
    metrics_table,
)

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
    "a": {"title": "Lamp [red]", "image_path": "images/a.jpg"},
    "b": {"title": None, "image_path": None},
}


def _rendered(renderable: Any, width: int) -> str:
    screen = Console(width=width, no_color=True)
    with screen.capture() as captured:
        screen.print(renderable)
    return captured.get()


@pytest.mark.parametrize(("width", "with_intervals"), [(80, False), (WIDE, True)])
def test_the_metrics_fit_the_terminal(width: int, with_intervals: bool) -> None:
    """Each system is one line with all of its metrics, and with intervals if the terminal is wide enough."""
    lines = _rendered(metrics_table(METRICS, with_intervals=with_intervals), width).splitlines()
    for name in ("MACRec, fused", "MACRec, text route", "MACRec, image route", "SASRec", "item-kNN", "popularity"):
        (line,) = [line for line in lines if line.strip().startswith(name)]
        for number in ("0.1000", "0.2000", "0.3000", "0.2500", "0.1500", "0.500"):
            assert number in line
        assert ("[0.2800, 0.3200]" in line) == with_intervals
    assert "943 test users" in lines[0]
    assert "1,349 items" in lines[0]


def test_a_system_that_was_not_measured_has_no_line() -> None:
    """A model with one route has no line for the other route."""
    fused_only = {**METRICS, "systems": {"macrec": VALUES | INTERVALS}}
    assert "image route" not in _rendered(metrics_table(fused_only, with_intervals=False), 80)


def test_recommendations_show_titles_scores_and_images() -> None:
    """Square brackets in a title are not markup, and a missing title or image is stated."""
    answer = SimpleNamespace(item_ids=["a", "b"], scores=[0.5, -0.25], fallback="none")
    output = _rendered(answer_table(answer, CATALOGUE, data=Path("/data")), 100)
    assert "Lamp [red]" in output
    assert "/data/images/a.jpg" in output
    assert "-0.2500" in output
    assert "(no title)" in output


def test_an_explanation_is_one_line_per_item() -> None:
    """It has the route, the score of each route, and the shared codes with the item that has them."""
    shared = {"text": SimpleNamespace(item_id="a[1]", codes=(3, 0))}
    explanations = [
        SimpleNamespace(route="image", scores={"text": -1.5, "image": -0.25}, shared_codes=shared),
        SimpleNamespace(route="popular", scores={}, shared_codes={}),
    ]
    first, second = _rendered(
        explanation_table(SimpleNamespace(item_ids=["b", "c"], explanations=explanations)), 120
    ).splitlines()[1:3]
    assert first.split() == ["1", "b", "image", "text", "-1.5000,", "image", "-0.2500", "text", "3-0", "with", "a[1]"]
    assert second.split() == ["2", "c", "popular", "-", "none"]


def test_a_history_marks_unknown_items() -> None:
    """The user sees which items the model does not know and skips."""
    output = _rendered(history_lines(["a", "x"], CATALOGUE), 100)
    assert "a  Lamp [red]" in output
    assert "x  (not in the catalogue, skipped)" in output
    assert _rendered(history_lines([], CATALOGUE), 100).strip() == "No history."


def test_a_backtest_shows_periods_mean_and_deviation() -> None:
    """A backtest with one fold has no standard deviation; with two, each fold has its column."""
    fold = {"begin": 1_700_000_000_000, "num_test_users": 12, "systems": {"macrec": {"ndcg_10": 0.25}}}
    summary = {"mean": 0.25, "standard_deviation": None}
    document = {"dataset": "demo", "folds": [fold, fold], "systems": {"macrec": {"ndcg_10": summary}}}
    output = _rendered(backtest_table(document), 100)
    assert output.count("from 2023-11-14") == 2
    assert "12 users" in output
    (line,) = [line for line in output.splitlines() if line.strip().startswith("MACRec, fused")]
    assert line.split()[-4:] == ["0.2500", "0.2500", "0.2500", "-"]


def test_a_promotion_names_both_versions_and_how_to_undo_it() -> None:
    """The first champion has no predecessor; promoting the champion again changes nothing."""
    first, second = (SimpleNamespace(version=number, metrics={"hr_10": 0.1 * number}) for number in (1, 2))

    def lines(champion: Any, previous: Any, *, changed: bool = True) -> str:
        change = SimpleNamespace(name="macrec-demo", champion=champion, previous=previous, changed=changed)
        return _rendered(champion_change_lines(change, undo_command="macrec rollback demo"), 120)  # type: ignore[arg-type]

    output = lines(second, first)
    assert "macrec-demo: version 2 is now @champion; it was version 1." in output
    assert "HR@10    0.2000 now, 0.1000 before" in output
    assert "NDCG@10  - now, - before" in output
    assert "To undo this, run `macrec rollback demo`." in output
    assert "version 1 is now @champion; there was none before." in lines(first, None)
    assert lines(first, first, changed=False) == "macrec-demo: version 1 is already @champion; nothing changed.\n"


def test_an_evaluation_of_the_champion_names_its_units() -> None:
    """Shares are percentages, latency is in milliseconds per history, and the difference has its interval."""
    evaluation = {
        "champion": 3,
        "num_test_users": 1500,
        "hr_10": 0.5,
        "ndcg_10": 0.25,
        "popularity_ndcg_10": 0.125,
        "above_popularity": {"difference": 0.125, "low": 0.1, "high": 0.15},
        "coverage": 0.75,
        "unknown_targets": 0.02,
        "milliseconds": 1.5,
    }
    output = _rendered(champion_lines("demo", evaluation), 120)
    assert "macrec-demo@champion is version 3, evaluated on 1,500 test users." in output
    assert "difference +0.1250 [0.1000, 0.1500]" in output
    assert "2.0% of the test items" in output
    assert "1.50 ms per history" in output


def test_failed_downloads_are_counted_by_reason() -> None:
    """The most frequent reason comes first, with the first failure as its example."""
    failures = [("1", "http://x/1", "timeout", "30 s", 4), ("2", "http://x/2", "http_404", "Not Found", 1)]
    failures.append(("3", "http://x/3", "http_404", "Not Found", 1))
    lines = _rendered(failures_table(failures), 100).splitlines()
    assert lines[1].split() == ["http_404", "2", "http://x/2", "Not", "Found"]
    assert lines[2].split() == ["timeout", "1", "http://x/1", "30", "s"]
