"""InfoNCE of pairs: by hand, against a plain loop, and by what it must not mistake."""

import numpy as np
import pytest
import torch

from macrec_pipeline.runtime.info_nce import symmetric_info_nce


def test_it_is_symmetric() -> None:
    """By hand for two orthogonal pairs, and the same when the modalities change places."""
    text, image = torch.eye(2), torch.eye(2)
    expected = -np.log(np.exp(10) / (np.exp(10) + 1))
    assert symmetric_info_nce(text, image, temperature=0.1).item() == pytest.approx(expected, rel=1e-3)
    first, second = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    one, other = (symmetric_info_nce(*pair, temperature=0.1) for pair in ((first, second), (second, first)))
    torch.testing.assert_close(one, other)


def test_it_is_info_nce_by_a_plain_loop() -> None:
    """Both directions of the textbook loop in double precision, averaged."""
    first, second = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    one, other = ((x / x.norm(dim=1, keepdim=True)).double().numpy() for x in (first, second))
    expected = []
    for left, right in ((one, other), (other, one)):
        for row in range(5):
            similarity = [np.exp(left[row] @ right[column] / 0.3) for column in range(5)]
            expected.append(-np.log(similarity[row] / sum(similarity)))
    assert symmetric_info_nce(first, second, temperature=0.3).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_wrongly_paired_rows_cost_more() -> None:
    """The right pairing of like rows has the lowest loss, so a shifted one is noticed."""
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    right = symmetric_info_nce(rows, rows, temperature=0.1)
    assert symmetric_info_nce(rows, rows.roll(1, dims=0), temperature=0.1) > 10 * right
