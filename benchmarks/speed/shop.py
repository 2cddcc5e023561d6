"""A made-up log as long and as skewed as Amazon Musical Instruments, with IDs of four codes, and the published model.

Users take 5 items or more, the mean history is that of the real log (8), items are taken by popularity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender
from macrec_pipeline.recommender.model.vocabulary import Vocabulary

ITEMS, LEVELS, CODEBOOK_SIZE = 6_250, 4, 256
# Tokens of the reference's vocabulary: a text tokenizer's, and the codes.
TEXT_VOCABULARY = 33_932
PUBLISHED = RecommenderConfig()
SMALL = RecommenderConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_encoder_layers=1, num_decoder_layers=1)


def write_log(folder: Path, *, users: int, items: int = ITEMS, length: int | None = None) -> None:
    """`flat.npy` and `starts.npy`: int64 item indices, histories end to end; `text.npy` and `image.npy`: IDs [N, 4].

    Histories are as long as Instruments', or all of `length`.
    """
    draw = np.random.default_rng(1)
    lengths = 5 + np.minimum(draw.geometric(1 / 4, users) - 1, 100)
    if length is not None:
        lengths[:] = length
    shares = 1 / np.arange(10, items + 10)
    np.save(folder / "flat.npy", draw.choice(items, size=lengths.sum(), p=shares / shares.sum()))
    np.save(folder / "starts.npy", np.concatenate([[0], np.cumsum(lengths)]))
    for modality in ("text", "image"):
        np.save(folder / f"{modality}.npy", _ids(draw, items))


def read_log(folder: Path) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Histories, int64 [T] each, and the IDs of both modalities."""
    flat, starts = np.load(folder / "flat.npy"), np.load(folder / "starts.npy")
    return np.split(flat, starts[1:-1]), {name: np.load(folder / f"{name}.npy") for name in ("text", "image")}


def a_model(config: RecommenderConfig) -> GenerativeRecommender:
    """Random weights, the same at every call."""
    vocabulary = Vocabulary(LEVELS, CODEBOOK_SIZE, config.num_prompt_tokens)
    model = GenerativeRecommender(vocabulary, config, torch.Generator().manual_seed(1))
    return model.train(mode=False)


def as_text_model(model: GenerativeRecommender) -> Any:
    """transformers' own model with the same weights, whose vocabulary has a text tokenizer's words behind the codes."""
    config = T5Config(**model.t5.config.to_dict() | {"vocab_size": TEXT_VOCABULARY, "decoder_start_token_id": 0})
    config.eos_token_id = TEXT_VOCABULARY - 1  # an ID never ends early
    theirs: Any = T5ForConditionalGeneration(config)
    theirs.eval()
    state = {
        name: value for name, value in model.t5.state_dict().items() if value.shape != model.t5.shared.weight.shape
    }
    theirs.load_state_dict(state, strict=False)
    with torch.no_grad():
        theirs.shared.weight[: model.vocabulary.size] = model.t5.shared.weight
    return theirs


def _ids(draw: np.random.Generator, items: int) -> np.ndarray:
    """Distinct IDs that share beginnings as quantized embeddings do: some 250 first codes, most pairs of one item."""
    seen: set[tuple[int, ...]] = set()
    while len(seen) < items:
        first, second = draw.integers(CODEBOOK_SIZE), draw.integers(CODEBOOK_SIZE)
        for _ in range(int(draw.geometric(0.7))):
            seen.add((int(first), int(second), *(int(code) for code in draw.integers(CODEBOOK_SIZE, size=2))))
    return np.array(sorted(seen))[draw.permutation(len(seen))[:items]]
