"""Dead codes are counted as by hand, and revived to the residuals of items."""

import numpy as np
import pytest
import torch

from macrec_pipeline.semantic_ids.dead_codes import count_dead_codes, revive_dead_codes
from macrec_pipeline.semantic_ids.modality_quantizer import QuantizerSpec, quantize
from macrec_pipeline.semantic_ids.residual_k_means import ResidualKMeans
from tests.semantic_ids.two_modalities import CPU, fitted, tiny

ITEMS = np.array([[0.0], [1.0], [2.0], [10.0]], dtype=np.float32)


def four_items() -> tuple[ResidualKMeans, torch.optim.Optimizer]:
    """Return two levels of three codes, only the first of each near an item, and an optimizer with moments of all."""
    module = ResidualKMeans(1, QuantizerSpec.from_settings(vars(tiny(num_levels=2, codebook_size=3))))
    codebooks = module.quantizer.codebooks
    codebooks.data = torch.tensor([[[0.9], [100.0], [200.0]], [[0.0], [50.0], [60.0]]])
    optimizer = torch.optim.AdamW([codebooks], lr=0.0)
    codebooks.grad = torch.ones_like(codebooks)
    optimizer.step()
    return module, optimizer


def test_dead_codes_by_hand() -> None:
    """Of four codes per level, the first level uses 0, 1 and 3, the second only 2."""
    assert count_dead_codes(np.array([[0, 2], [1, 2], [3, 2]]), codebook_size=4) == [1, 3]


def test_revived_codes_are_used_and_lose_their_moments() -> None:
    """All four dead codes become residuals of items; live codes and their moments stay as they are."""
    module, optimizer = four_items()
    codebooks = module.quantizer.codebooks
    assert count_dead_codes(quantize(module, ITEMS, device=CPU)[0], codebook_size=3) == [2, 2]
    assert revive_dead_codes(module, ITEMS, optimizer, generator=torch.Generator().manual_seed(0), device=CPU) == 4
    assert count_dead_codes(quantize(module, ITEMS, device=CPU)[0], codebook_size=3) == [0, 0]
    assert set(codebooks[0, 1:, 0].tolist()) < set(ITEMS[:, 0].tolist())
    assert codebooks[:, 0, 0].tolist() == pytest.approx([0.9, 0.0])
    for moment in ("exp_avg", "exp_avg_sq"):
        alive = optimizer.state[codebooks][moment][..., 0] > 0
        assert alive.tolist() == [[True, False, False]] * 2


def test_items_far_from_their_code_are_drawn_most_often() -> None:
    """An item ten times as far away as the next one takes one of the two codes nearly always."""
    num_far = 0
    for seed in range(50):
        module, optimizer = four_items()
        revive_dead_codes(module, ITEMS, optimizer, generator=torch.Generator().manual_seed(seed), device=CPU)
        num_far += 10.0 in module.quantizer.codebooks[0, :, 0].tolist()
    assert num_far >= 48


def test_no_code_is_revived_if_every_item_equals_its_code() -> None:
    """There is no item to draw, so the dead code stays, and nothing fails."""
    module, optimizer = four_items()
    module.quantizer.codebooks.data = torch.tensor([[[0.0], [1.0], [5.0]], [[0.0], [7.0], [8.0]]])
    items = np.array([[0.0], [1.0]], dtype=np.float32)
    assert revive_dead_codes(module, items, optimizer, generator=torch.Generator().manual_seed(0), device=CPU) == 0
    assert module.quantizer.codebooks[0, 2].item() == 5.0


def test_training_with_revival_ends_with_fewer_dead_codes() -> None:
    """Every row of the log counts them in total and per level; a repeated training gives the same log."""
    settings = {"codebook_size": 32, "num_epochs": 20, "evaluate_every": 5, "learning_rate": 0.02}
    without_revival = fitted(tiny(**settings)).log
    revived, repeated = (fitted(tiny(**settings, revive_dead_codes=True, revive_every=3)).log for _ in range(2))
    assert revived == repeated
    for row in without_revival + revived:
        for modality in ("text", "image"):
            by_level = [row[f"{modality}_dead_codes_{level}"] for level in (1, 2, 3)]
            assert row[f"{modality}_dead_codes"] == sum(by_level)
    for modality in ("text", "image"):
        assert revived[-1][f"{modality}_dead_codes"] < without_revival[-1][f"{modality}_dead_codes"]
