"""A small retriever with random weights, and the scores of its whole catalogue by a plain loop."""

import itertools
from typing import Literal

import numpy as np
import torch

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender, ModelSpec
from macrec_pipeline.recommender.model.history_encoding import ItemCodes, Vocabulary
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever

LEVELS, SIZE = 3, 4


def distinct_codes(num_items: int, seed: int) -> torch.Tensor:
    """Draw distinct semantic IDs, int64 [N, 3], each code in [0, 4)."""
    all_ids = np.array(list(itertools.product(range(SIZE), repeat=LEVELS)))
    return torch.from_numpy(np.random.default_rng(seed).permutation(all_ids)[:num_items])


def random_retriever(num_items: int = 40, encoding: Literal["exact", "item_causal"] = "exact") -> MultiRouteRetriever:
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
    spec = ModelSpec.from_settings(config.model_dump())
    model = GenerativeRecommender(Vocabulary(LEVELS, SIZE, 2), spec, torch.Generator().manual_seed(3)).eval()
    for parameter in model.parameters():  # spreads the scores, so that float noise cannot change their order
        parameter.data *= 1.7
    return MultiRouteRetriever(
        model, ItemCodes({"text": distinct_codes(num_items, 1), "image": distinct_codes(num_items, 2)})
    )


def exhaustive_scores(
    retriever: MultiRouteRetriever, states: torch.Tensor, modality: str, included: list[int]
) -> dict[int, float]:
    """Score each included item, mean log-probability per code, by a plain loop over the tree in double precision."""
    codes = retriever.items.codes[modality]
    model, cross_cache = retriever.model, retriever.model.cross_attention_cache(states)
    scores = {}
    for item in included:
        total = 0.0
        for level in range(LEVELS):
            prefix = codes[item, :level]
            inputs = model.decoder_inputs(prefix[None, None], modality=modality)
            states_of_item = model.decode(inputs, cross_cache)[:, :, -1:]
            logits = model.code_logits(states_of_item, modality=modality, first_level=level).flatten().double()
            possible = sorted(
                {int(codes[other, level]) for other in included if torch.equal(codes[other, :level], prefix)}
            )
            total += float(logits[int(codes[item, level])] - torch.logsumexp(logits[possible], dim=0))
        scores[item] = total / LEVELS
    return scores
