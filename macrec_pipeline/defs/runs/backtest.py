"""A rolling backtest: the pipeline trained and evaluated at several moments of the log, each as if it were today.

In: a data set and how many periods. Out: a folder with the report of each fold, and `backtest.json`, which has every
system's metrics by fold, their mean and their standard deviation over the folds. All folds share one home of their own,
below the folder that the data set's state is in, so that vectors are made once and nobody's champion is touched; what
they leave is for a person to read, and is published nowhere.
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
    """Where a backtest works and what it leaves.

    Attributes:
        home: the state of the fold that is run.
        results: `fold-1`, `fold-2`, ... with the report of each, and `backtest.json`.
    """

    home: Path
    results: Path


def backtest_folders(home: Path, dataset: str) -> BacktestFolders:
    """The folders of one data set's backtest below the home of all state."""
    return BacktestFolders(home / "backtest", home / "backtest-results" / dataset)


def fold_settings(num_folds: int, test_share: float) -> list[tuple[str, ...]]:
    """Overrides of each fold, the oldest first: periods of `test_share` of the interactions that touch each other."""
    return [
        (
            "split.method=global_time",
            f"split.test_share={test_share}",
            f"split.later_share={round(later * test_share, 9)}",
            "split.test_from=null",
            "split.test_until=null",
        )
        for later in reversed(range(num_folds))
    ]


def run_backtest(
    request: LaunchRequest, spec: DatasetSpec, *, num_folds: int, test_share: float, defs: dg.Definitions
) -> dict[str, Any]:
    """Run all folds, oldest first, and write `backtest.json` after each; the results of an earlier backtest go.

    Args:
        request: data set, folders and overrides; the home is that of all state.
        spec: the data set.
        num_folds: test periods.
        test_share: share of the interactions in each.
        defs: the definitions.

    Returns:
        What `backtest.json` holds.

    Raises:
        ConfigError: the periods leave nothing to train the oldest fold on.
        MacrecError: what a fold's run raises; the folds before it are kept.
    """
    folds = fold_settings(num_folds, test_share)
    for settings in folds:
        spec.config(parse_overrides([*request.overrides, *settings]))
    folders = backtest_folders(request.home, request.dataset)
    shutil.rmtree(folders.results, ignore_errors=True)
    folders.results.mkdir(parents=True)
    results: list[dict[str, Any]] = []
    for number, settings in enumerate(folds, start=1):
        own = replace(request, home=folders.home, url=None, overrides=(*request.overrides, *settings), until=LAST_ASSET)
        launch(own, defs=defs)
        store = AssetStore(folders.home, request.dataset)
        report = store.folder(LAST_ASSET)
        shutil.copytree(report, folders.results / f"fold-{number}")
        metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
        results.append(_fold(number, metrics, store.manifest("histories").details["split"]))
        document = {"dataset": request.dataset, "folds": results, "systems": summarized(results)}
        _write(document, folders.results / RESULT)
    return document


def summarized(folds: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """System -> metric -> mean and sample standard deviation over the folds, which is None for one fold."""
    first = folds[0]["systems"]
    return {
        system: {metric: _mean_and_deviation([fold["systems"][system][metric] for fold in folds]) for metric in metrics}
        for system, metrics in first.items()
    }


def _mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": mean(values), "standard_deviation": stdev(values) if len(values) > 1 else None}


def _fold(number: int, metrics: dict[str, Any], period: dict[str, Any]) -> dict[str, Any]:
    """One fold: its period in ms since the epoch, its test users, and each system's metrics without intervals."""
    systems = {
        system: {name: value for name, value in values.items() if isinstance(value, float)}
        for system, values in metrics["systems"].items()
    }
    borders = {"begin": period["begin"], "end": period["end"]}
    return {"fold": number, **borders, "num_test_users": metrics["num_test_users"], "systems": systems}


def _write(document: dict[str, Any], path: Path) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)  # noqa: PTH105 (atomic)
