"""A small random decoder, and the scores of its whole catalogue by the plainest means there are."""

import itertools
from typing import Literal

import numpy as np
import torch

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender
from macrec_pipeline.recommender.model.vocabulary import Vocabulary
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever
from macrec_pipeline.recommender.training.losses import ItemCodes

LEVELS, SIZE = 3, 4


def distinct_codes(num_items: int, seed: int) -> torch.Tensor:
    every = np.array(list(itertools.product(range(SIZE), repeat=LEVELS)))
    return torch.from_numpy(np.random.default_rng(seed).permutation(every)[:num_items])


def a_decoder(num_items: int = 40, encoding: Literal["exact", "item_causal"] = "exact") -> MultiRouteRetriever:
    config = RecommenderConfig(
        d_model=16,
        d_ff=32,
        d_kv=8,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=2,
        history_length=4,
        encoding=encoding,
    )
    model = GenerativeRecommender(Vocabulary(LEVELS, SIZE, 2), config, torch.Generator().manual_seed(3)).eval()
    for parameter in model.parameters():  # far from uniform, so that the order is no matter of float noise
        parameter.data *= 1.7
    return MultiRouteRetriever(
        model, ItemCodes({"text": distinct_codes(num_items, 1), "image": distinct_codes(num_items, 2)})
    )


def exhaustive_scores(
    decoder: MultiRouteRetriever, encoded: torch.Tensor, modality: str, allowed: list[int]
) -> dict[int, float]:
    """Each allowed item's mean log-probability a code, by a plain loop over the tree in double precision."""
    codes = decoder.items.codes[modality]
    model, memory = decoder.model, decoder.model.cross_attention_cache(encoded)
    scores = {}
    for item in allowed:
        total = 0.0
        for level in range(LEVELS):
            prefix = codes[item, :level]
            inputs = model.decoder_inputs(prefix[None, None], modality=modality)
            states = model.decode(inputs, memory)[:, :, -1:]
            logits = model.code_logits(states, modality=modality, first_level=level).flatten().double()
            legal = sorted({int(codes[other, level]) for other in allowed if torch.equal(codes[other, :level], prefix)})
            total += float(logits[int(codes[item, level])] - torch.logsumexp(logits[legal], dim=0))
        scores[item] = total / LEVELS
    return scores
