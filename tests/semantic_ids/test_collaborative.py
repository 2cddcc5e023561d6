"""Collaborative vectors in the quantizer: off by default, as part of the input, in a contrastive loss, and errors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from macrec_pipeline.errors import ConfigError, SemanticIdError
from macrec_pipeline.runtime.info_nce import symmetric_info_nce
from macrec_pipeline.semantic_ids import assign_semantic_ids, fit_quantizer
from macrec_pipeline.semantic_ids.collaborative import CollaborativeContrast
from macrec_pipeline.semantic_ids.modality_quantizer import QuantizerSpec, quantize
from macrec_pipeline.semantic_ids.rq_vae import RqVae
from tests.semantic_ids.two_modalities import CPU, TINY, collaborative_vectors, fitted, tiny, two_modalities

METHODS = ("cross_modal", "single_modality", "residual_k_means")


def test_vectors_change_nothing_if_their_weights_are_zero() -> None:
    """A fit with weight 0 gives the bytes of a fit without vectors."""
    without_vectors, with_vectors = fitted(), fitted(collaborative=collaborative_vectors())
    assert without_vectors.log == with_vectors.log
    assert with_vectors.collaborative_dim == 0
    for name, value in without_vectors.text.state_dict().items():
        assert torch.equal(value, with_vectors.text.state_dict()[name]), name


def test_embeddings_and_collaborative_columns_have_separate_scales() -> None:
    """Standardized embeddings have mean square one; the length of the collaborative columns follows their weight."""
    text, _ = two_modalities()
    module = RqVae(17, QuantizerSpec.from_settings(vars(tiny(collaborative_input_weight=0.5))))
    both = torch.from_numpy(np.concatenate([text * 100, collaborative_vectors() / 100], axis=1))
    module.fit_standardization(both, collaborative_dim=5)
    standardized = module.standardized(both)
    assert standardized[:, :12].square().mean().item() == pytest.approx(1.0, rel=1e-5)
    # weight 0.5 means half the length, which is a quarter of the sum of squares, whatever the numbers of columns
    sums = standardized.square().sum(dim=0)
    assert (sums[12:].sum() / sums[:12].sum()).item() == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_collaborative_columns_separate_items_of_equal_content(method: str) -> None:
    """Each content occurs twice, with two distant collaborative vectors; without these, both items share codes."""
    text, image = (np.concatenate([x[:20], x[:20]]) for x in two_modalities())
    signals = np.repeat([[-1.0, 2.0], [1.0, -2.0]], 20, axis=0).astype(np.float32)
    labels = np.zeros(40, dtype=np.int64)
    for weight in (0.0, 2.0):
        config = tiny(method=method, collaborative_input_weight=weight)
        quantizer = fit_quantizer(
            text, image, labels, labels, config, seed=1, device=CPU, collaborative_vectors=signals
        )
        for module, vectors in ((quantizer.text, text), (quantizer.image, image)):
            inputs = np.concatenate([vectors, signals], axis=1) if weight else vectors
            codes, _ = quantize(module, inputs, device=CPU)
            differs = (codes[:20] != codes[20:]).any(axis=1)
            assert differs.all() if weight else not differs.any()
        ids = assign_semantic_ids(quantizer, text, image, device=CPU, collaborative_vectors=signals)
        assert ids.collision_rate["text"]["after"] == 0


def test_the_contrast_uses_a_projection_and_has_gradients_on_both_sides() -> None:
    """The loss is the symmetric InfoNCE of latents and projected vectors; latents and projection get a gradient."""
    contrast = CollaborativeContrast(5, 4, temperature=0.2, generator=torch.Generator().manual_seed(0))
    latents = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    vectors = torch.from_numpy(collaborative_vectors(6))
    loss = contrast(latents, vectors)
    expected = symmetric_info_nce(latents, vectors @ contrast.projection.weight.T, temperature=0.2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for gradient in torch.autograd.grad(loss, [latents, contrast.projection.weight]):
        assert gradient.abs().sum() > 1e-3


@pytest.mark.parametrize("method", METHODS[:2])
def test_training_lowers_the_contrast(method: str) -> None:
    """The loss falls in each modality, and assigning IDs afterwards needs no collaborative vectors."""
    config = tiny(method=method, collaborative_contrast_weight=1.0, num_epochs=30, evaluate_every=1, learning_rate=0.01)
    quantizer = fitted(config, collaborative=collaborative_vectors())
    for modality in ("text", "image"):
        curve = [row[f"{modality}_collaborative"] for row in quantizer.log]
        assert curve[-1] < 0.9 * curve[0]
    assert quantizer.collaborative_dim == 0
    assign_semantic_ids(quantizer, *two_modalities(), device=CPU)


@pytest.mark.parametrize("weight", ["collaborative_input_weight", "collaborative_contrast_weight"])
def test_missing_or_misshapen_vectors_are_an_error(weight: str) -> None:
    """The error names the setting and the expected shape."""
    with pytest.raises(ConfigError, match=rf"quantizer\.{weight}=0\.5 needs .* float32 \[100, F\]"):
        fitted(tiny(**{weight: 0.5}))
    with pytest.raises(SemanticIdError, match=r"shape \(99, 5\); expected \(100, F\)"):
        fitted(tiny(**{weight: 0.5}), collaborative=collaborative_vectors(99))


def test_assigning_needs_collaborative_vectors_of_the_width_of_the_fit(tmp_path: Path) -> None:
    """A loaded quantizer knows the width, and the error says what it expected."""
    quantizer = fitted(
        TINY.model_copy(update={"collaborative_input_weight": 1.0, "num_epochs": 1}),
        collaborative=collaborative_vectors(),
    )
    quantizer.save(tmp_path)
    loaded = type(quantizer).load(tmp_path, device=CPU)
    with pytest.raises(SemanticIdError, match=r"of shape \(100, 5\), found none"):
        assign_semantic_ids(loaded, *two_modalities(), device=CPU)
    with pytest.raises(SemanticIdError, match=r"of shape \(100, 5\), found shape \(100, 4\)"):
        assign_semantic_ids(loaded, *two_modalities(), device=CPU, collaborative_vectors=collaborative_vectors()[:, :4])
