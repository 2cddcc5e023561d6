"""A catalogue in which the next item is certain: every user walks through it in steps of one item."""

import numpy as np
import torch

CPU = torch.device("cpu")
NUM_ITEMS = 30
SMALL = {
    "d_model": 16,
    "d_ff": 32,
    "d_kv": 8,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "history_length": 5,
    "encoding": "item_causal",
    "batch_size": 128,
    "learning_rate": 1e-2,
    "num_epochs": 2,
}


def cyclic_histories(num_users: int = 60) -> list[np.ndarray]:
    """Return histories of 5 to 13 items, int64."""
    generator = np.random.default_rng(0)
    starts, lengths = generator.integers(NUM_ITEMS, size=num_users), generator.integers(5, 14, size=num_users)
    return [(start + np.arange(length)) % NUM_ITEMS for start, length in zip(starts, lengths, strict=True)]


def codes(seed: int) -> np.ndarray:
    """Return distinct semantic IDs of three codes out of four, int64 [30, 3]."""
    all_ids = np.stack(np.unravel_index(np.arange(64), (4, 4, 4)), axis=1)
    return np.random.default_rng(seed).permutation(all_ids)[:NUM_ITEMS].astype(np.int64)
