"""Fits by every method repeat themselves to the byte, and keep the right epoch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from macrec_pipeline.config import PseudoLabelConfig, QuantizerConfig
from macrec_pipeline.errors import ConfigError, SemanticIdError, StorageError, TrainingError
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.semantic_ids import (
    FittedQuantizer,
    assign_semantic_ids,
    collision_rate,
    fit_pseudo_labels,
    fit_quantizer,
    fitting,
)
from macrec_pipeline.semantic_ids.catalogue import Catalogue
from macrec_pipeline.semantic_ids.fitting import epoch_scores
from macrec_pipeline.semantic_ids.modality_quantizer import quantize
from macrec_pipeline.semantic_ids.rq_vae_training import RqVaeTraining
from tests.semantic_ids.two_modalities import CPU, TINY, collaborative_vectors, fitted, tiny, two_modalities

FILES = ("text.safetensors", "image.safetensors", "quantizer.json", "training_log.json")
METHODS: dict[str, dict[str, Any]] = {
    "cross_modal": {},
    "as_released": {"variant": "as_released"},
    "single_modality": {"method": "single_modality"},
    "residual_k_means": {"method": "residual_k_means"},
    "anchored": {"collaborative_input_weight": 0.5, "collaborative_contrast_weight": 0.1},
}


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bytes_also_after_loading(method: str, tmp_path: Path) -> None:
    """Two fits write identical files, and a loaded quantizer assigns the same IDs and is marked as initialized."""
    text, image = two_modalities()
    options = {"collaborative_vectors": collaborative_vectors(), "device": CPU}
    for name in ("a", "b"):
        quantizer = fitted(tiny(**METHODS[method]), collaborative=collaborative_vectors())
        (tmp_path / name).mkdir()
        quantizer.save(tmp_path / name)
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    loaded = FittedQuantizer.load(tmp_path / "a", device=CPU)
    for module in (loaded.text, loaded.image):
        assert bool(module.quantizer.initialised)
    ids, loaded_ids = (assign_semantic_ids(each, text, image, **options) for each in (quantizer, loaded))
    assert ids.text_codes.tobytes() == loaded_ids.text_codes.tobytes()
    assert ids.image_codes.tobytes() == loaded_ids.image_codes.tobytes()
    assert (loaded.log, loaded.best_epoch) == (quantizer.log, quantizer.best_epoch)


def test_another_seed_gives_other_weights() -> None:
    """The seed reaches the weights."""
    first, second = (fitted(seed=seed).text.quantizer.codebooks for seed in (1, 2))
    assert not torch.equal(first, second)


def test_a_damaged_folder_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    """A weights file is empty, or the description lacks the method."""
    fitted(tiny(num_epochs=1)).save(tmp_path)
    description = (tmp_path / "quantizer.json").read_text()
    (tmp_path / "quantizer.json").write_text(description.replace('"method"', '"something"'))
    with pytest.raises(StorageError, match=r"cannot be read.*Materialize `quantizer` again"):
        FittedQuantizer.load(tmp_path, device=CPU)
    (tmp_path / "quantizer.json").write_text(description)
    (tmp_path / "image.safetensors").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be read"):
        FittedQuantizer.load(tmp_path, device=CPU)


@pytest.mark.parametrize(("method", "independent"), [("single_modality", True), ("cross_modal", False)])
def test_images_affect_the_text_quantizer_only_by_the_cross_modal_method(method: str, independent: bool) -> None:
    """If each modality is trained on its own, no byte of the text weights depends on the image vectors."""
    _, image = two_modalities()
    config = tiny(method=method)
    quantizer, other = fitted(config), fitted(config, image=np.ascontiguousarray(image[::-1]) * 5)
    other_weights = other.text.state_dict()
    equal = [torch.equal(value, other_weights[name]) for name, value in quantizer.text.state_dict().items()]
    assert all(equal) == independent
    assert not torch.equal(quantizer.image.quantizer.codebooks, other.image.quantizer.codebooks)
    assert "text_contrast" not in fitted(tiny(method="single_modality", num_epochs=1)).log[0]


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("per_modality", [{"text": 0.1, "image": 0.4}, {"text": 0.3, "image": 0.0}, {"text": 0.1, "image": 0.2}]),
        # the sums of the last two pairs differ as floats, but their means count as equal
        ("joint", [{"text": 0.25, "image": 0.25}, {"text": 0.15, "image": 0.15}, {"text": 0.15, "image": 0.15}]),
    ],
)
def test_epochs_are_scored_per_modality_or_by_the_mean(criterion: str, expected: list[dict[str, float]]) -> None:
    """A score is the collision rate of the modality, or the mean rate for all modalities."""
    rates = [{"text": 0.1, "image": 0.4}, {"text": 0.3, "image": 0.0}, {"text": 0.1, "image": 0.2}]
    assert rates[1]["text"] + rates[1]["image"] != rates[2]["text"] + rates[2]["image"]
    assert [epoch_scores(each, criterion=criterion) for each in rates] == expected


@pytest.mark.parametrize(
    ("criterion", "best_epochs"),
    [("per_modality", {"text": 4, "image": 3}), ("joint", {"text": 4, "image": 4})],
)
def test_the_later_of_equally_good_epochs_is_kept(
    criterion: str, best_epochs: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collision rates of five epochs are given; the best epoch is chosen per modality, or by the lowest mean."""
    rates = iter([(0.5, 0.5), (0.1, 0.4), (0.3, 0.0), (0.1, 0.2), (0.3, 0.25)])

    def given_rates(*_: object, **__: object) -> dict[str, float]:
        return dict(zip(("text_collision_rate", "image_collision_rate"), next(rates), strict=True))

    monkeypatch.setattr(fitting, "_collisions_and_dead_codes", given_rates)
    assert fitted(tiny(best_epoch=criterion, num_epochs=5, evaluate_every=1)).best_epoch == best_epochs


def test_the_kept_epoch_is_the_best_of_the_log() -> None:
    """Each modality has the weights with the lowest collision rate that was measured for it."""
    quantizer = fitted()
    for modality, vectors in zip(("text", "image"), two_modalities(), strict=True):
        rates = [row[f"{modality}_collision_rate"] for row in quantizer.log]
        module = getattr(quantizer, modality)
        assert collision_rate(quantize(module, vectors, device=CPU)[0]) == pytest.approx(min(rates))


def test_the_joint_criterion_keeps_one_epoch_for_both_modalities() -> None:
    """The joint criterion keeps the epoch with the lowest mean collision rate."""
    quantizer = fitted(tiny(best_epoch="joint", num_epochs=12, evaluate_every=1, learning_rate=0.02))
    assert quantizer.best_epoch["text"] == quantizer.best_epoch["image"]
    means = [round((row["text_collision_rate"] + row["image_collision_rate"]) / 2, 12) for row in quantizer.log]
    assert means[quantizer.best_epoch["text"] - 1] == min(means)
    kept = quantizer.log[quantizer.best_epoch["text"] - 1]
    for modality, vectors in zip(("text", "image"), two_modalities(), strict=True):
        codes, _ = quantize(getattr(quantizer, modality), vectors, device=CPU)
        assert collision_rate(codes) == kept[f"{modality}_collision_rate"]


def test_training_halves_the_reconstruction_error() -> None:
    """With only reconstruction and level losses, the error of both modalities ends below half of the first one."""
    config = tiny(contrast_weight=0.0, alignment_weight=0.0, num_epochs=60, evaluate_every=1, learning_rate=0.003)
    log = fitted(config).log
    for modality in ("text", "image"):
        assert log[-1][f"{modality}_reconstruction"] < 0.5 * log[0][f"{modality}_reconstruction"]


def test_extreme_embeddings_stop_the_training() -> None:
    """Values that overflow are an error with a cause, not silent NaNs or a crash inside k-means."""
    text, image = two_modalities()
    labels = np.zeros(100, dtype=np.int64)
    with pytest.raises(TrainingError, match="cannot be standardized"):
        fit_quantizer(text * 1e25, image, labels, labels, TINY, seed=1, device=CPU)
    text[3, 2] = np.inf
    with pytest.raises(SemanticIdError, match="row 3"):
        fit_pseudo_labels(text, PseudoLabelConfig(), seed=1)


@pytest.mark.parametrize(
    ("method", "setting", "value"),
    [
        ("single_modality", "variant", "as_released"),
        ("single_modality", "best_epoch", "joint"),
        ("residual_k_means", "revive_dead_codes", True),
        ("residual_k_means", "collaborative_contrast_weight", 0.1),
    ],
)
def test_a_setting_that_the_method_ignores_is_rejected(method: str, setting: str, value: object) -> None:
    """Settings that the method ignores are rejected, so that nobody measures an effect that is not active.

    The cross-modal method uses all these settings.
    """
    with pytest.raises(ConfigError, match=rf"method {method} ignores {setting}"):
        resolve_config("default", {"quantizer": {"method": method, setting: value}})
    assert getattr(QuantizerConfig.model_validate({setting: value}), setting) == value


@pytest.mark.parametrize("method", ["cross_modal", "residual_k_means"])
def test_a_catalogue_with_one_modality_is_fitted_by_itself(method: str, tmp_path: Path) -> None:
    """Without images, the text weights are those of `single_modality`, and nothing is saved or assigned for images."""
    text, image = two_modalities()
    labels = fit_pseudo_labels(text, PseudoLabelConfig(num_clusters=10), seed=1)
    text_only = fit_quantizer(text, None, labels, None, tiny(method=method), seed=1, device=CPU)
    both = fitted(tiny(method="single_modality" if method == "cross_modal" else method))
    for name, value in text_only.text.state_dict().items():
        assert torch.equal(value, both.text.state_dict()[name])
    text_only.save(tmp_path)
    assert not (tmp_path / "image.safetensors").exists()
    loaded = FittedQuantizer.load(tmp_path, device=CPU)
    assert loaded.image is None
    ids = assign_semantic_ids(loaded, text, None, device=CPU)
    assert ids.codes.keys() == ids.moved.keys() == ids.collision_rate.keys() == {"text"}
    assert (ids.text_codes == assign_semantic_ids(both, text, image, device=CPU).text_codes).all()


def test_a_cosine_schedule_falls_to_zero_at_the_last_step() -> None:
    """100 items in batches of 64 make two steps per epoch. The warm-up is a hundredth of all steps, at least one."""
    text, image = two_modalities()
    config = tiny(schedule="cosine", num_epochs=5, learning_rate=0.01)
    labels = {name: np.zeros(len(text), dtype=np.int64) for name in ("text", "image")}
    catalogue = Catalogue.from_arrays({"text": text, "image": image}, labels, None, config)
    training = RqVaeTraining(catalogue, config, seed=1, name="quantizer", device=CPU)
    rates = []
    for epoch in range(1, 6):
        rates.append(training.optimizer.param_groups[0]["lr"])
        training.train_epoch(epoch)
    # after one step of warm-up, half a cosine over the remaining nine steps
    assert rates == pytest.approx([0.01] + [0.005 * (1 + np.cos(np.pi * step / 9)) for step in (1, 3, 5, 7)])
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
