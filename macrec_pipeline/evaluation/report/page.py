"""Render the results of a run as one self-contained HTML page.

The input is `ReportInput`. The output is a page without scripts and without external resources: images are data URIs,
and charts are SVG in the reader's colour scheme. The same input gives the same bytes.
Shapes (docs/notation.md): K codes per level, L levels.
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
    conclusions,
    headline_plots,
    metric_table,
    new_item_rows,
    quality_table,
    slice_table,
)
from macrec_pipeline.evaluation.report.thumbnails import Thumbnail, thumbnails

_QUANTIZER_CURVES = {
    "Quantizer: training loss": {"loss": "loss"},
    "Quantizer: collision rate before collision resolution": {
        "text_collision_rate": "text",
        "image_collision_rate": "image",
    },
}
_RECOMMENDER_CURVES = {
    "Recommender: loss": {"train_loss": "training", "validation_loss": "validation"},
    "Recommender: validation loss per route": {"validation_loss_text": "text", "validation_loss_image": "image"},
}
_MIN_TILE_RATIO, _MAX_TILE_RATIO = 0.6, 1.4


@dataclass(frozen=True)
class QuarantineCount:
    """The number of rows of one table that were quarantined for one reason."""

    table: str
    reason: str
    num_rows: int


@dataclass(frozen=True)
class LostCellCount:
    """The number of cells of one column that became missing values when the files were read."""

    file: str
    column: str
    reason: str
    num_cells: int


@dataclass(frozen=True)
class ReportInput:
    """The content of the page.

    Attributes:
        dataset, title: the data set's name and its title.
        date: date of the run, formatted.
        preset, seed, git_commit: settings and code version of the run.
        num_users, num_items, num_interactions: size of the cleaned data.
        evaluation: the result of `evaluate`.
        collision_rate: modality -> {"before": share, "after": share}, before and after collision resolution.
        code_usage: modality -> items per code, int64 [L, K].
        run_ids: label of a run -> its id, in the order in which they are shown.
        quantizer_log, recommender_log: one mapping per measurement; empty if nothing was trained.
        quarantine: quarantined rows by table and reason.
        lost_cells: cells that became missing values when the files were read, by file, column and reason.
        sample_users: users to show with images.
        items_without: modality -> number of items that lack it.
        left_out: modality without a retrieval route -> the reason.
        beam_agreement: route -> {"same_top_10": share of users, "overlap_10": mean share}, the agreement of beam search
            with exact scores.
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
    lost_cells: Sequence[LostCellCount] = ()
    sample_users: Sequence[SampleUser] = ()
    items_without: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    beam_agreement: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tile:
    """An item of a sample user as drawn: its thumbnail, or the initials of its title on a plain tile."""

    title: str
    initials: str
    thumbnail: Thumbnail | None
    is_target: bool


def render_report(report: ReportInput) -> str:
    """Render the page.

    Args:
        report: the content. Texts are escaped; images that cannot be read get a placeholder tile.

    Returns:
        A complete HTML document with at most about 2 MB of images.
    """
    evaluation = report.evaluation
    sample_users, ratio = _sample_tiles(report.sample_users)
    context: dict[str, Any] = {
        "report": report,
        "evaluation": evaluation,
        "conclusions": conclusions(evaluation),
        "table": metric_table(evaluation.systems),
        "table_excluding_seen": metric_table(evaluation.systems_excluding_seen),
        "table_determined": metric_table(evaluation.determined.systems),
        "table_determined_excluding_seen": metric_table(evaluation.determined.systems_excluding_seen),
        "headline_plots": headline_plots(evaluation.systems),
        "comparisons": comparison_plot(evaluation, exclude_seen=False),
        "comparisons_excluding_seen": comparison_plot(evaluation, exclude_seen=True),
        "slices": slice_table(evaluation),
        "new_item_rows": new_item_rows(evaluation),
        "qualities": quality_table(evaluation.beyond_accuracy.systems),
        "qualities_excluding_seen": quality_table(evaluation.beyond_accuracy.systems_excluding_seen),
        "usage": {modality: usage_strips(counts) for modality, counts in report.code_usage.items()},
        "quantizer_charts": _charts(report.quantizer_log, _QUANTIZER_CURVES),
        "recommender_charts": _charts(report.recommender_log, _RECOMMENDER_CURVES),
        "sample_users": sample_users,
        "tile_ratio": ratio,
    }
    return _environment().get_template("report.html.jinja").render(context)


def quarantine_counts(quarantine: pl.DataFrame) -> tuple[QuarantineCount, ...]:
    """Count the rows of the quarantine table by table and reason, with the most frequent reason of each table first."""
    counted = (
        quarantine.group_by("table", "reason").len().sort("table", "len", "reason", descending=[False, True, False])
    )
    return tuple(QuarantineCount(table, reason, num_rows) for table, reason, num_rows in counted.iter_rows())


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
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
    """Prepare each user for the template, and compute the common aspect ratio (width / height) of the tile images."""
    uses = Counter(
        item.image
        for user in users
        for item in (*user.history, user.target, *user.recommendations)
        if item.image is not None
    )
    images = thumbnails(uses)
    ratios = [thumbnail.width / thumbnail.height for thumbnail in images.values()]
    ratio = min(max(median(ratios), _MIN_TILE_RATIO), _MAX_TILE_RATIO) if ratios else 1.0

    def tile(item: SampleItem, target: SampleItem) -> Tile:
        thumbnail = images.get(item.image) if item.image is not None else None
        return Tile(item.title, _initials(item.title), thumbnail, item.item_id == target.item_id)

    prepared = [
        {
            "user_id": user.user_id,
            "history_length": user.history_length,
            "history": [tile(item, user.target) for item in user.history],
            "target": tile(user.target, user.target),
            "recommendations": [tile(item, user.target) for item in user.recommendations],
            "hit_rank": _hit_rank(user),
        }
        for user in users
    ]
    return prepared, round(ratio, 3)


def _hit_rank(user: SampleUser) -> int | None:
    ranks = [rank for rank, item in enumerate(user.recommendations, start=1) if item.item_id == user.target.item_id]
    return ranks[0] if ranks else None


def _initials(title: str) -> str:
    words = [word for word in title.split() if word[0].isalnum()]
    return "".join(word[0] for word in words[:2]).upper() or "?"
