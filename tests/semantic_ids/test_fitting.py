"""Fits are repeatable and saved whole by every method, keep the right epoch, and train apart when told to."""

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
)
from macrec_pipeline.semantic_ids.catalogue import Catalogue
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
def test_the_same_seed_gives_the_same_bytes_and_so_does_loading(method: str, tmp_path) -> None:
    """Two fits write identical files, and a saved quantizer assigns the same IDs and knows it was initialised."""
    text, image = two_modalities()
    given = {"collaborative_vectors": collaborative_vectors(), "device": CPU}
    for name in ("a", "b"):
        quantizer = fitted(tiny(**METHODS[method]), collaborative=collaborative_vectors())
        (tmp_path / name).mkdir()
        quantizer.save(tmp_path / name)
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    loaded = FittedQuantizer.load(tmp_path / "a", device=CPU)
    for module in (loaded.text, loaded.image):
        assert bool(module.quantizer.initialised)
    ours, theirs = (assign_semantic_ids(each, text, image, **given) for each in (quantizer, loaded))
    assert ours.text_codes.tobytes() == theirs.text_codes.tobytes()
    assert ours.image_codes.tobytes() == theirs.image_codes.tobytes()
    assert (loaded.log, loaded.best_epoch) == (quantizer.log, quantizer.best_epoch)


def test_another_seed_gives_other_weights() -> None:
    """The seed reaches the weights."""
    one, two = (fitted(seed=seed).text.quantizer.codebooks for seed in (1, 2))
    assert not torch.equal(one, two)


def test_a_damaged_folder_says_what_to_do(tmp_path) -> None:
    """An empty weight file, and a description from before there were methods."""
    fitted(tiny(num_epochs=1)).save(tmp_path)
    description = (tmp_path / "quantizer.json").read_text()
    (tmp_path / "quantizer.json").write_text(description.replace('"method"', '"something"'))
    with pytest.raises(StorageError, match=r"no usable quantizer.*Materialize `quantizer` again"):
        FittedQuantizer.load(tmp_path, device=CPU)
    (tmp_path / "quantizer.json").write_text(description)
    (tmp_path / "image.safetensors").write_bytes(b"")
    with pytest.raises(StorageError, match="no usable quantizer"):
        FittedQuantizer.load(tmp_path, device=CPU)


@pytest.mark.parametrize(("method", "independent"), [("single_modality", True), ("cross_modal", False)])
def test_other_pictures_change_the_text_ids_of_the_cross_modal_quantizer_only(method: str, independent: bool) -> None:
    """Trained apart, not one byte of the text weights depends on the pictures."""
    _, image = two_modalities()
    config = tiny(method=method)
    one, two = fitted(config), fitted(config, image=np.ascontiguousarray(image[::-1]) * 5)
    same = [torch.equal(value, two.text.state_dict()[name]) for name, value in one.text.state_dict().items()]
    assert all(same) == independent
    assert not torch.equal(one.image.quantizer.codebooks, two.image.quantizer.codebooks)
    assert "text_contrast" not in fitted(tiny(method="single_modality", num_epochs=1)).log[0]


def test_the_kept_epoch_is_the_best_of_the_log() -> None:
    """Each modality's weights have the lowest collision rate that was measured for it."""
    quantizer = fitted()
    for modality, vectors in zip(("text", "image"), two_modalities(), strict=True):
        rates = [row[f"{modality}_collision_rate"] for row in quantizer.log]
        module = getattr(quantizer, modality)
        assert collision_rate(quantize(module, vectors, device=CPU)[0]) == pytest.approx(min(rates))


def test_the_joint_epoch_is_one_and_has_the_lowest_mean() -> None:
    """Both modalities' weights are of the epoch with the lowest mean rate."""
    quantizer = fitted(tiny(best_epoch="joint", num_epochs=12, evaluate_every=1, learning_rate=0.02))
    assert quantizer.best_epoch["text"] == quantizer.best_epoch["image"]
    means = [round((row["text_collision_rate"] + row["image_collision_rate"]) / 2, 12) for row in quantizer.log]
    assert means[quantizer.best_epoch["text"] - 1] == min(means)
    kept = quantizer.log[quantizer.best_epoch["text"] - 1]
    for modality, vectors in zip(("text", "image"), two_modalities(), strict=True):
        codes, _ = quantize(getattr(quantizer, modality), vectors, device=CPU)
        assert collision_rate(codes) == kept[f"{modality}_collision_rate"]


def test_training_halves_the_reconstruction_error() -> None:
    """With reconstruction and level losses alone, both modalities end at least twice as good as at first."""
    alone = tiny(contrast_weight=0.0, alignment_weight=0.0, num_epochs=60, evaluate_every=1, learning_rate=0.003)
    log = fitted(alone).log
    for modality in ("text", "image"):
        assert log[-1][f"{modality}_reconstruction"] < 0.5 * log[0][f"{modality}_reconstruction"]


def test_extreme_embeddings_stop_the_training() -> None:
    """Values that overflow are an error that says where: no silent NaN, no crash inside k-means."""
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
def test_a_setting_that_the_method_ignores_is_refused(method: str, setting: str, value: object) -> None:
    """Nobody believes to have measured what was not on; the cross-modal method takes all of them."""
    with pytest.raises(ConfigError, match=rf"method {method} has no use for {setting}"):
        resolve_config("default", {"quantizer": {"method": method, setting: value}})
    assert getattr(QuantizerConfig.model_validate({setting: value}), setting) == value


@pytest.mark.parametrize("method", ["cross_modal", "residual_k_means"])
def test_a_modality_alone_is_fitted_as_one_that_is_trained_apart(method: str, tmp_path) -> None:
    """Without pictures the text weights are those of `single_modality`; nothing is written or assigned of the other."""
    text, image = two_modalities()
    labels = fit_pseudo_labels(text, PseudoLabelConfig(num_clusters=10), seed=1)
    alone = fit_quantizer(text, None, labels, None, tiny(method=method), seed=1, device=CPU)
    apart = fitted(tiny(method="single_modality" if method == "cross_modal" else method))
    for name, value in alone.text.state_dict().items():
        assert torch.equal(value, apart.text.state_dict()[name])
    alone.save(tmp_path)
    assert not (tmp_path / "image.safetensors").exists()
    loaded = FittedQuantizer.load(tmp_path, device=CPU)
    assert loaded.image is None
    ids = assign_semantic_ids(loaded, text, None, device=CPU)
    assert ids.codes.keys() == ids.moved.keys() == ids.collision_rate.keys() == {"text"}
    assert (ids.text_codes == assign_semantic_ids(apart, text, image, device=CPU).text_codes).all()


def test_a_cosine_schedule_falls_to_zero_at_the_last_step() -> None:
    """100 items in batches of 64 are two steps an epoch; the warm-up is a hundredth of all, at least one step."""
    text, image = two_modalities()
    config = tiny(schedule="cosine", num_epochs=5, learning_rate=0.01)
    labels = {name: np.zeros(len(text), dtype=np.int64) for name in ("text", "image")}
    catalogue = Catalogue.of({"text": text, "image": image}, labels, None, config)
    training = RqVaeTraining(catalogue, config, seed=1, name="quantizer", device=CPU)
    rates = []
    for epoch in range(1, 6):
        rates.append(training.optimizer.param_groups[0]["lr"])
        training.one_epoch(epoch)
    # after the warm-up's one step, half a cosine over the nine that are left
    assert rates == pytest.approx([0.01] + [0.005 * (1 + np.cos(np.pi * step / 9)) for step in (1, 3, 5, 7)])
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
