"""Residual quantization by brute force, the contrast's gradient at each level, and a fit that is repeatable."""

import numpy as np
import pytest
import torch

from macrec_pipeline.config import PseudoLabelConfig, QuantizerConfig
from macrec_pipeline.errors import SemanticIdError, StorageError, TrainingError
from macrec_pipeline.semantic_ids import FittedQuantizer, collision_rate, fit_pseudo_labels, fit_quantizer
from macrec_pipeline.semantic_ids.fitting import quantize
from macrec_pipeline.semantic_ids.losses import draw_positives, layer_contrast
from macrec_pipeline.semantic_ids.residual_quantizer import ResidualQuantizer

CPU = torch.device("cpu")
TINY = QuantizerConfig(
    num_levels=3,
    codebook_size=8,
    latent_dim=4,
    projection_dim=16,
    hidden_dims=(16, 8),
    batch_size=64,
    num_epochs=6,
    evaluate_every=2,
    contrast_from_level=2,
)


def two_modalities(num_items: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Items of ten kinds and ten looks: text tells the kind, the picture the look."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(2, 10, 12)).astype(np.float32) * 3
    kind, look = generator.integers(10, size=num_items), generator.integers(10, size=num_items)
    noise = generator.normal(size=(2, num_items, 12)).astype(np.float32)
    return centres[0][kind] + noise[0], centres[1][look] + noise[1]


def fitted(seed: int = 1, config: QuantizerConfig = TINY) -> FittedQuantizer:
    text, image = two_modalities()
    labels = [fit_pseudo_labels(x, PseudoLabelConfig(num_clusters=10), seed=1) for x in (text, image)]
    return fit_quantizer(text, image, *labels, config, seed=seed, device=CPU)


def test_quantization_is_the_brute_force_one() -> None:
    """Each level takes the code nearest to what is left, and the latent is the sum of the chosen vectors."""
    generator = torch.Generator().manual_seed(0)
    quantizer = ResidualQuantizer(num_levels=2, codebook_size=5, latent_dim=3, commitment_weight=0.25)
    quantizer.codebooks.data = torch.randn(2, 5, 3, generator=generator)
    latents = torch.randn(7, 3, generator=generator)
    result = quantizer(latents)
    for row in range(7):
        left = latents[row].double()
        for level in range(2):
            distances = [(left - code.double()).square().sum().item() for code in quantizer.codebooks[level].detach()]
            code = int(np.argmin(distances))
            assert result.codes[row, level] == code
            torch.testing.assert_close(result.residuals[row, level].double(), left, rtol=1e-5, atol=1e-6)
            left = left - quantizer.codebooks[level, code].detach().double()
        torch.testing.assert_close(result.latent[row].double(), latents[row].double() - left, rtol=1e-5, atol=1e-6)
    expected = np.mean(
        [
            (result.residuals[:, level] - quantizer.codebooks[level][result.codes[:, level]]).square().mean().item()
            * 1.25
            for level in range(2)
        ]
    )
    assert result.level_loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("from_level", [1, 2, 3, 4])
def test_the_contrast_has_a_gradient_at_every_contrasted_level_and_nowhere_else(from_level: int) -> None:
    """Levels from the first contrasted one on move the latent; with none contrasted nothing does."""
    quantizer = ResidualQuantizer(num_levels=3, codebook_size=4, latent_dim=5, commitment_weight=0.25)
    quantizer.codebooks.data = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    latents = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), requires_grad=True)
    residuals = quantizer(latents).residuals
    residuals.retain_grad()
    loss = layer_contrast(residuals, torch.tensor([1, 0, 3, 2, 4, 5]), from_level=from_level, temperature=0.1)
    if from_level > 3:
        assert loss.item() == 0
        assert not loss.requires_grad
        return
    for level in range(from_level, 4):  # each contrasted level alone reaches the encoder's output
        alone = layer_contrast(
            residuals[:, :level], torch.tensor([1, 0, 3, 2, 4, 5]), from_level=level, temperature=0.1
        )
        (gradient,) = torch.autograd.grad(alone, latents, retain_graph=True)
        assert gradient.abs().sum() > 1e-4, level
    loss.backward()
    moved = residuals.grad.abs().sum(dim=(0, 2)) > 1e-6
    assert moved.tolist() == [level >= from_level for level in (1, 2, 3)]


def test_the_contrast_is_info_nce_by_a_plain_loop() -> None:
    """The vectorised loss is the textbook double loop; an item is no negative of itself, unless it is its positive."""
    residuals = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(5))
    positives = torch.tensor([2, 1, 0, 4, 0])
    expected = []
    for level in (1, 2):
        unit = (residuals[:, level] / residuals[:, level].norm(dim=1, keepdim=True)).double().numpy()
        for item, positive in enumerate(positives.tolist()):
            similarity = {j: np.exp(unit[item] @ unit[j] / 0.1) for j in range(5) if j != item or positive == item}
            expected.append(-np.log(similarity[positive] / sum(similarity.values())))
    loss = layer_contrast(residuals, positives, from_level=2, temperature=0.1)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_positives_are_drawn_uniformly_from_the_cluster() -> None:
    """Never the item itself unless it is alone, never another cluster, and each companion equally often."""
    clusters = torch.tensor([0, 1, 0, 0, 2, 1])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_positives(clusters, generator=generator) for _ in range(4000)])
    assert (clusters[drawn] == clusters).all()
    assert (drawn[:, 4] == 4).all()
    assert (drawn[:, [0, 1, 2, 3, 5]] != torch.tensor([0, 1, 2, 3, 5])).all()
    assert (drawn[:, 0] == 2).float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_the_same_seed_gives_the_same_bytes(tmp_path) -> None:
    """Two fits write identical files; another seed writes others."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        fitted(seed).save(tmp_path / name)
    for file in ("text.safetensors", "image.safetensors", "quantizer.json", "training_log.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a" / "text.safetensors").read_bytes() != (tmp_path / "c" / "text.safetensors").read_bytes()


def test_a_saved_quantizer_gives_the_same_codes(tmp_path) -> None:
    """Loading restores weights, codebooks and the initialised flag; a damaged folder says what to do."""
    quantizer = fitted()
    quantizer.save(tmp_path)
    loaded = FittedQuantizer.load(tmp_path, device=CPU)
    text, _ = two_modalities()
    np.testing.assert_array_equal(
        quantize(quantizer.text, text, device=CPU)[0], quantize(loaded.text, text, device=CPU)[0]
    )
    assert bool(loaded.image.quantizer.initialised)
    (tmp_path / "image.safetensors").write_bytes(b"")
    with pytest.raises(StorageError, match="no usable quantizer"):
        FittedQuantizer.load(tmp_path, device=CPU)


def test_the_kept_epoch_is_the_best_of_the_log() -> None:
    """Each modality's weights have the lowest collision rate that was measured for it."""
    quantizer = fitted()
    text, image = two_modalities()
    for modality, vectors in (("text", text), ("image", image)):
        rates = [row[f"{modality}_collision_rate"] for row in quantizer.log]
        module = getattr(quantizer, modality)
        assert collision_rate(quantize(module, vectors, device=CPU)[0]) == pytest.approx(min(rates))


def test_training_halves_the_reconstruction_error() -> None:
    """With reconstruction and level losses alone, both modalities end at least twice as good as at first."""
    alone = {"contrast_weight": 0.0, "alignment_weight": 0.0, "num_epochs": 200, "evaluate_every": 1}
    log = fitted(config=TINY.model_copy(update=alone)).log
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
