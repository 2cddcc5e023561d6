"""What the asset `quantizer` reports, for every method."""

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
    """The quantizer reports and plots collision rates, dead codes in total and by level, and each level's loss."""
    config = QuantizerConfig(
        method=method, num_levels=2, codebook_size=8, latent_dim=4, projection_dim=8, hidden_dims=(8,), num_epochs=2
    )
    vectors = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    labels = np.zeros(30, dtype=np.int64)
    fitted = fit_quantizer(vectors, vectors, labels, labels, config, seed=1, device=torch.device("cpu"))
    plots: dict[str, bytes] = {}
    reported: dict[str, Any] = {}
    asset = SimpleNamespace(log_plot=plots.__setitem__, report=lambda **metadata: reported.update(metadata))
    _report_quantizer(asset, fitted)  # type: ignore[arg-type]
    for modality in ("text", "image"):
        assert "text_dead_codes" in reported["summary"]
        assert reported[f"{modality}_dead_codes"] == sum(reported[f"{modality}_dead_codes_{level}"] for level in (1, 2))
        for name in ("collision_rate", "level_loss_1", "level_loss_2"):
            assert np.isfinite(reported[f"{modality}_{name}"])
        assert reported[f"best_{modality}_epoch"] == (0 if method == "residual_k_means" else 2)
    assert plots.keys() == {"loss", "collision_rates", "dead_codes", "text_level_losses", "image_level_losses"}
    assert all(png.startswith(b"\x89PNG") for png in plots.values())
