"""Plots are readable PNG files, identical for identical input, and show their input."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from macrec_pipeline.evaluation import Evaluation
from macrec_pipeline.evaluation.plots import plot_code_usage, plot_metrics, plot_training_log

LOG = [{"epoch": float(epoch), "train_loss": 3.0 / epoch, "validation_loss": 4.0 / epoch} for epoch in range(1, 9)]
USAGE = np.arange(24).reshape(3, 8)


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("plot", "other"),
    [
        (
            lambda: plot_training_log(LOG, ["train_loss", "validation_loss"]),
            lambda: plot_training_log(LOG, ["train_loss"]),
        ),
        (lambda: plot_code_usage(USAGE), lambda: plot_code_usage(USAGE[::-1] * (USAGE > 5))),
    ],
    ids=["training log", "code usage"],
)
def test_plots_are_reproducible_and_show_their_input(plot: Callable[[], bytes], other: Callable[[], bytes]) -> None:
    """The same input gives the same bytes, and different input gives a different image."""
    assert plot() == plot()
    assert not np.array_equal(_pixels(plot()), _pixels(other()))


def test_metrics_plot_shows_the_systems(evaluation: Evaluation) -> None:
    """An additional system changes the image, and systems without intervals are drawn too."""
    all_systems = plot_metrics(evaluation.systems)
    assert all_systems == plot_metrics(evaluation.systems)
    fewer = {system: evaluation.systems[system] for system in ("macrec", "popularity")}
    assert not np.array_equal(_pixels(all_systems), _pixels(plot_metrics(fewer)))
    assert _pixels(plot_metrics({"macrec": {"hr_10": 0.1, "ndcg_10": 0.05}})).std() > 0


def test_plots_without_data_are_empty_axes() -> None:
    """An empty log, a codebook without items and an empty set of systems raise no error."""
    for content in (
        plot_training_log([], ["loss"]),
        plot_training_log([{"epoch": 1.0}], ["loss"]),
        plot_code_usage(np.zeros((2, 4), dtype=np.int64)),
        plot_metrics({}),
    ):
        assert _pixels(content).size > 0
