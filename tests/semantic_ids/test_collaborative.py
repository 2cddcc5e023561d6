"""The collaborative vectors: off by default, beside the embeddings, and in a contrast; refused when they do not fit."""

import numpy as np
import pytest
import torch

from macrec_pipeline.errors import ConfigError, SemanticIdError
from macrec_pipeline.runtime.info_nce import symmetric_info_nce
from macrec_pipeline.semantic_ids import assign_semantic_ids, fit_quantizer
from macrec_pipeline.semantic_ids.collaborative import CollaborativeContrast
from macrec_pipeline.semantic_ids.modality_quantizer import quantize
from macrec_pipeline.semantic_ids.rq_vae import RqVae
from tests.semantic_ids.two_modalities import CPU, TINY, collaborative_vectors, fitted, tiny, two_modalities

METHODS = ("cross_modal", "single_modality", "residual_k_means")


def test_without_weights_the_vectors_change_nothing() -> None:
    """Weight 0 gives the bytes of a fit without vectors."""
    without, given = fitted(), fitted(collaborative=collaborative_vectors())
    assert without.log == given.log
    assert given.collaborative_dim == 0
    for name, value in without.text.state_dict().items():
        assert torch.equal(value, given.text.state_dict()[name]), name


def test_the_input_is_two_blocks_each_of_its_own_scale() -> None:
    """Embeddings come out with mean square one, collaborative vectors as long as their weight says beside them."""
    text, _ = two_modalities()
    module = RqVae(17, tiny(collaborative_input_weight=0.5))
    both = torch.from_numpy(np.concatenate([text * 100, collaborative_vectors() / 100], axis=1))
    module.standardize(both, collaborative_dim=5)
    standardized = module.standardized(both)
    assert standardized[:, :12].square().mean().item() == pytest.approx(1.0, rel=1e-5)
    # half the length: a quarter of the other block's sum of squares, 12 columns against 5
    sums = standardized.square().sum(dim=0)
    assert (sums[12:].sum() / sums[:12].sum()).item() == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_anchored_items_of_equal_text_are_told_apart(method: str) -> None:
    """Each text and picture twice, in two far-apart collaborative camps: a pair shares its codes if unanchored only."""
    text, image = (np.concatenate([x[:20], x[:20]]) for x in two_modalities())
    camps = np.repeat([[-1.0, 2.0], [1.0, -2.0]], 20, axis=0).astype(np.float32)
    labels = np.zeros(40, dtype=np.int64)
    for weight in (0.0, 2.0):
        config = tiny(method=method, collaborative_input_weight=weight)
        quantizer = fit_quantizer(text, image, labels, labels, config, seed=1, device=CPU, collaborative_vectors=camps)
        for module, vectors in ((quantizer.text, text), (quantizer.image, image)):
            inputs = np.concatenate([vectors, camps], axis=1) if weight else vectors
            codes, _ = quantize(module, inputs, device=CPU)
            apart = (codes[:20] != codes[20:]).any(axis=1)
            assert apart.all() if weight else not apart.any()
        assert (
            assign_semantic_ids(quantizer, text, image, device=CPU, collaborative_vectors=camps).collision_rate["text"][
                "after"
            ]
            == 0
        )


def test_the_contrast_is_with_a_projection_and_moves_both_sides() -> None:
    """Symmetric InfoNCE of latents and projected vectors; the latents and the projection have a gradient."""
    contrast = CollaborativeContrast(5, 4, temperature=0.2, generator=torch.Generator().manual_seed(0))
    latents = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    vectors = torch.from_numpy(collaborative_vectors(6))
    loss = contrast(latents, vectors)
    expected = symmetric_info_nce(latents, vectors @ contrast.projection.weight.T, temperature=0.2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for gradient in torch.autograd.grad(loss, [latents, contrast.projection.weight]):
        assert gradient.abs().sum() > 1e-3


@pytest.mark.parametrize("method", METHODS[:2])
def test_the_contrast_is_learnt(method: str) -> None:
    """Its loss falls in each modality, and assigning needs no vectors afterwards."""
    config = tiny(method=method, collaborative_contrast_weight=1.0, num_epochs=30, evaluate_every=1, learning_rate=0.01)
    quantizer = fitted(config, collaborative=collaborative_vectors())
    for modality in ("text", "image"):
        curve = [row[f"{modality}_collaborative"] for row in quantizer.log]
        assert curve[-1] < 0.9 * curve[0]
    assert quantizer.collaborative_dim == 0
    assign_semantic_ids(quantizer, *two_modalities(), device=CPU)


@pytest.mark.parametrize("weight", ["collaborative_input_weight", "collaborative_contrast_weight"])
def test_vectors_that_are_missing_or_do_not_fit_are_refused(weight: str) -> None:
    """Fitting names the weight and the shape it expects."""
    with pytest.raises(ConfigError, match=rf"quantizer\.{weight}=0\.5 needs .* float32 \[100, C\]"):
        fitted(tiny(**{weight: 0.5}))
    with pytest.raises(SemanticIdError, match=r"shape \(99, 5\); expected \(100, C\)"):
        fitted(tiny(**{weight: 0.5}), collaborative=collaborative_vectors(99))


def test_an_anchored_quantizer_assigns_with_vectors_of_its_size_only(tmp_path) -> None:
    """The quantizer knows C after loading too, and says what it expected."""
    quantizer = fitted(
        TINY.model_copy(update={"collaborative_input_weight": 1.0, "num_epochs": 1}),
        collaborative=collaborative_vectors(),
    )
    quantizer.save(tmp_path)
    loaded = type(quantizer).load(tmp_path, device=CPU)
    with pytest.raises(SemanticIdError, match=r"of shape \(100, 5\), got None"):
        assign_semantic_ids(loaded, *two_modalities(), device=CPU)
    with pytest.raises(SemanticIdError, match=r"of shape \(100, 5\), got \(100, 4\)"):
        assign_semantic_ids(loaded, *two_modalities(), device=CPU, collaborative_vectors=collaborative_vectors()[:, :4])
