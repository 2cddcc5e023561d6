"""What the simulated year computes from its weeks."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.year import Week, baseline_lists, ndcg_at, read_weeks, summarize, write_results

WEEK = Week(
    week=0,
    delivery="as usual",
    stops=0,
    refused=0,
    errors=(),
    rows=10,
    sold=5,
    not_sold=0,
    users=4,
    without_row=0,
    moved_ids=0,
    too_short=1,
    learnt=1.0,
    served="models:/macrec-shop/1",
    registered="models:/macrec-shop/1",
    decision="First version.",
    seconds={"refresh": 10.0, "batch_recommendations": 2.0, "prune": 1.0},
    home_bytes=5_000_000,
    ndcg={"served model": 0.2, "item-kNN": 0.15, "popularity": 0.05},
    num_judged=3,
)


def test_ndcg_with_several_relevant_items() -> None:
    """Against values worked out by hand; a list that has every relevant item first reaches 1."""
    assert ndcg_at(["a", "b", "c"], {"a", "b"}) == pytest.approx(1.0)
    assert ndcg_at(["x", "a"], {"a"}) == pytest.approx(1 / np.log2(3))
    assert ndcg_at(["a", "x", "b"], {"a", "b"}) == pytest.approx((1 + 0.5) / (1 + 1 / np.log2(3)))
    assert ndcg_at([], {"a"}) == 0.0
    assert ndcg_at(["x", "a"], {"a"}, cutoff=1) == 0.0


def test_baselines_count_the_whole_log_and_recommend_only_what_is_sold() -> None:
    """Nothing is held out: the newest interaction counts, and what a user has had is left out."""
    histories = {"u1": "abc", "u2": "abc", "u3": "abd", "u4": "a"}
    rows = [(user, item) for user, items in histories.items() for item in items]
    log = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    found = baseline_lists(log, {"a", "b", "c", "new"}, ["u3", "u4"])
    assert found["popularity"] == {"u3": ["c", "new"], "u4": ["b", "c", "new"]}
    assert found["item-kNN"]["u4"][:2] == ["b", "c"], "b followed a three times, c twice"
    assert "d" not in found["item-kNN"]["u4"], "not sold"


def test_finished_weeks_are_read_again_and_half_a_line_is_not(tmp_path: Path) -> None:
    record = tmp_path / "weeks.jsonl"
    assert read_weeks(record) == []
    lines = [json.dumps(asdict(replace(WEEK, week=number))) for number in range(2)]
    record.write_text(f"{lines[0]}\n{lines[1][:40]}", encoding="utf-8")
    assert [week.week for week in read_weeks(record)] == [0]
    assert record.read_text(encoding="utf-8") == f"{lines[0]}\n"
    assert replace(read_weeks(record)[0], errors=()) == WEEK


def test_the_summary_compares_the_same_weeks_and_the_table_names_what_stopped(tmp_path: Path) -> None:
    weeks = [
        replace(WEEK, ndcg={"served model": 0.2, "full retrain": 0.25, "item-kNN": 0.1, "popularity": 0.05}),
        replace(WEEK, week=1, stops=1, errors=("refresh: DataError: too few rows",), not_sold=3, learnt=0.5),
        replace(WEEK, week=2, learnt=None, delivery="no interactions", ndcg={}, num_judged=0),
    ]
    summary = summarize(weeks)
    assert summary["stops"] == 1
    assert summary["recommended items that are not sold"] == 3
    assert summary["share of the newest week learnt, mean"] == pytest.approx(0.75)
    assert summary["served / full retrain, same weeks"] == pytest.approx(0.8)
    assert summary["NDCG@10, served model"] == pytest.approx(0.2)
    write_results(weeks, tmp_path, command="python -m benchmarks.year")
    text = (tmp_path / "year.md").read_text(encoding="utf-8")
    assert "| stops | 1 |" in text
    assert "- Week 1: refresh: DataError: too few rows" in text
    assert (tmp_path / "year.csv").read_text(encoding="utf-8").count("\n") == 4
    assert (tmp_path / "year.png").read_bytes().startswith(b"\x89PNG")
