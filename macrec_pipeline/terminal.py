"""What the `macrec` command displays: tables and texts for a terminal, and which log messages reach it.

The functions take metrics, recommendations and item records, and return renderables of rich; they print nothing.
"""

import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from macrec_pipeline.runtime.text_sanitizing import one_line

if TYPE_CHECKING:
    from macrec_pipeline.defs.retention import PruneReport
    from macrec_pipeline.tracking import ChampionChange

WIDE = 115
"""Width in characters that the table of metrics needs with its confidence intervals."""

_SYSTEMS = {
    "macrec": "MACRec, fused",
    "macrec_text": "MACRec, text route",
    "macrec_image": "MACRec, image route",
    "sasrec": "SASRec",
    "item_knn": "item-kNN",
    "popularity": "popularity",
}


def console() -> Console:
    """Return a console on standard output.

    Output to a file or pipe is 140 characters wide (or `COLUMNS`), because rich would wrap tables at 80.
    """
    return Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "140")))


def quieten_libraries() -> None:
    """Hide the warnings and log messages of libraries; those of this package still appear."""
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", module=r"macrec_pipeline\.")
    for name in ("mlflow", "alembic", "sqlalchemy", "dagster"):
        logging.getLogger(name).setLevel(logging.ERROR)


def show_finished_assets() -> None:
    """Log a line on standard error for each asset that finishes."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("macrec_pipeline")
    package.addHandler(handler)
    package.setLevel(logging.INFO)


def metrics_table(metrics: Mapping[str, Any], *, with_intervals: bool) -> Table:
    """Return the metrics of every system of a `metrics.json`, one row per system, seen items allowed.

    Args:
        metrics: the content of `metrics.json`.
        with_intervals: add confidence intervals, which need a terminal of `WIDE` characters.
    """
    table = Table(
        title=f"{metrics['dataset']}: {metrics['num_test_users']:,} test users, {metrics['num_items']:,} items ranked",
        caption="Seen items may be recommended."
        + (" In brackets: bootstrap confidence intervals." if with_intervals else ""),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("system")
    for heading in ("HR@1", "HR@5", "HR@10", "NDCG@10", "MRR", "coverage"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, title in _SYSTEMS.items():
        values = metrics["systems"].get(name)
        if values is not None:
            cells = [f"{values[key]:.4f}" for key in ("hr_1", "hr_5", "hr_10", "ndcg_10", "mrr")]
            if with_intervals:
                cells[2] += _interval(values["hr_10_ci"])
                cells[3] += _interval(values["ndcg_10_ci"])
            table.add_row(title, *cells, f"{values['coverage']:.3f}", style="bold" if name == "macrec" else None)
    return table


def backtest_table(document: Mapping[str, Any]) -> Table:
    """Return NDCG@10 per system and fold of a `backtest.json`, with mean and standard deviation."""
    table = Table(
        title=f"{document['dataset']}: NDCG@10 per test period, seen items may be recommended",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("system")
    for fold in document["folds"]:
        begin = datetime.fromtimestamp(fold["begin"] / 1000, tz=UTC)
        table.add_column(f"from {begin:%Y-%m-%d}\n{fold['num_test_users']:,} users", justify="right")
    table.add_column("mean", justify="right")
    table.add_column("std. dev.", justify="right")
    for name, title in _SYSTEMS.items():
        if name in document["systems"]:
            summary = document["systems"][name]["ndcg_10"]
            cells = [f"{fold['systems'][name]['ndcg_10']:.4f}" for fold in document["folds"]]
            spread = "-" if summary["standard_deviation"] is None else f"{summary['standard_deviation']:.4f}"
            style = "bold" if name == "macrec" else None
            table.add_row(title, *cells, f"{summary['mean']:.4f}", spread, style=style)
    return table


def history_lines(history: Sequence[str], catalogue: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the items of a history with their titles, as rich markup."""
    if not history:
        return "No history."
    titles = {item_id: _as_markup(_title(catalogue[item_id])) for item_id in history if item_id in catalogue}
    lines = [
        f"  {_as_markup(item_id)}  {titles.get(item_id, '(not in the catalogue, skipped)')}" for item_id in history
    ]
    return "\n".join(["History, oldest first:", *lines])


def item_line(item_id: str, catalogue: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the id and the title of an item in the catalogue, as rich markup."""
    return f"{_as_markup(item_id)} {_as_markup(_title(catalogue[item_id]))}"


def answer_table(answer: Any, catalogue: Mapping[str, Mapping[str, Any]], *, data: Path) -> Table:
    """Return the recommended items, best first, with titles, scores and paths of their images.

    Args:
        answer: recommendations for one history, with `item_ids` and `scores`.
        catalogue: item ID -> item record.
        data: the data folder, which image paths are relative to.
    """
    table = Table("rank", "id", "title", "score", "image", box=None, pad_edge=False)
    for rank, (item_id, score) in enumerate(zip(answer.item_ids, answer.scores, strict=True), start=1):
        item = catalogue[item_id]
        image = str(data / item["image_path"]) if item.get("image_path") else "none"
        table.add_row(str(rank), _as_markup(item_id), _as_markup(_title(item)), f"{score:.4f}", _as_markup(image))
    return table


def explanation_table(answer: Any) -> Table:
    """Return why each item is recommended: the route that carried it, its score per route, and the codes it shares.

    Args:
        answer: recommendations for one history, with `item_ids` and `explanations`.
    """
    table = Table("rank", "id", "route", "score per route", "shared codes", box=None, pad_edge=False)
    for rank, (item_id, explanation) in enumerate(zip(answer.item_ids, answer.explanations, strict=True), start=1):
        scores = [f"{route} {score:.4f}" for route, score in explanation.scores.items()]
        shared = [
            f"{modality} {'-'.join(map(str, found.codes))} with {_as_markup(found.item_id)}"
            for modality, found in explanation.shared_codes.items()
        ]
        table.add_row(
            str(rank), _as_markup(item_id), explanation.route, ", ".join(scores) or "-", ", ".join(shared) or "none"
        )
    return table


def champion_change_lines(change: "ChampionChange", *, undo_command: str) -> str:
    """Return who is champion, who was before, and the test metrics of both, as rich markup.

    Args:
        change: the promotion or rollback that took place.
        undo_command: the command that takes it back.
    """
    champion, previous = change.champion, change.previous
    if not change.changed:
        return f"{change.name}: version {champion.version} is already @champion; nothing changed."
    was = f"it was version {previous.version}" if previous else "there was none before"
    lines = [f"{change.name}: version {champion.version} is now @champion; {was}."]
    for metric, label in (("hr_10", "HR@10"), ("ndcg_10", "NDCG@10")):
        values = [
            f"{one.metrics[metric]:.4f}" if one and metric in one.metrics else "-" for one in (champion, previous)
        ]
        lines.append(f"  {label:<8} {values[0]} now, {values[1]} before, each on the test users of its own run")
    return "\n".join(
        [*lines, f"To undo this, run `{undo_command}`. Services use the champion once they load it again."]
    )


def champion_lines(dataset: str, evaluation: Mapping[str, Any]) -> str:
    """Return the champion's metrics in an `evaluation.json`, as rich markup."""
    difference = evaluation["above_popularity"]
    interval = _interval((difference["low"], difference["high"]))
    return "\n".join(
        [
            f"macrec-{dataset}@champion is version {evaluation['champion']}, evaluated on "
            f"{evaluation['num_test_users']:,} test users.",
            f"  HR@10            {evaluation['hr_10']:.4f}",
            f"  NDCG@10          {evaluation['ndcg_10']:.4f}; most popular items "
            f"{evaluation['popularity_ndcg_10']:.4f}, difference {difference['difference']:+.4f}{interval}",
            f"  coverage         {evaluation['coverage']:.3f} of the catalogue",
            f"  unknown targets  {evaluation['unknown_targets']:.1%} of the test items are not in the model",
            f"  latency          {evaluation['milliseconds']:.2f} ms per history",
        ]
    )


def removals_table(report: "PruneReport") -> Table:
    """Returns what retention removes, one row per thing, with its reason."""
    table = Table("what", "name", "size", "reason", box=None, pad_edge=False)
    for removal in report.removals:
        size = f"{removal.num_bytes / 1e6:.1f} MB" if removal.num_bytes else "-"
        table.add_row(removal.kind, _as_markup(removal.name), size, _as_markup(removal.reason))
    return table


def failures_table(failures: Sequence[tuple[str, str, str, str, int]]) -> Table:
    """Return the reasons why images could not be downloaded, most frequent first, each with an example.

    Args:
        failures: rows of the table `FETCH_FAILURES`: item ID, URL, reason, detail, attempts.
    """
    counts = Counter(reason for _, _, reason, _, _ in failures)
    examples = {reason: (url, detail) for _, url, reason, detail, _ in reversed(failures)}
    table = Table("reason", "images", "example URL", "detail", box=None, pad_edge=False)
    for reason, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        table.add_row(escape(reason), f"{count:,}", *map(_as_markup, examples[reason]))
    return table


def _interval(low_high: Sequence[float]) -> str:
    return f" \\[{low_high[0]:.4f}, {low_high[1]:.4f}]"


def _as_markup(text: str) -> str:
    """Escape a text from a catalogue, so that it can neither format the output nor control the terminal."""
    return escape(one_line(text))


def _title(item: Mapping[str, Any]) -> str:
    return str(item.get("title") or "(no title)")
