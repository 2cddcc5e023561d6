"""A synthetic log with the size and skew of Amazon Musical Instruments, its semantic IDs, and the published model.

Users have at least 5 items, histories have the mean length of the real log (8), and items are drawn by popularity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender, ModelSpec
from macrec_pipeline.recommender.model.history_encoding import Vocabulary

ITEMS, LEVELS, CODEBOOK_SIZE = 6_250, 4, 256
# Vocabulary size of the reference implementation: the tokens of a text tokenizer and the codes.
TEXT_VOCABULARY = 33_932
PUBLISHED = RecommenderConfig()
SMALL = RecommenderConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_encoder_layers=1, num_decoder_layers=1)


def write_log(folder: Path, *, users: int, items: int = ITEMS, length: int | None = None) -> None:
    """Write `flat.npy` and `starts.npy` (int64 item indices end to end) and `text.npy` and `image.npy` (IDs [N, L]).

    Histories have the lengths of Instruments, or all have `length`.
    """
    generator = np.random.default_rng(1)
    lengths = 5 + np.minimum(generator.geometric(1 / 4, users) - 1, 100)
    if length is not None:
        lengths[:] = length
    shares = 1 / np.arange(10, items + 10)
    np.save(folder / "flat.npy", generator.choice(items, size=lengths.sum(), p=shares / shares.sum()))
    np.save(folder / "starts.npy", np.concatenate([[0], np.cumsum(lengths)]))
    for modality in ("text", "image"):
        np.save(folder / f"{modality}.npy", _ids(generator, items))


def read_log(folder: Path) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Read the histories, int64 [T] each, and the IDs of both modalities."""
    flat, starts = np.load(folder / "flat.npy"), np.load(folder / "starts.npy")
    return np.split(flat, starts[1:-1]), {name: np.load(folder / f"{name}.npy") for name in ("text", "image")}


def random_model(config: RecommenderConfig) -> GenerativeRecommender:
    """Create a model with random weights, which are the same in every call."""
    vocabulary = Vocabulary(LEVELS, CODEBOOK_SIZE, config.num_prompt_tokens)
    spec = ModelSpec.from_settings(vars(config))
    model = GenerativeRecommender(vocabulary, spec, torch.Generator().manual_seed(1))
    return model.train(mode=False)


def as_text_model(model: GenerativeRecommender) -> Any:
    """Create transformers' own model with the same weights, and a text tokenizer's tokens after the codes."""
    config = T5Config(**model.t5.config.to_dict() | {"vocab_size": TEXT_VOCABULARY, "decoder_start_token_id": 0})
    config.eos_token_id = TEXT_VOCABULARY - 1  # an ID never ends early
    text_model: Any = T5ForConditionalGeneration(config)
    text_model.eval()
    state = {
        name: value for name, value in model.t5.state_dict().items() if value.shape != model.t5.shared.weight.shape
    }
    text_model.load_state_dict(state, strict=False)
    with torch.no_grad():
        text_model.shared.weight[: model.vocabulary.size] = model.t5.shared.weight
    return text_model


def _ids(generator: np.random.Generator, items: int) -> np.ndarray:
    """Draw distinct IDs that share prefixes as real ones do: about 250 first codes, most pairs with a single item."""
    ids: set[tuple[int, ...]] = set()
    while len(ids) < items:
        first, second = generator.integers(CODEBOOK_SIZE), generator.integers(CODEBOOK_SIZE)
        for _ in range(int(generator.geometric(0.7))):
            ids.add((int(first), int(second), *(int(code) for code in generator.integers(CODEBOOK_SIZE, size=2))))
    return np.array(sorted(ids))[generator.permutation(len(ids))[:items]]
