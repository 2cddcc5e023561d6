"""Residual k-means equals a calculation by hand, and each level reduces the error."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.semantic_ids.modality_quantizer import QuantizerSpec, quantize
from macrec_pipeline.semantic_ids.residual_k_means import ResidualKMeans
from tests.semantic_ids.two_modalities import CPU, fitted, tiny, two_modalities


def residual_k_means(input_dim: int, **settings: int) -> ResidualKMeans:
    config = tiny(method="residual_k_means", **settings)
    return ResidualKMeans(input_dim, QuantizerSpec.from_settings(vars(config)))


def test_two_levels_of_two_codes_by_hand() -> None:
    """For items at -11, -9, 8 and 12, the codes are the sign and the side, in units of the standard deviation."""
    items = np.array([[-11.0], [-9.0], [8.0], [12.0]], dtype=np.float32) + 500
    module = residual_k_means(1, num_levels=2, codebook_size=2)
    module.fit_standardization(torch.from_numpy(items))
    errors = module.fit(torch.from_numpy(items), seed=1)
    scale = np.sqrt(102.5)
    np.testing.assert_allclose(module.scale, [scale], rtol=1e-6)
    np.testing.assert_allclose(
        module.quantizer.codebooks[0].detach().sort(dim=0)[0], [[-10 / scale], [10 / scale]], rtol=1e-4
    )
    np.testing.assert_allclose(errors, [2.5 / 102.5, 0.25 / 102.5], rtol=1e-4)
    codes, residuals = quantize(module, items, device=CPU)
    first, second = codes.T
    assert first[0] == first[1] != first[2] == first[3]
    assert second[0] == second[2] != second[1] == second[3]
    np.testing.assert_allclose(residuals[:, 1, 0] * scale, [-1, 1, -2, 2], rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(items=st.lists(st.tuples(*[st.integers(-9, 9)] * 2), min_size=2, max_size=12), seed=st.integers(0, 2**31))
def test_no_level_increases_the_error(items: list[tuple[int, int]], seed: int) -> None:
    """Up to rounding, the error never grows from one level to the next, whatever the items and their duplicates."""
    vectors = torch.tensor(items, dtype=torch.float32)
    module = residual_k_means(2, codebook_size=3)
    module.fit_standardization(vectors)
    errors = [module.encode(vectors).square().mean().item(), *module.fit(vectors, seed=seed)]
    assert all(after <= before * 1.0001 + 1e-6 for before, after in pairwise(errors))


def test_each_level_reduces_the_error() -> None:
    """The log has the error after every level. With fewer levels, the codes are the same and the error is larger."""
    four, two = (fitted(tiny(method="residual_k_means", num_levels=levels)) for levels in (4, 2))
    vectors = dict(zip(("text", "image"), two_modalities(), strict=True))
    for modality in ("text", "image"):
        row = four.log[0]
        errors = [row[f"{modality}_level_loss_{level}"] for level in (1, 2, 3, 4)]
        assert errors == sorted(errors, reverse=True)
        assert row[f"{modality}_reconstruction"] == errors[-1] < two.log[0][f"{modality}_reconstruction"] == errors[1]
        two_codes, four_codes = (
            quantize(getattr(quantizer, modality), vectors[modality], device=CPU)[0] for quantizer in (two, four)
        )
        np.testing.assert_array_equal(two_codes, four_codes[:, :2])
    assert four.best_epoch == {"text": 0, "image": 0}
