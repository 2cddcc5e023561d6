"""Everything a run found out -> one self-contained HTML page.

What enters: `ReportInput`. What leaves: a page without scripts and without anything loaded from elsewhere; pictures
are data URIs, charts are SVG in the reader's colour scheme. The same input gives the same bytes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.evaluation.protocol import Evaluation
from macrec_pipeline.evaluation.report.charts import LineChart, line_chart, usage_strips
from macrec_pipeline.evaluation.report.sample_users import SampleItem, SampleUser
from macrec_pipeline.evaluation.report.tables import (
    comparison_plot,
    headline_plots,
    metric_table,
    slice_groups,
    verdicts,
)
from macrec_pipeline.evaluation.report.thumbnails import Thumbnail, thumbnails

_QUANTIZER_CURVES = {
    "Quantizer: training loss": {"loss": "loss"},
    "Quantizer: collision rate before resolution": {"text_collision_rate": "text", "image_collision_rate": "image"},
}
_RECOMMENDER_CURVES = {
    "Recommender: loss": {"train_loss": "training", "validation_loss": "validation"},
    "Recommender: validation loss a route": {"validation_loss_text": "text", "validation_loss_image": "image"},
}
_MIN_TILE_RATIO, _MAX_TILE_RATIO = 0.6, 1.4


@dataclass(frozen=True)
class QuarantineCount:
    """Rows of one table that were dropped for one reason."""

    table: str
    reason: str
    num_rows: int


@dataclass(frozen=True)
class ReportInput:
    """What the page shows.

    Attributes:
        dataset, title: the data set's name and how it is called.
        date: when the run was made, as it shall be printed.
        preset, seed, git_commit: what made it.
        run_ids: what a run is called -> its id, in the order of showing.
        num_users, num_items, num_interactions: of the cleaned data.
        evaluation: what `evaluate` returned.
        collision_rate: route -> {"before": share, "after": share}.
        code_usage: route -> items a code, int64 [L, K].
        quantizer_log, recommender_log: one mapping a measurement; empty where nothing was trained.
        quarantine: dropped rows by reason.
        sample_users: users to show with pictures.
        items_without: modality -> items that have none.
        left_out: modality that has no route -> why.
        beam_agreement: route -> {"same_top_10": share of users, "overlap_10": mean share}, beam against exact scores.
    """

    dataset: str
    title: str
    date: str
    preset: str
    seed: int
    git_commit: str
    num_users: int
    num_items: int
    num_interactions: int
    evaluation: Evaluation
    collision_rate: Mapping[str, Mapping[str, float]]
    code_usage: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    run_ids: Mapping[str, str] = field(default_factory=dict)
    quantizer_log: Sequence[Mapping[str, float]] = ()
    recommender_log: Sequence[Mapping[str, float]] = ()
    quarantine: Sequence[QuarantineCount] = ()
    sample_users: Sequence[SampleUser] = ()
    items_without: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    beam_agreement: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tile:
    """An item of a sample user as drawn: a thumbnail, or the title's first letters on a plain tile."""

    title: str
    initials: str
    thumbnail: Thumbnail | None
    is_target: bool


def render_report(report: ReportInput) -> str:
    """Render the page.

    Args:
        report: what to show. Texts are escaped; pictures that cannot be read get a placeholder tile.

    Returns:
        A complete HTML document with at most about 2 MB of pictures.
    """
    evaluation = report.evaluation
    shown, ratio = _sample_tiles(report.sample_users)
    context: dict[str, Any] = {
        "report": report,
        "evaluation": evaluation,
        "verdicts": verdicts(evaluation),
        "table": metric_table(evaluation.systems),
        "table_excluding_seen": metric_table(evaluation.systems_excluding_seen),
        "headline_plots": headline_plots(evaluation.systems),
        "comparisons": comparison_plot(evaluation, exclude_seen=False),
        "comparisons_excluding_seen": comparison_plot(evaluation, exclude_seen=True),
        "slice_groups": slice_groups(evaluation),
        "usage": {route: usage_strips(counts) for route, counts in report.code_usage.items()},
        "quantizer_charts": _charts(report.quantizer_log, _QUANTIZER_CURVES),
        "recommender_charts": _charts(report.recommender_log, _RECOMMENDER_CURVES),
        "sample_users": shown,
        "tile_ratio": ratio,
    }
    return _environment().get_template("report.html.jinja").render(context)


def quarantine_counts(quarantine: pl.DataFrame) -> tuple[QuarantineCount, ...]:
    """Rows of the quarantine table by table and reason, the most frequent reason of each table first."""
    counted = (
        quarantine.group_by("table", "reason").len().sort("table", "len", "reason", descending=[False, True, False])
    )
    return tuple(QuarantineCount(table, reason, num_rows) for table, reason, num_rows in counted.iter_rows())


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}%"
    environment.filters["share"] = lambda value: f"{value:.4f}"
    return environment


def _charts(log: Sequence[Mapping[str, float]], curves: Mapping[str, Mapping[str, str]]) -> list[LineChart]:
    charts = (line_chart(log, title=title, series=series) for title, series in curves.items())
    return [chart for chart in charts if chart is not None]


def _sample_tiles(users: Sequence[SampleUser]) -> tuple[list[dict[str, Any]], float]:
    """What the template draws of each user, and the width of a tile's picture as a share of its height."""
    uses = Counter(
        item.image
        for user in users
        for item in (*user.history, user.target, *user.recommendations)
        if item.image is not None
    )
    pictures = thumbnails(uses)
    ratios = [small.width / small.height for small in pictures.values()]
    ratio = min(max(median(ratios), _MIN_TILE_RATIO), _MAX_TILE_RATIO) if ratios else 1.0

    def tile(item: SampleItem, target: SampleItem) -> Tile:
        picture = pictures.get(item.image) if item.image is not None else None
        return Tile(item.title, _initials(item.title), picture, item.item_id == target.item_id)

    shown = [
        {
            "user_id": user.user_id,
            "history_length": user.history_length,
            "history": [tile(item, user.target) for item in user.history],
            "target": tile(user.target, user.target),
            "recommendations": [tile(item, user.target) for item in user.recommendations],
            "hit_place": _hit_place(user),
        }
        for user in users
    ]
    return shown, round(ratio, 3)


def _hit_place(user: SampleUser) -> int | None:
    places = [place for place, item in enumerate(user.recommendations, start=1) if item.item_id == user.target.item_id]
    return places[0] if places else None


def _initials(title: str) -> str:
    words = [word for word in title.split() if word[0].isalnum()]
    return "".join(word[0] for word in words[:2]).upper() or "?"
