"""A rolling backtest: trains and evaluates the pipeline at several points in time, each as if it were the present.

For each fold it keeps the evaluation report. `backtest.json` has every system's metrics for each fold, with their mean
and standard deviation over the folds. All folds share a home of their own below the data set's, so that embeddings are
computed once and no champion is touched. The results are for a person to read and are not published anywhere.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import dagster as dg

from macrec_pipeline.datasets import DatasetSpec
from macrec_pipeline.defs.runs.launch import LaunchRequest, launch
from macrec_pipeline.presets import parse_overrides
from macrec_pipeline.storage import AssetStore

LAST_ASSET = "evaluation_report"
RESULT = "backtest.json"


@dataclass(frozen=True)
class BacktestFolders:
    """The folders of one data set's backtest.

    Attributes:
        home: the state of the fold that is being run.
        results: the report of each fold in `fold-1`, `fold-2`, ..., and `backtest.json`.
    """

    home: Path
    results: Path


def backtest_folders(home: Path, dataset: str) -> BacktestFolders:
    """Return the folders of a data set's backtest, below the home."""
    return BacktestFolders(home / "backtest", home / "backtest-results" / dataset)


def fold_overrides(num_folds: int, test_share: float) -> list[tuple[str, ...]]:
    """Return the settings of each fold, oldest first; test periods are adjacent, each with `test_share` of the log."""
    return [
        (
            "split.method=global_time",
            f"split.test_share={test_share}",
            f"split.later_share={round(num_later * test_share, 9)}",
            "split.test_from=null",
            "split.test_until=null",
        )
        for num_later in reversed(range(num_folds))
    ]


def run_backtest(
    request: LaunchRequest, spec: DatasetSpec, *, num_folds: int, test_share: float, defs: dg.Definitions
) -> dict[str, Any]:
    """Run all folds, oldest first, and write `backtest.json` after each one.

    The results of an earlier backtest are deleted.

    Args:
        request: the data set, folders and overrides; `home` is the home that the backtest's own lies below.
        spec: the data set's file.
        num_folds: the number of test periods.
        test_share: the share of the interactions in each test period.
        defs: the definitions.

    Returns:
        The content of `backtest.json`.

    Raises:
        ConfigError: the test periods leave the oldest fold nothing to train on.
        MacrecError: the error of a fold's run; the results of the folds before it are kept.
    """
    folds = fold_overrides(num_folds, test_share)
    for overrides in folds:
        spec.config(parse_overrides([*request.overrides, *overrides]))
    folders = backtest_folders(request.home, request.dataset)
    shutil.rmtree(folders.results, ignore_errors=True)
    folders.results.mkdir(parents=True)
    results: list[dict[str, Any]] = []
    for number, overrides in enumerate(folds, start=1):
        fold_request = replace(
            request,
            home=folders.home,
            url=None,
            overrides=(*request.overrides, *overrides),
            until=LAST_ASSET,
        )
        launch(fold_request, defs=defs)
        store = AssetStore(folders.home, request.dataset)
        report = store.folder(LAST_ASSET)
        shutil.copytree(report, folders.results / f"fold-{number}")
        metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
        results.append(_fold_result(number, metrics, store.manifest("histories").details["split"]))
        document = {"dataset": request.dataset, "folds": results, "systems": summarize_folds(results)}
        _write(document, folders.results / RESULT)
    return document


def summarize_folds(folds: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return the mean and sample standard deviation over the folds, by system and metric; one fold has no deviation."""
    systems = folds[0]["systems"]
    return {
        system: {metric: _mean_and_deviation([fold["systems"][system][metric] for fold in folds]) for metric in metrics}
        for system, metrics in systems.items()
    }


def _mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": mean(values), "standard_deviation": stdev(values) if len(values) > 1 else None}


def _fold_result(number: int, metrics: dict[str, Any], period: dict[str, Any]) -> dict[str, Any]:
    """Return a fold's test period (ms since the epoch), number of test users, and metrics without their intervals."""
    systems = {
        system: {name: value for name, value in values.items() if isinstance(value, float)}
        for system, values in metrics["systems"].items()
    }
    return {
        "fold": number,
        "begin": period["begin"],
        "end": period["end"],
        "num_test_users": metrics["num_test_users"],
        "systems": systems,
    }


def _write(document: dict[str, Any], path: Path) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)  # noqa: PTH105 (atomic)
