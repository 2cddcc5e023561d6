"""What the `macrec` command shows: tables for a terminal, and which of the libraries' own words reach it.

In: metrics, recommendations, item records. Out: renderables of rich; nothing is printed here.
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
    from macrec_pipeline.tracking import Decision

WIDE = 115
"""Columns that the table of metrics takes with its intervals."""

_SYSTEMS = {
    "macrec": "MACRec, fused",
    "macrec_text": "MACRec, text route",
    "macrec_image": "MACRec, image route",
    "sasrec": "SASRec",
    "item_knn": "item-kNN",
    "popularity": "popularity",
}


def console() -> Console:
    """Standard output; without a terminal wide enough for every table, where rich would fold them to 80 columns."""
    return Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "140")))


def quieten_libraries() -> None:
    """What libraries say about themselves is no news to a person; warnings of this package still show."""
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", module=r"macrec_pipeline\.")
    for name in ("mlflow", "alembic", "sqlalchemy", "dagster"):
        logging.getLogger(name).setLevel(logging.ERROR)


def show_finished_assets() -> None:
    """Write a line on standard error when an asset is finished."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("macrec_pipeline")
    package.addHandler(handler)
    package.setLevel(logging.INFO)


def metrics_table(metrics: Mapping[str, Any], *, with_intervals: bool) -> Table:
    """The systems of a `metrics.json`, seen items allowed; intervals need `WIDE` columns."""
    table = Table(
        title=f"{metrics['dataset']}: {metrics['num_test_users']:,} test users, {metrics['num_items']:,} items ranked",
        caption="Seen items allowed." + (" In brackets: bootstrap confidence intervals." if with_intervals else ""),
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
    """NDCG@10 of every system by fold, with mean and standard deviation, from a `backtest.json`."""
    table = Table(
        title=f"{document['dataset']}: NDCG@10 by test period, seen items allowed",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("system")
    for fold in document["folds"]:
        begin = datetime.fromtimestamp(fold["begin"] / 1000, tz=UTC)
        table.add_column(f"from {begin:%Y-%m-%d}\n{fold['num_test_users']:,} users", justify="right")
    table.add_column("mean", justify="right")
    table.add_column("deviation", justify="right")
    for name, title in _SYSTEMS.items():
        if name in document["systems"]:
            found = document["systems"][name]["ndcg_10"]
            cells = [f"{fold['systems'][name]['ndcg_10']:.4f}" for fold in document["folds"]]
            spread = "-" if found["standard_deviation"] is None else f"{found['standard_deviation']:.4f}"
            style = "bold" if name == "macrec" else None
            table.add_row(title, *cells, f"{found['mean']:.4f}", spread, style=style)
    return table


def history_lines(history: Sequence[str], catalogue: Mapping[str, Mapping[str, Any]]) -> str:
    """The items of a request with their titles, as markup of rich."""
    if not history:
        return "No history."
    known = {item_id: _shown(_title(catalogue[item_id])) for item_id in history if item_id in catalogue}
    lines = [f"  {_shown(item_id)}  {known.get(item_id, '(not in the catalogue, skipped)')}" for item_id in history]
    return "\n".join(["History, oldest first:", *lines])


def answer_table(answer: Any, catalogue: Mapping[str, Mapping[str, Any]], *, data: Path) -> Table:
    """Recommended items, best first, with titles, scores and the pictures' paths below the data folder."""
    table = Table("rank", "id", "title", "score", "picture", box=None, pad_edge=False)
    for rank, (item_id, score) in enumerate(zip(answer.item_ids, answer.scores, strict=True), start=1):
        item = catalogue[item_id]
        picture = str(data / item["image_path"]) if item.get("image_path") else "none"
        table.add_row(str(rank), _shown(item_id), _shown(_title(item)), f"{score:.4f}", _shown(picture))
    return table


def decision_lines(decision: "Decision", *, take_back: str) -> str:
    """Who is champion, who was, and how both did when they were registered, as markup of rich."""
    champion, before = decision.champion, decision.before
    if not decision.changed:
        return f"{decision.name}: version {champion.version} is @champion already; nothing is changed."
    was = f"version {before.version} was" if before else "nobody was"
    lines = [f"{decision.name}: version {champion.version} is @champion now, {was}."]
    for metric, label in (("hr_10", "HR@10"), ("ndcg_10", "NDCG@10")):
        values = [f"{one.metrics[metric]:.4f}" if one and metric in one.metrics else "-" for one in (champion, before)]
        lines.append(f"  {label:<8} {values[0]} now, {values[1]} before, each on the test users of its own run")
    return "\n".join([*lines, f"Take it back: `{take_back}`. Services see it when they load the model anew."])


def champion_lines(dataset: str, found: Mapping[str, Any]) -> str:
    """What an `evaluation.json` says of the champion, as markup of rich."""
    difference, users = found["above_popularity"], f"{found['num_test_users']:,} test users"
    return "\n".join(
        [
            f"macrec-{dataset}@champion is version {found['champion']}, asked for {users}.",
            f"  HR@10    {found['hr_10']:.4f}",
            f"  NDCG@10  {found['ndcg_10']:.4f}, the most popular items {found['popularity_ndcg_10']:.4f}: "
            f"{difference['difference']:+.4f}{_interval((difference['low'], difference['high']))}",
            f"  coverage {found['coverage']:.3f}, targets that it does not know {found['unknown_targets']:.1%}, "
            f"{found['milliseconds']:.2f} ms a history",
        ]
    )


def failures_table(failures: Sequence[tuple[str, str, str, str, int]]) -> Table:
    """Reasons why pictures could not be loaded, most frequent first, each with an example (`FETCH_FAILURES`)."""
    counts = Counter(reason for _, _, reason, _, _ in failures)
    examples = {reason: (url, detail) for _, url, reason, detail, _ in reversed(failures)}
    table = Table("reason", "pictures", "for example", "", box=None, pad_edge=False)
    for reason, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        table.add_row(escape(reason), f"{count:,}", *map(_shown, examples[reason]))
    return table


def _interval(low_high: Sequence[float]) -> str:
    return f" \\[{low_high[0]:.4f}, {low_high[1]:.4f}]"


def _shown(text: str) -> str:
    """What a catalogue says, as markup of rich: it neither formats nor steers the terminal."""
    return escape(one_line(text))


def _title(item: Mapping[str, Any]) -> str:
    return str(item.get("title") or "(no title)")
