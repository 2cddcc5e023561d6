"""Warm start: training goes on from the weights before, to the same bytes each time, also after a cut."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.recommender.test_fitting import CutOffError, cut_off_after, saved

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender import FittedRecommender, fit_recommender
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from tests.recommender.cycle import CPU, SMALL, codes, cyclic_histories


def fit(
    start: Path | None = None,
    checkpoint: Path | None = None,
    progress: Progress = quiet_progress,
    *,
    seed: int = 5,
    codebook_size: int = 4,
    **changes: object,
) -> FittedRecommender:
    return fit_recommender(
        cyclic_histories(24),
        codes(1),
        codes(2),
        codebook_size=codebook_size,
        config=RecommenderConfig.model_validate(SMALL | {"num_epochs": 2, "batch_size": 64} | changes),
        seed=seed,
        device=CPU,
        progress=progress,
        checkpoint=checkpoint,
        start=start,
    )


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recommender that has learned something."""
    folder = tmp_path_factory.mktemp("before") / "weights"
    saved(fit(num_epochs=7, dropout=0.0), folder)
    return folder


def test_training_starts_where_the_one_before_ended(before: Path) -> None:
    """With a learning rate of next to nothing the weights are those before, and the first loss is far lower."""
    warm = fit(before, learning_rate=1e-12, weight_decay=0.0, num_epochs=1, seed=6)
    cold = fit(learning_rate=1e-12, weight_decay=0.0, num_epochs=1, seed=6)
    log = json.loads((before / "training_log.json").read_text())
    assert warm.warm_start == "taken over"
    assert cold.warm_start == "none"
    assert warm.log[0]["validation_loss"] == pytest.approx(min(row["validation_loss"] for row in log), rel=1e-4)
    assert warm.log[0]["validation_loss"] < 0.8 * cold.log[0]["validation_loss"]
    tied = warm.model.t5.encoder.embed_tokens.weight
    assert tied.data_ptr() == warm.model.t5.shared.weight.data_ptr()


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_a_warm_started_training_that_was_cut_ends_with_the_same_bytes(
    before: Path, share: float, tmp_path: Path
) -> None:
    """In the middle of the first epoch (nothing kept) or of the second (one epoch kept)."""
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(CutOffError):
        fit(before, checkpoint, cut_off_after(share))
    assert checkpoint.is_file() == (share > 0.5)
    torch.rand(3)
    resumed = saved(fit(before, checkpoint), tmp_path / "resumed")
    assert resumed == saved(fit(before), tmp_path / "whole")
    assert resumed != saved(fit(), tmp_path / "cold")


def test_the_checkpoint_of_another_start_is_not_used(before: Path, tmp_path: Path) -> None:
    """The starting weights are part of what a checkpoint is of: a cold one or one of other weights is not taken."""
    other = tmp_path / "other"
    saved(fit(seed=9, num_epochs=1), other)
    for number, first in enumerate((None, other)):
        checkpoint = tmp_path / f"{number}.safetensors"
        fit(first, checkpoint)
        went_on = saved(fit(before, checkpoint), tmp_path / f"went on {number}")
        assert went_on == saved(fit(before), tmp_path / f"fresh {number}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codebook_size": 5}, "its vocabulary is .*'codebook_size': 4.*'codebook_size': 5"),
        ({"num_prompt_tokens": 2}, "'num_prompt_tokens': 4.*'num_prompt_tokens': 2"),
        ({"d_ff": 64}, r"\(32, 16\), and now \(64, 16\)"),
        ({"num_encoder_layers": 2}, "is None, and now"),
        ({"encoding": "exact"}, "recency is .*, and now None"),
    ],
)
def test_weights_that_do_not_fit_are_left_with_a_reason(
    changes: dict[str, object], words: str, before: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another vocabulary or shape: training is the cold one to the byte, and a warning says what differs."""
    with caplog.at_level(logging.WARNING):
        warm = fit(before, num_epochs=1, **changes)  # type: ignore[arg-type]
    assert np.isfinite(warm.log[0]["train_loss"])
    assert saved(warm, tmp_path / "warm") == saved(fit(num_epochs=1, **changes), tmp_path / "cold")  # type: ignore[arg-type]
    (record,) = [record for record in caplog.records if "random weights" in record.message]
    assert re.search(words, warm.warm_start)
    assert warm.warm_start in record.message


def test_a_damaged_start_is_an_error(before: Path, tmp_path: Path) -> None:
    """Not a cold start in silence."""
    (tmp_path / "recommender.json").write_bytes((before / "recommender.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((before / "model.safetensors").read_bytes()[:100])
    with pytest.raises(StorageError, match="holds no recommender to start from"):
        fit(tmp_path)
