"""A saved recommender is read back, and a new training can start from its weights."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender import FittedRecommender, fit_recommender
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from tests.recommender.cyclic_catalogue import CPU, SMALL, codes, cyclic_histories
from tests.recommender.interrupted_training import InterruptedTrainingError, interrupt_after, saved_files


def fit(
    start: Path | None = None,
    checkpoint: Path | None = None,
    progress: Progress = quiet_progress,
    *,
    seed: int = 5,
    codebook_size: int = 4,
    continued_epochs: int | None = None,
    **settings: object,
) -> FittedRecommender:
    config = RecommenderConfig.model_validate(SMALL | {"num_epochs": 2, "batch_size": 64} | settings)
    return fit_recommender(
        cyclic_histories(24),
        codes(1),
        codes(2),
        codebook_size=codebook_size,
        config=config,
        seed=seed,
        device=CPU,
        progress=progress,
        checkpoint=checkpoint,
        start=start,
        continued=continued_epochs and config.model_copy(update={"num_epochs": continued_epochs}),
    )


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recommender that has learned something."""
    folder = tmp_path_factory.mktemp("earlier") / "weights"
    saved_files(fit(num_epochs=7, dropout=0.0), folder)
    return folder


def test_a_folder_gives_back_what_was_saved(earlier: Path, tmp_path: Path) -> None:
    """Saving the loaded recommender again writes the same bytes."""
    loaded = FittedRecommender.load(earlier, device=CPU, warm_start="taken over")
    assert loaded.warm_start == "taken over"
    assert saved_files(loaded, tmp_path / "again") == {file.name: file.read_bytes() for file in earlier.iterdir()}


@pytest.mark.parametrize("file", ["model.safetensors", "recommender.json", "training_log.json"])
def test_a_damaged_folder_is_an_error_that_says_what_to_do(file: str, earlier: Path, tmp_path: Path) -> None:
    """Each of its files is cut off in the middle."""
    for source in earlier.iterdir():
        content = source.read_bytes()
        (tmp_path / source.name).write_bytes(content[: len(content) // 2] if source.name == file else content)
    with pytest.raises(StorageError, match=r"cannot be read: .* Materialize `recommender` again"):
        FittedRecommender.load(tmp_path, device=CPU)


def test_a_warm_start_begins_where_the_earlier_training_ended(earlier: Path) -> None:
    """With a learning rate near zero, the weights are the earlier ones, and the first loss is far lower."""
    warm = fit(earlier, learning_rate=1e-12, weight_decay=0.0, num_epochs=1, seed=6)
    cold = fit(learning_rate=1e-12, weight_decay=0.0, num_epochs=1, seed=6)
    log = json.loads((earlier / "training_log.json").read_text())
    assert warm.warm_start == "taken over"
    assert cold.warm_start == "none"
    assert warm.log[0]["validation_loss"] == pytest.approx(min(row["validation_loss"] for row in log), rel=1e-4)
    assert warm.log[0]["validation_loss"] < 0.8 * cold.log[0]["validation_loss"]
    tied = warm.model.t5.encoder.embed_tokens.weight
    assert tied.data_ptr() == warm.model.t5.shared.weight.data_ptr()


def test_the_settings_for_going_on_apply_only_to_weights_that_fit(earlier: Path, tmp_path: Path) -> None:
    """A training from the earlier weights takes one epoch of three, one from random weights takes all of them."""
    continued = fit(earlier, num_epochs=3, continued_epochs=1)
    assert (len(continued.log), continued.settings["num_epochs"]) == (1, 1)
    same = fit(earlier, num_epochs=1)
    assert saved_files(continued, tmp_path / "continued") == saved_files(same, tmp_path / "same")
    other_shape = fit(earlier, num_epochs=3, continued_epochs=1, d_ff=64)
    assert (len(other_shape.log), other_shape.settings["num_epochs"]) == (3, 3)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_an_interrupted_warm_start_ends_with_the_same_bytes(earlier: Path, share: float, tmp_path: Path) -> None:
    """A warm start that is interrupted before or after its first checkpoint ends with the same bytes."""
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(InterruptedTrainingError):
        fit(earlier, checkpoint, interrupt_after(share))
    assert checkpoint.is_file() == (share > 0.5)
    torch.rand(3)
    resumed = saved_files(fit(earlier, checkpoint), tmp_path / "resumed")
    assert resumed == saved_files(fit(earlier), tmp_path / "uninterrupted")
    assert resumed != saved_files(fit(), tmp_path / "cold")


def test_the_checkpoint_of_another_start_is_ignored(earlier: Path, tmp_path: Path) -> None:
    """The starting weights are part of a checkpoint's identity: neither a cold start nor other weights match."""
    other = tmp_path / "other"
    saved_files(fit(seed=9, num_epochs=1), other)
    for number, start in enumerate((None, other)):
        checkpoint = tmp_path / f"{number}.safetensors"
        fit(start, checkpoint)
        with_foreign_checkpoint = saved_files(fit(earlier, checkpoint), tmp_path / f"foreign checkpoint {number}")
        assert with_foreign_checkpoint == saved_files(fit(earlier), tmp_path / f"no checkpoint {number}")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"codebook_size": 5}, "their vocabulary is .*'codebook_size': 4.*'codebook_size': 5"),
        ({"num_prompt_tokens": 2}, "'num_prompt_tokens': 4.*'num_prompt_tokens': 2"),
        ({"d_ff": 64}, r"\(32, 16\), but in the new model it is \(64, 16\)"),
        ({"num_encoder_layers": 2}, "is None, but in the new model it is"),
        ({"encoding": "exact"}, "recency is .*, but in the new model it is None"),
    ],
)
def test_weights_that_do_not_fit_are_not_used(
    settings: dict[str, object], reason: str, earlier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With another vocabulary or shape, the bytes are those of a cold start, and a warning says what differs."""
    with caplog.at_level(logging.WARNING):
        warm = fit(earlier, num_epochs=1, **settings)  # type: ignore[arg-type]
    assert np.isfinite(warm.log[0]["train_loss"])
    cold = fit(num_epochs=1, **settings)  # type: ignore[arg-type]
    assert saved_files(warm, tmp_path / "warm") == saved_files(cold, tmp_path / "cold")
    (record,) = [record for record in caplog.records if "random weights" in record.message]
    assert re.search(reason, warm.warm_start)
    assert warm.warm_start in record.message


def test_starting_weights_that_cannot_be_read_are_an_error(earlier: Path, tmp_path: Path) -> None:
    """Training must not silently start from random weights instead."""
    (tmp_path / "recommender.json").write_bytes((earlier / "recommender.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((earlier / "model.safetensors").read_bytes()[:100])
    with pytest.raises(StorageError, match=r"training should start from, cannot be read: .*warm_start` to false"):
        fit(tmp_path)
