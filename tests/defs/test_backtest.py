"""Rolling backtest: adjacent periods, one report per fold, and a spread computed by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from macrec_pipeline.datasets import load_dataset
from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.runs import backtest
from macrec_pipeline.defs.runs.backtest import backtest_folders, fold_overrides, run_backtest, summarize_folds
from macrec_pipeline.defs.runs.launch import LaunchRequest, launch
from macrec_pipeline.errors import ConfigError
from macrec_pipeline.presets import parse_overrides
from macrec_pipeline.storage import AssetStore


def _fold(value: float) -> dict[str, Any]:
    return {"systems": {"macrec": {"ndcg_10": value}, "popularity": {"ndcg_10": 0.1}}}


def test_the_spread_over_folds() -> None:
    """The mean and sample standard deviation are reported; one fold has no deviation."""
    summary = summarize_folds([_fold(0.2), _fold(0.4), _fold(0.6)])
    assert summary["macrec"]["ndcg_10"] == pytest.approx({"mean": 0.4, "standard_deviation": 0.2})
    assert summary["popularity"]["ndcg_10"] == pytest.approx({"mean": 0.1, "standard_deviation": 0.0})
    assert summarize_folds([_fold(0.2)])["macrec"]["ndcg_10"] == {"mean": 0.2, "standard_deviation": None}


def test_folds_come_oldest_first() -> None:
    """Each fold leaves out what comes after it, the last one nothing. Dates in the data set's file are not used."""
    splits = [parse_overrides(settings)["split"] for settings in fold_overrides(3, 0.1)]
    assert [split["later_share"] for split in splits] == [0.2, 0.1, 0.0]
    assert all(split["method"] == "global_time" and split["test_from"] is None for split in splits)


def test_every_fold_is_a_run_up_to_its_report(
    settings: Settings, partition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fold builds real histories for its own period. Training is replaced by a report with fixed figures."""

    def until_histories(request: LaunchRequest, **arguments: Any) -> str:
        assert request.until == "evaluation_report"
        run_id = launch(
            LaunchRequest(request.dataset, request.home, request.data, request.overrides, until="histories"),
            **arguments,
        )
        store = AssetStore(request.home, request.dataset)
        tested = int(store.read_table("histories")["tested"].sum())
        with store.new_folder("evaluation_report") as folder:
            values = {"ndcg_10": tested / 10, "ndcg_10_ci": [0.0, 1.0]}
            (folder / "metrics.json").write_text(json.dumps({"num_test_users": tested, "systems": {"macrec": values}}))
        return run_id

    rows = [
        f"u{user},i{(user + 2 * step) % 12:02d},{1_600_000_000 + 10 * step + user}"
        for user in range(10)
        for step in range(6)
    ]
    (settings.data_folder() / "log.csv").write_text(
        "\n".join(["user,item,time", *rows])
    )  # every user is active at all times
    monkeypatch.setattr(backtest, "launch", until_histories)
    home = settings.home_folder()
    request = LaunchRequest(partition, home, settings.data_folder())
    document = run_backtest(request, load_dataset(partition), num_folds=2, test_share=0.2, defs=defs)
    older, newer = document["folds"]
    first = 1_600_000_000_000
    assert (older["begin"], older["end"]) == (first + 36_000, first + 48_000)  # interactions 36 and 48 of 60
    assert (newer["begin"], newer["end"]) == (first + 48_000, None)
    assert (older["num_test_users"], newer["num_test_users"]) == (10, 10)
    assert older["systems"] == {"macrec": {"ndcg_10": 1.0}}
    results = backtest_folders(home, partition).results
    assert json.loads((results / "backtest.json").read_text()) == document
    assert sorted(path.name for path in results.iterdir()) == ["backtest.json", "fold-1", "fold-2"]
    assert not Path(home / partition).exists()  # the state of the data set itself is not touched


def test_periods_that_leave_no_training_data_are_refused_before_a_run(settings: Settings, partition: str) -> None:
    """Five test periods of a fifth each use up the whole log."""
    request = LaunchRequest(partition, settings.home_folder(), settings.data_folder())
    with pytest.raises(ConfigError, match=r"test_share \+ later_share must be less than 1"):
        run_backtest(request, load_dataset(partition), num_folds=5, test_share=0.2, defs=defs)
    assert not backtest_folders(request.home, partition).results.exists()
