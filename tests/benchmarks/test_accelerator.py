"""The GPU benchmark's stages work, here on the CPU and at a tiny size."""

import numpy as np
import pytest
import torch

from benchmarks.speed import accelerator

CPU = torch.device("cpu")
SMALL = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}


@pytest.fixture
def histories(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    for name, value in (SMALL | {"batch_size": 64}).items():
        monkeypatch.setitem(accelerator.PUBLISHED, name, value)
    generator = np.random.default_rng(1)
    return [generator.integers(0, 30, length) for length in generator.integers(5, 9, 20)]


@pytest.fixture
def codes() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(2)
    return {name: generator.permutation(256)[:120].reshape(30, 4) for name in ("text", "image")}


def test_the_cpu_agrees_with_itself(histories: list[np.ndarray], codes: dict[str, np.ndarray]) -> None:
    """Two equal trainings have equal losses and lists."""
    result = accelerator.agreement(histories, codes, CPU)
    assert result == {"largest_difference_of_losses": 0.0, "users_with_the_same_20": 1.0}


def test_training_and_decoding_are_measured(histories: list[np.ndarray], codes: dict[str, np.ndarray]) -> None:
    """The counted operations are at least those of the feed-forward layers over the tokens of one epoch."""
    result = accelerator.training(histories, codes, CPU, epochs=4)
    tokens = 4 * sum(4 * (len(history) - 3) for history in histories)  # decoded tokens of four tasks
    assert result["flops"] > 3 * 2 * tokens * 2 * 16 * 32
    assert result["seconds"] > 0
    assert accelerator.decoding(histories, codes, CPU)["users_per_second"] > 0


def test_the_measured_quantizer_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reconstruction of the measured quantizer improves with either schedule."""
    for name, value in {"projection_dim": 16, "hidden_dims": (16,), "latent_dim": 8, "codebook_size": 8}.items():
        monkeypatch.setitem(accelerator.QUANTIZER, name, value)
    monkeypatch.setattr(accelerator, "_DIMS", {"text": 12, "image": 6})
    vectors, clusters = accelerator.random_vectors(60)
    for schedule in ("constant", "cosine"):
        first, last = (
            accelerator.quantizer(vectors, clusters, CPU, num_epochs=epochs, schedule=schedule, batch_size=20)
            for epochs in (1, 40)
        )
        assert last["text_reconstruction"] < first["text_reconstruction"]
