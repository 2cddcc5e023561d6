"""Symmetric InfoNCE equals hand-computed values and a plain loop, and detects wrong pairs."""

import numpy as np
import pytest
import torch

from macrec_pipeline.runtime.info_nce import symmetric_info_nce


def test_the_loss_by_hand_is_symmetric() -> None:
    """Two orthogonal pairs have a known loss, and swapping the two sides does not change it."""
    text, image = torch.eye(2), torch.eye(2)
    expected = -np.log(np.exp(10) / (np.exp(10) + 1))
    assert symmetric_info_nce(text, image, temperature=0.1).item() == pytest.approx(expected, rel=1e-3)
    first, second = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    loss, swapped = (symmetric_info_nce(*pair, temperature=0.1) for pair in ((first, second), (second, first)))
    torch.testing.assert_close(loss, swapped)


def test_the_loss_equals_a_plain_loop() -> None:
    """The expected value averages both directions of the textbook loop in double precision."""
    first, second = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    unit_first, unit_second = ((x / x.norm(dim=1, keepdim=True)).double().numpy() for x in (first, second))
    expected = []
    for anchors, others in ((unit_first, unit_second), (unit_second, unit_first)):
        for row in range(5):
            similarity = [np.exp(anchors[row] @ others[column] / 0.3) for column in range(5)]
            expected.append(-np.log(similarity[row] / sum(similarity)))
    assert symmetric_info_nce(first, second, temperature=0.3).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_wrong_pairs_cost_more() -> None:
    """Pairing equal rows has the lowest loss, so shifted pairs are noticed."""
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    right = symmetric_info_nce(rows, rows, temperature=0.1)
    assert symmetric_info_nce(rows, rows.roll(1, dims=0), temperature=0.1) > 10 * right
