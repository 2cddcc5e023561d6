"""The geometry of the charts, with expected positions in percent computed by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macrec_pipeline.evaluation.report.charts import interval_plot, line_chart, nice_ticks, tick_label, usage_strips


def test_interval_plot_starts_at_zero_for_rates() -> None:
    """Rates share an axis from 0 to a round number at or above the highest interval."""
    plot = interval_plot([("a", 0.1, (0.05, 0.2), ""), ("b", 0.05, (0.0, 0.1), "")], num_ticks=4)
    assert [tick.label for tick in plot.ticks] == ["0.00", "0.05", "0.10", "0.15", "0.20"]
    assert (plot.rows[0].low, plot.rows[0].place, plot.rows[0].high) == (25.0, 50.0, 100.0)
    assert plot.zero is None


def test_interval_plot_marks_zero_for_differences() -> None:
    """If an interval extends below zero, zero has a position on the axis."""
    plot = interval_plot([("a", 0.0, (-0.1, 0.3), "note")], num_ticks=4)
    assert plot.zero == pytest.approx(25.0)
    assert plot.rows[0].place == pytest.approx(25.0)


def test_line_chart_draws_each_series_of_the_log() -> None:
    """The first and the last value lie at the edges, y grows upwards, and rows without a key are skipped."""
    log = [{"epoch": 1.0, "train": 4.0, "validation": 4.0}, {"epoch": 2.0, "train": 2.0}, {"epoch": 3.0, "train": 0.0}]
    chart = line_chart(log, title="Loss", series={"train": "training", "validation": "validation", "absent": "x"})
    assert chart is not None
    assert [series.name for series in chart.series] == ["training", "validation"]
    assert chart.series[0].points == "0.00,0.00 50.00,50.00 100.00,100.00"
    assert chart.series[1].points == "0.00,0.00"
    assert (chart.series[0].last, chart.series[0].lowest) == (0.0, 0.0)
    assert [tick.label for tick in chart.x_ticks] == ["1", "2", "3"]


def test_line_chart_of_nothing_is_none() -> None:
    """An empty log, unknown keys and non-finite values give no chart."""
    assert line_chart([], title="", series={"loss": "loss"}) is None
    assert line_chart([{"epoch": 1.0}], title="", series={"loss": "loss"}) is None
    assert line_chart([{"loss": math.nan}], title="", series={"loss": "loss"}) is None


def test_long_curves_are_thinned_but_keep_their_ends() -> None:
    """A curve of 5,000 points is drawn with at most 400 points, including the first and the last."""
    log = [{"epoch": float(number), "loss": float(5000 - number)} for number in range(5000)]
    chart = line_chart(log, title="", series={"loss": "loss"})
    assert chart is not None
    points = chart.series[0].points.split()
    assert len(points) <= 400
    assert points[0].startswith("0.00,")
    assert points[-1].startswith("100.00,")


def test_usage_counts_codes_and_perplexity() -> None:
    """Two of four codes, used evenly, have perplexity 2; a level without items has perplexity 0."""
    even, none = usage_strips(np.array([[5, 0, 5, 0], [0, 0, 0, 0]]))
    assert (even.level, even.num_used, even.codebook_size, even.max_items) == (1, 2, 4, 5)
    assert even.perplexity == pytest.approx(2.0)
    assert even.area == (
        "0,100 0.00,0.00 25.00,0.00 25.00,0.00 50.00,0.00 50.00,100.00 75.00,100.00 75.00,100.00 100.00,100.00 100,100"
    )
    assert (none.num_used, none.perplexity) == (0, 0.0)


def test_large_codebooks_are_drawn_in_bins() -> None:
    """A level with 65,536 codes is drawn with a few hundred steps."""
    (strip,) = usage_strips(np.ones((1, 65536), dtype=np.int64))
    assert len(strip.area.split()) < 600
    assert strip.perplexity == pytest.approx(65536)


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-6, 1e6), target=st.integers(2, 8))
def test_ticks_enclose_the_range_and_are_few(low: float, span: float, target: int) -> None:
    """Ticks start at or below the lowest value, end at or above the highest, and are about as many as requested."""
    ticks = nice_ticks(low, low + span, target=target)
    slack = 1e-6 * max(abs(low), span)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    assert len(ticks) <= target + 2


def test_a_single_value_gets_two_ticks() -> None:
    """A constant curve still has an axis."""
    assert nice_ticks(3.0, 3.0, target=4) == [3.0, 6.0]
    assert nice_ticks(0.0, 0.0, target=4) == [0.0, 1.0]


def test_tick_labels_have_as_many_decimals_as_the_step_needs() -> None:
    """A step of 0.025 needs three decimals, a step of 2 needs none."""
    assert tick_label(0.05, [0.0, 0.025, 0.05]) == "0.050"
    assert tick_label(4.0, [2.0, 4.0]) == "4"
