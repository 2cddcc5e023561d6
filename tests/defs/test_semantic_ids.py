"""What the quantizer's asset reports, whatever the method."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from macrec_pipeline.config import QuantizerConfig
from macrec_pipeline.defs.assets.semantic_ids import _report_quantizer
from macrec_pipeline.semantic_ids import fit_quantizer


@pytest.mark.parametrize("method", ["cross_modal", "single_modality", "residual_k_means"])
def test_the_quantizer_reports_dead_codes_and_every_level(method: str) -> None:
    """Collision rates, dead codes in all and by level, each level's loss, and their curves as pictures."""
    config = QuantizerConfig(
        method=method, num_levels=2, codebook_size=8, latent_dim=4, projection_dim=8, hidden_dims=(8,), num_epochs=2
    )
    vectors = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    labels = np.zeros(30, dtype=np.int64)
    fitted = fit_quantizer(vectors, vectors, labels, labels, config, seed=1, device=torch.device("cpu"))
    plots: dict[str, bytes] = {}
    reported: dict[str, Any] = {}
    work = SimpleNamespace(plot=plots.__setitem__, report=lambda **facts: reported.update(facts))
    _report_quantizer(work, fitted)  # type: ignore[arg-type]
    for route in ("text", "image"):
        assert "text_dead_codes" in reported["summary"]
        assert reported[f"{route}_dead_codes"] == sum(reported[f"{route}_dead_codes_{level}"] for level in (1, 2))
        for name in ("collision_rate", "level_loss_1", "level_loss_2"):
            assert np.isfinite(reported[f"{route}_{name}"])
        assert reported[f"best_{route}_epoch"] == (0 if method == "residual_k_means" else 2)
    assert plots.keys() == {"loss", "collision_rates", "dead_codes", "text_level_losses", "image_level_losses"}
    assert all(png.startswith(b"\x89PNG") for png in plots.values())
