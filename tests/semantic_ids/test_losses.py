"""The contrasts equal plain loops, the right levels have a gradient, and positives are drawn uniformly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.runtime.info_nce import symmetric_info_nce
from macrec_pipeline.semantic_ids.losses import draw_positives, layer_contrast
from macrec_pipeline.semantic_ids.residual_quantizer import ResidualQuantizer

PAIRS = torch.tensor([1, 0, 3, 2, 4, 5])


@settings(max_examples=30, deadline=None)
@given(
    positives=st.integers(2, 7).flatmap(lambda size: st.lists(st.integers(0, size - 1), min_size=size, max_size=size)),
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.1, 0.5, 2]),
)
def test_the_layer_contrast_equals_a_plain_loop(positives: list[int], seed: int, temperature: float) -> None:
    """The loss is textbook InfoNCE at each level; an item is not its own negative, unless it is its own positive."""
    batch = len(positives)
    residuals = torch.randn(batch, 3, 4, generator=torch.Generator().manual_seed(seed))
    losses = layer_contrast(residuals, torch.tensor(positives), from_level=2, temperature=temperature)
    assert losses.shape == (2,)
    for level, loss in zip((1, 2), losses.tolist(), strict=True):
        rows = residuals[:, level].double().numpy()
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        expected = 0.0
        for item, positive in enumerate(positives):
            similarity = {
                other: np.exp(unit[item] @ unit[other] / temperature)
                for other in range(batch)
                if other != item or positive == item
            }
            expected -= np.log(similarity[positive] / sum(similarity.values())) / batch
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), batch=st.integers(1, 7), temperature=st.sampled_from([0.1, 0.5, 2]))
def test_the_alignment_equals_a_plain_loop_in_both_directions(seed: int, batch: int, temperature: float) -> None:
    """The expected value is the mean of a double loop over rows and one over columns."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, batch, 3, generator=generator)
    unit_first, unit_second = (
        x.double().numpy() / np.linalg.norm(x.double(), axis=1, keepdims=True) for x in (first, second)
    )
    expected = 0.0
    for anchors, others in ((unit_first, unit_second), (unit_second, unit_first)):
        for item in range(batch):
            similarity = [np.exp(anchors[item] @ other / temperature) for other in others]
            expected -= np.log(similarity[item] / sum(similarity)) / batch / 2
    loss = symmetric_info_nce(first, second, temperature=temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def random_quantizer(**options: bool) -> tuple[ResidualQuantizer, torch.Tensor]:
    quantizer = ResidualQuantizer(num_levels=3, codebook_size=4, latent_dim=5, commitment_weight=0.25, **options)
    quantizer.codebooks.data = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    return quantizer, torch.randn(6, 5, generator=torch.Generator().manual_seed(2), requires_grad=True)


@pytest.mark.parametrize("from_level", [1, 2, 3])
def test_only_contrasted_levels_have_a_gradient(from_level: int) -> None:
    """Each level from the first contrasted one on has its own gradient on the latent; the levels before have none."""
    quantizer, latents = random_quantizer()
    residuals = quantizer(latents).residuals
    residuals.retain_grad()
    losses = layer_contrast(residuals, PAIRS, from_level=from_level, temperature=0.1)
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, latents, retain_graph=True)
        assert gradient.abs().sum() > 1e-4
    losses.sum().backward()
    gradient_per_level = residuals.grad.abs().sum(dim=(0, 2))
    assert (gradient_per_level[from_level - 1 :] > 1e-6).all()
    assert (gradient_per_level[: from_level - 1] == 0).all()


def test_straight_through_residuals_have_no_gradient_after_the_first_level() -> None:
    """As released, later levels have a gradient of exactly zero on the latent, for contrast and level loss alike."""
    quantizer, latents = random_quantizer(straight_through_residuals=True)
    quantized = quantizer(latents)
    contrasts = layer_contrast(quantized.residuals, PAIRS, from_level=1, temperature=0.1)
    for losses in (contrasts, quantized.level_losses):
        gradients = [torch.autograd.grad(loss, latents, retain_graph=True)[0].abs().sum().item() for loss in losses]
        assert gradients[0] > 1e-4
        assert gradients[1:] == [0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=40), seed=st.integers(0, 2**31))
def test_a_positive_is_another_item_of_the_same_cluster(labels: list[int], seed: int) -> None:
    """An item is its own positive only if it is alone in its cluster, and the same seed gives the same draw."""
    clusters = torch.tensor(labels)
    drawn, repeated = (draw_positives(clusters, generator=torch.Generator().manual_seed(seed)) for _ in range(2))
    assert (clusters[drawn] == clusters).all()
    alone = torch.bincount(clusters)[clusters] == 1
    assert ((drawn == torch.arange(len(labels))) == alone).all()
    assert torch.equal(drawn, repeated)


def test_positives_are_drawn_uniformly() -> None:
    """Chi-square over 4,000 draws of the four companions of each of five items (18.5 corresponds to p = 0.001)."""
    clusters = torch.tensor([3, 1, 3, 3, 0, 1, 3, 3])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_positives(clusters, generator=generator) for _ in range(4000)])
    cluster = [0, 2, 3, 6, 7]
    for item in cluster:
        counts = np.array([(drawn[:, item] == other).sum().item() for other in cluster if other != item])
        assert counts.sum() == 4000
        assert (np.square(counts - 1000) / 1000).sum() < 18.5


def test_drawing_positives_needs_no_square_matrix() -> None:
    """For these 100,000 items, a matrix of all pairs would take 80 GB."""
    clusters = torch.randint(10_000, (100_000,), generator=torch.Generator().manual_seed(3))
    drawn = draw_positives(clusters, generator=torch.Generator().manual_seed(4))
    assert (clusters[drawn] == clusters).all()
