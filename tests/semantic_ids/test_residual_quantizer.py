"""Residual quantization equals brute force, and codebooks are initialized from centroids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.semantic_ids.residual_quantizer import ResidualQuantizer


def quantizer_of(codebooks: torch.Tensor, **options: bool) -> ResidualQuantizer:
    num_levels, codebook_size, latent_dim = codebooks.shape
    quantizer = ResidualQuantizer(
        num_levels=num_levels, codebook_size=codebook_size, latent_dim=latent_dim, commitment_weight=0.25, **options
    )
    quantizer.codebooks.data = codebooks
    return quantizer


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(2, 7), st.integers(1, 5)),
    released=st.booleans(),
)
def test_quantization_equals_brute_force(seed: int, sizes: tuple[int, int, int, int], released: bool) -> None:
    """Each level takes the code nearest to its residual, and the latent is the sum of the code vectors."""
    batch, num_levels, codebook_size, latent_dim = sizes
    generator = torch.Generator().manual_seed(seed)
    codebooks = torch.randn(num_levels, codebook_size, latent_dim, generator=generator)
    latents = torch.randn(batch, latent_dim, generator=generator)
    result = quantizer_of(codebooks, straight_through_residuals=released)(latents)
    residual = latents.double().numpy()
    for level, codebook in enumerate(codebooks.double().numpy()):
        np.testing.assert_allclose(result.residuals[:, level].detach(), residual, rtol=1e-5, atol=1e-5)
        distances = np.square(residual[:, None] - codebook[None]).sum(axis=2)  # [B, K]
        chosen = result.codes[:, level].numpy()
        chosen_distances = distances[np.arange(batch), chosen]
        assert (chosen_distances <= distances.min(axis=1) + 1e-5).all(), "the nearest code, up to float32 rounding"
        residual = residual - codebook[chosen]
        assert result.level_losses[level].item() == pytest.approx(1.25 * np.square(residual).mean(), rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(result.latent.detach(), latents.numpy() - residual, rtol=1e-5, atol=1e-5)


def test_ties_go_to_the_lower_code() -> None:
    """Of two equal code vectors, the first one is taken."""
    codes = quantizer_of(torch.tensor([[[5.0], [1.0], [1.0]]]))(torch.tensor([[1.2]])).codes
    assert codes.tolist() == [[1]]


def test_codebooks_are_initialized_from_the_centroids_of_the_residuals() -> None:
    """For two distant pairs, the first level finds their means, the second the means of the remaining residuals."""
    quantizer = quantizer_of(torch.zeros(2, 2, 1))
    assert not quantizer.initialised
    errors = quantizer.initialize_codebooks(torch.tensor([[-11.0], [-9.0], [8.0], [12.0]]), seed=1)
    assert sorted(quantizer.codebooks[0, :, 0].tolist()) == [-10.0, 10.0]
    assert sorted(quantizer.codebooks[1, :, 0].tolist()) == [-1.5, 1.5]
    assert errors == [2.5, 0.25]
    assert quantizer.initialised
