"""Exact scores against a plain loop and against beams of any width; their agreement by hand."""

from typing import Literal, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from macrec_pipeline.recommender.model.generative_recommender import (
    CrossAttentionCache,
    GenerativeRecommender,
    SelfAttentionCache,
)
from macrec_pipeline.recommender.retrieval.beam_search import beam_search
from macrec_pipeline.recommender.retrieval.exact_scoring import Agreement, agreement, score_catalogue, score_items
from macrec_pipeline.recommender.retrieval.prefix_tree import PrefixTree
from macrec_pipeline.recommender.retrieval.ranking import Ranked
from tests.recommender.exhaustive import LEVELS, a_decoder, exhaustive_scores


@torch.no_grad()
@pytest.mark.parametrize("forbidden", [[], [0, 1, 2, 5, 8, 13, 21, 34]])
@pytest.mark.parametrize("items_at_once", [1, 10_000])
def test_exact_scores_are_those_of_a_plain_loop(forbidden: list[int], items_at_once: int) -> None:
    """For two histories, together or apart; what is forbidden scores nothing."""
    decoder = a_decoder()
    tokens = decoder.model.vocabulary.item_tokens(
        decoder.items.codes["text"][torch.tensor([[7, 9], [3, 30]])], modality="text"
    )
    states = decoder.model.encode(tokens.flatten(1))
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[1, forbidden] = True  # of the second history alone
    scores = score_catalogue(
        decoder.model,
        decoder.model.cross_attention_cache(states),
        decoder.indices["text"],
        modality="text",
        forbidden=mask if forbidden else None,
        items_at_once=items_at_once,
    )
    for row, left_out in ((0, []), (1, forbidden)):
        allowed = [item for item in range(40) if item not in left_out]
        expected = exhaustive_scores(decoder, states[row : row + 1], "text", allowed)
        torch.testing.assert_close(scores[row, allowed], torch.tensor([expected[item] for item in allowed]))
        assert scores[row, left_out].isneginf().all()
    torch.testing.assert_close((scores * LEVELS).exp().sum(dim=1), torch.ones(2))


@torch.no_grad()
@pytest.mark.parametrize("forbidden", [[], [7, 30]])
def test_some_items_score_what_the_whole_catalogue_says(forbidden: list[int]) -> None:
    """Each row's own items, in any order, repeated or fewer; forbidden ones score nothing, and change the others."""
    decoder = a_decoder()
    model, index = decoder.model, decoder.indices["image"]
    tokens = model.vocabulary.item_tokens(decoder.items.codes["text"][torch.tensor([[7, 9], [3, 30]])], modality="text")
    memory = model.cross_attention_cache(model.encode(tokens.flatten(1)))
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[0, forbidden] = True
    asked = torch.tensor([[39, 7, 7, 0, -1], [30, -1, 12, -1, 5]])
    found = score_items(model, memory, index, asked, modality="image", forbidden=mask if forbidden else None)
    whole = score_catalogue(model, memory, index, modality="image", forbidden=mask if forbidden else None)
    expected = whole.gather(1, asked.clamp(min=0)).masked_fill(asked < 0, float("-inf"))
    torch.testing.assert_close(found, expected)
    assert found[0, 1].isneginf().item() == bool(forbidden)
    everything = torch.ones_like(mask)
    assert score_items(model, memory, index, asked, modality="image", forbidden=everything).isneginf().all()


@pytest.mark.parametrize("encoding", ["exact", "item_causal"])
def test_a_beam_finds_what_exact_scoring_finds(encoding: Literal["exact", "item_causal"]) -> None:
    """A beam as wide as the catalogue has the same items and scores, and a batch is as each history alone."""
    decoder = a_decoder(encoding=encoding)
    histories = [np.array([7, 9, 1]), np.array([3]), np.array([30, 2, 2, 8, 11, 17])]
    exact = torch.cat([decoder.exact_scores([history], route="image") for history in histories])
    torch.testing.assert_close(decoder.exact_scores(histories, route="image"), exact)
    ranked = decoder.rank(histories, routes=("image",), top_k=40, beam_width=40, batch_size=2)["image"]
    for row, found in enumerate(ranked):
        torch.testing.assert_close(exact[row, found.item_indices], torch.from_numpy(found.scores).float())
        assert found.item_indices.tolist() == exact[row].argsort(descending=True, stable=True).tolist()


def test_nothing_is_decoded_for_an_only_child() -> None:
    """Prefixes that one code follows cost nothing: three items that differ in the first code need the root alone."""
    model = TableModel()
    index = PrefixTree(torch.tensor([[0, 1], [1, 0]]), codebook_size=2)
    scores = score_catalogue(cast(GenerativeRecommender, model), remembered(0.6), index, modality="text")
    torch.testing.assert_close((scores * 2).exp(), torch.tensor([[0.6, 0.4]]))
    assert model.decoded == 1


def remembered(*first: float) -> CrossAttentionCache:
    """One number a history."""
    return CrossAttentionCache([torch.tensor(first)[:, None, None]], [], None)


class TableModel:
    """Two levels of two codes: a history is the probability of the first code 0; the second is 0.55 against 0.45."""

    decoded = 0

    def last_tokens(self, codes: torch.Tensor, *, modality: str) -> torch.Tensor:
        return F.pad(codes, (1, 0))[..., -1]

    def decode_next(
        self, tokens: torch.Tensor, memory: CrossAttentionCache, past: list[SelfAttentionCache]
    ) -> tuple[torch.Tensor, SelfAttentionCache]:
        self.decoded += tokens.numel()
        return memory.keys[0].expand(*tokens.shape, 1), SelfAttentionCache([], [])

    def code_logits(self, states: torch.Tensor, *, modality: str, first_level: int) -> torch.Tensor:
        first = states if first_level == 0 else torch.full_like(states, 0.55)
        return torch.cat([first, 1 - first], dim=-1).log()


def test_a_narrow_beam_by_hand() -> None:
    """The likelier first code shares its probability between two items, and a beam of one cannot see the third.

    The items have 0.6 * (0.55, 0.45) = (0.33, 0.27) and 0.4 for the first history, for the second 0.3 * (0.55, 0.45)
    and 0.7: the best is item 2 for both, but the beam of the first history goes on from code 0 and ends with item 0.
    """
    model = cast(GenerativeRecommender, TableModel())
    index = PrefixTree(torch.tensor([[0, 0], [0, 1], [1, 0]]), codebook_size=2)
    memory = remembered(0.6, 0.3)
    scores = score_catalogue(model, memory, index, modality="text")
    torch.testing.assert_close((scores * 2).exp(), torch.tensor([[0.33, 0.27, 0.4], [0.165, 0.135, 0.7]]))
    exact = _ranked(scores.argsort(dim=1, descending=True))
    assert [ranked.item_indices.tolist() for ranked in exact] == [[2, 0, 1], [2, 0, 1]]

    found = _ranked(beam_search(model, memory, index, modality="text", beam_width=1).items)
    assert [ranked.item_indices.tolist() for ranked in found] == [[0], [2]]
    assert agreement(found, exact, cutoff=1) == Agreement(same_set=0.5, overlap=0.5)
    assert agreement(found, exact, cutoff=2) == Agreement(same_set=0.0, overlap=0.5)
    wider = _ranked(beam_search(model, memory, index, modality="text", beam_width=2).items)
    assert agreement(wider, exact, cutoff=2) == Agreement(same_set=1.0, overlap=1.0)


def _ranked(items: torch.Tensor) -> list[Ranked]:
    return [Ranked(row, np.zeros(len(row))) for row in items.numpy()]
