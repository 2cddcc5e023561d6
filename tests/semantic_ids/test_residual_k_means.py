"""Residual k-means by hand, and what one more level brings."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.semantic_ids.modality_quantizer import quantize
from macrec_pipeline.semantic_ids.residual_k_means import ResidualKMeans
from tests.semantic_ids.two_modalities import CPU, fitted, tiny, two_modalities


def test_two_levels_of_two_codes_by_hand() -> None:
    """Items at -11, -9, 8, 12: the codes are their sign and their side, in units of the spread around the mean."""
    items = np.array([[-11.0], [-9.0], [8.0], [12.0]], dtype=np.float32) + 500
    module = ResidualKMeans(1, tiny(num_levels=2, codebook_size=2, method="residual_k_means"))
    module.standardize(torch.from_numpy(items))
    left = module.fit(torch.from_numpy(items), seed=1)
    scale = np.sqrt(102.5)
    np.testing.assert_allclose(module.scale, [scale], rtol=1e-6)
    np.testing.assert_allclose(
        module.quantizer.codebooks[0].detach().sort(dim=0)[0], [[-10 / scale], [10 / scale]], rtol=1e-4
    )
    np.testing.assert_allclose(left, [2.5 / 102.5, 0.25 / 102.5], rtol=1e-4)
    codes, residuals = quantize(module, items, device=CPU)
    first, second = codes.T
    assert first[0] == first[1] != first[2] == first[3]
    assert second[0] == second[2] != second[1] == second[3]
    np.testing.assert_allclose(residuals[:, 1, 0] * scale, [-1, 1, -2, 2], rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(items=st.lists(st.tuples(*[st.integers(-9, 9)] * 2), min_size=2, max_size=12), seed=st.integers(0, 2**31))
def test_no_level_makes_it_worse(items: list[tuple[int, int]], seed: int) -> None:
    """Whatever the items, duplicates too, the error never grows from one level to the next, but for rounding."""
    vectors = torch.tensor(items, dtype=torch.float32)
    module = ResidualKMeans(2, tiny(codebook_size=3, method="residual_k_means"))
    module.standardize(vectors)
    errors = [module.latents(vectors).square().mean().item(), *module.fit(vectors, seed=seed)]
    assert all(after <= before * 1.0001 + 1e-6 for before, after in pairwise(errors))


def test_each_level_leaves_less() -> None:
    """The log has what every level left, and fewer levels are its beginning: the same codes, a larger error."""
    four, two = (fitted(tiny(method="residual_k_means", num_levels=levels)) for levels in (4, 2))
    vectors = dict(zip(("text", "image"), two_modalities(), strict=True))
    for modality in ("text", "image"):
        row = four.log[0]
        left = [row[f"{modality}_level_loss_{level}"] for level in (1, 2, 3, 4)]
        assert left == sorted(left, reverse=True)
        assert row[f"{modality}_reconstruction"] == left[-1] < two.log[0][f"{modality}_reconstruction"] == left[1]
        few, many = (quantize(getattr(each, modality), vectors[modality], device=CPU)[0] for each in (two, four))
        np.testing.assert_array_equal(few, many[:, :2])
    assert four.best_epoch == {"text": 0, "image": 0}
