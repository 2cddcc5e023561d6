"""The prefix tree against enumeration; beam search and exact scores against a plain loop, and by hand on a table."""

from typing import Literal, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.recommender.bundle.predictions import Agreement, agreement
from macrec_pipeline.recommender.model.generative_recommender import (
    CrossAttentionCache,
    GenerativeRecommender,
    SelfAttentionCache,
)
from macrec_pipeline.recommender.model.history_encoding import ItemCodes
from macrec_pipeline.recommender.retrieval.beam_search import (
    PrefixTree,
    beam_search,
    beam_searches,
    score_catalogue,
    score_items,
)
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever, Ranked
from tests.recommender.random_retriever import LEVELS, SIZE, distinct_codes, exhaustive_scores, random_retriever

NUM_ITEMS = 40
ITEMS = st.sets(st.integers(0, NUM_ITEMS - 1))


@settings(max_examples=40, deadline=None)
@given(num_items=st.integers(1, SIZE**LEVELS), seed=st.integers(0, 999))
def test_the_tree_contains_exactly_the_existing_prefixes(num_items: int, seed: int) -> None:
    """Walking down from the root reaches every ID and nothing else."""
    codes = distinct_codes(num_items, seed)
    tree = PrefixTree(codes, codebook_size=SIZE)
    reached = {(): 0}
    for depth in range(LEVELS):
        longer = {}
        for prefix, node in reached.items():
            assert tree.prefixes(torch.tensor(node), depth=depth).tolist() == list(prefix)
            _, children = tree.children(torch.tensor([node]), depth=depth)
            codes_of_children = tree.last_codes(children, depth=depth + 1)
            for child, code in zip(children.tolist(), codes_of_children.tolist(), strict=True):
                longer[(*prefix, code)] = child
        assert len(longer) == tree.num_nodes(depth=depth + 1)
        reached = longer
    item_of_id = {prefix: int(tree.items(torch.tensor(node))) for prefix, node in reached.items()}
    assert item_of_id == {tuple(row.tolist()): item for item, row in enumerate(codes)}


def test_shared_ids_are_rejected() -> None:
    """Two items with the same ID raise an error that names both rows."""
    with pytest.raises(SemanticIdError, match=r"Items 0 and 2 share the semantic ID \[1, 2\]"):
        PrefixTree(torch.tensor([[1, 2], [1, 3], [1, 2]]), codebook_size=4)


@settings(max_examples=30, deadline=None)
@given(items_of_rows=st.tuples(ITEMS, ITEMS), seed=st.integers(0, 999))
def test_masked_items_below_each_node_are_found(items_of_rows: tuple[set[int], set[int]], seed: int) -> None:
    """At every depth, for each row's own mask; a mask with a single row applies to every row."""
    codes = distinct_codes(NUM_ITEMS, seed)
    tree = PrefixTree(codes, codebook_size=SIZE)
    mask = torch.tensor([[item in items for item in range(NUM_ITEMS)] for items in items_of_rows])
    for depth in range(1, LEVELS + 1):
        nodes = torch.arange(tree.num_nodes(depth=depth)).repeat(2)
        rows = torch.arange(2).repeat_interleave(tree.num_nodes(depth=depth))
        prefixes = [tuple(prefix) for prefix in tree.prefixes(nodes, depth=depth).tolist()]
        masked_prefixes = [{tuple(codes[item, :depth].tolist()) for item in items} for items in items_of_rows]
        found = tree.has_leaf_below(tree.cumulative_leaf_counts(mask), rows, nodes, depth=depth).tolist()
        assert found == [prefix in masked_prefixes[row] for row, prefix in zip(rows.tolist(), prefixes, strict=True)]
        shared = tree.has_leaf_below(tree.cumulative_leaf_counts(mask[:1]), rows, nodes, depth=depth).tolist()
        assert shared == [prefix in masked_prefixes[0] for prefix in prefixes]


def encoder_states(retriever: MultiRouteRetriever, histories: list[list[int]]) -> torch.Tensor:
    """Encode the text IDs of histories of equal length."""
    codes = retriever.items.codes["text"][torch.tensor(histories)]
    tokens = retriever.model.vocabulary.item_tokens(codes, modality="text")
    return retriever.model.encode(tokens.flatten(1))


@torch.no_grad()
@pytest.mark.parametrize("excluded", [[], [0, 1, 2, 5, 8, 13, 21, 34]])
def test_a_beam_as_wide_as_the_catalogue_is_exhaustive(excluded: list[int]) -> None:
    """All items that are not excluded come back, in the order and with the scores of exhaustive scoring."""
    retriever = random_retriever()
    states = encoder_states(retriever, [[7, 9]])
    mask = torch.zeros(1, 40, dtype=torch.bool)
    mask[0, excluded] = True
    beams = beam_search(
        retriever.model,
        retriever.model.cross_attention_cache(states),
        retriever.trees["text"],
        modality="text",
        beam_width=40,
        excluded=mask if excluded else None,
    )
    included = [item for item in range(40) if item not in excluded]
    expected = exhaustive_scores(retriever, states, "text", included)
    order = sorted(included, key=lambda item: (-expected[item], item))
    assert beams.items[0, : len(included)].tolist() == order
    assert (beams.items[0, len(included) :] == -1).all()
    torch.testing.assert_close(beams.scores[0, : len(included)], torch.tensor([expected[item] for item in order]))
    assert sum(np.exp(np.array(list(expected.values())) * LEVELS)) == pytest.approx(1.0), "a distribution over items"


@torch.no_grad()
@pytest.mark.parametrize("excluded", [[], [0, 1, 2, 5, 8, 13]])
def test_searches_that_share_the_decoder_find_what_they_find_alone(excluded: list[int]) -> None:
    """The routes' trees differ in the number of undecided prefixes per level, and one of them ends early."""
    retriever = random_retriever(num_items=16)
    item = torch.arange(16)
    early = torch.stack([item % 4, torch.div(item, 4, rounding_mode="floor"), item * 0], dim=1)  # two codes identify it
    trees = retriever.trees | {"image": PrefixTree(early, codebook_size=4)}
    states = encoder_states(retriever, [[7, 9], [3, 10], [11, 12], [1, 2]])
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[1, excluded] = True
    together = beam_searches(
        retriever.model, retriever.model.cross_attention_cache(states), trees, beam_width=8, excluded=mask
    )
    for number, (modality, beams) in enumerate(zip(trees, together, strict=True)):
        alone = beam_search(
            retriever.model,
            retriever.model.cross_attention_cache(states[2 * number : 2 * number + 2]),
            trees[modality],
            modality=modality,
            beam_width=8,
            excluded=mask,
        )
        assert torch.equal(beams.items, alone.items)
        torch.testing.assert_close(beams.scores, alone.scores)


@torch.no_grad()
@pytest.mark.parametrize("excluded", [[], [0, 1, 2, 5, 8, 13, 21, 34]])
@pytest.mark.parametrize("items_at_once", [1, 10_000])
def test_exact_scores_equal_those_of_a_plain_loop(excluded: list[int], items_at_once: int) -> None:
    """For two histories, scored together or apart; excluded items score minus infinity."""
    retriever = random_retriever()
    states = encoder_states(retriever, [[7, 9], [3, 30]])
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[1, excluded] = True  # only for the second history
    scores = score_catalogue(
        retriever.model,
        retriever.model.cross_attention_cache(states),
        retriever.trees["text"],
        modality="text",
        excluded=mask if excluded else None,
        items_at_once=items_at_once,
    )
    for row, excluded_of_row in ((0, []), (1, excluded)):
        included = [item for item in range(40) if item not in excluded_of_row]
        expected = exhaustive_scores(retriever, states[row : row + 1], "text", included)
        torch.testing.assert_close(scores[row, included], torch.tensor([expected[item] for item in included]))
        assert scores[row, excluded_of_row].isneginf().all()
    torch.testing.assert_close((scores * LEVELS).exp().sum(dim=1), torch.ones(2))


@torch.no_grad()
@pytest.mark.parametrize("excluded", [[], [7, 30]])
def test_scores_of_some_items_equal_those_of_the_whole_catalogue(excluded: list[int]) -> None:
    """Rows may list items in any order, repeat them, or list fewer; excluding items changes the scores of others."""
    retriever = random_retriever()
    model, tree = retriever.model, retriever.trees["image"]
    cross_cache = model.cross_attention_cache(encoder_states(retriever, [[7, 9], [3, 30]]))
    mask = torch.zeros(2, 40, dtype=torch.bool)
    mask[0, excluded] = True
    items = torch.tensor([[39, 7, 7, 0, -1], [30, -1, 12, -1, 5]])
    scores = score_items(model, cross_cache, tree, items, modality="image", excluded=mask if excluded else None)
    of_catalogue = score_catalogue(model, cross_cache, tree, modality="image", excluded=mask if excluded else None)
    expected = of_catalogue.gather(1, items.clamp(min=0)).masked_fill(items < 0, float("-inf"))
    torch.testing.assert_close(scores, expected)
    assert scores[0, 1].isneginf().item() == bool(excluded)
    all_items = torch.ones_like(mask)
    assert score_items(model, cross_cache, tree, items, modality="image", excluded=all_items).isneginf().all()


@pytest.mark.parametrize("encoding", ["exact", "item_causal"])
def test_beam_search_finds_what_exact_scoring_finds(encoding: Literal["exact", "item_causal"]) -> None:
    """A beam as wide as the catalogue gives the same items and scores, and a batch the same as single histories."""
    retriever = random_retriever(encoding=encoding)
    histories = [np.array([7, 9, 1]), np.array([3]), np.array([30, 2, 2, 8, 11, 17])]
    exact = torch.cat([retriever.exact_scores([history], route="image") for history in histories])
    torch.testing.assert_close(retriever.exact_scores(histories, route="image"), exact)
    ranked = retriever.rank(histories, routes=("image",), top_k=40, beam_width=40, batch_size=2)["image"]
    for row, of_row in enumerate(ranked):
        torch.testing.assert_close(exact[row, of_row.item_indices], torch.from_numpy(of_row.scores).float())
        assert of_row.item_indices.tolist() == exact[row].argsort(descending=True, stable=True).tolist()


def test_items_that_differ_in_the_first_code_are_decided_by_it() -> None:
    """If every first code belongs to one item, the search continues without the model and gives the same scores."""
    model = random_retriever().model
    codes = torch.tensor([[2, 1, 1], [0, 3, 2], [3, 3, 0]])
    retriever = MultiRouteRetriever(model, ItemCodes({"text": codes, "image": codes}))
    histories = [np.array([0, 2]), np.array([1])]
    exact = retriever.exact_scores(histories, route="text")
    ranked = retriever.rank(histories, routes=["text"], top_k=3, beam_width=3, batch_size=2)["text"]
    for row, of_row in enumerate(ranked):
        assert of_row.item_indices.tolist() == exact[row].argsort(descending=True).tolist()
        np.testing.assert_allclose(of_row.scores, exact[row, of_row.item_indices])
    torch.testing.assert_close((exact * LEVELS).exp().sum(dim=1), torch.ones(2))


def test_prefixes_of_a_single_item_are_not_decoded() -> None:
    """Two items that differ in the first code need only the root to be decoded."""
    model = TableModel()
    tree = PrefixTree(torch.tensor([[0, 1], [1, 0]]), codebook_size=2)
    scores = score_catalogue(cast(GenerativeRecommender, model), table_cache(0.6), tree, modality="text")
    torch.testing.assert_close((scores * 2).exp(), torch.tensor([[0.6, 0.4]]))
    assert model.num_decoded == 1


def table_cache(*first_code_probabilities: float) -> CrossAttentionCache:
    """Encode each history as the probability of the first code 0."""
    return CrossAttentionCache([torch.tensor(first_code_probabilities)[:, None, None]], [], None)


class TableModel:
    """Two levels of two codes: the history gives the probability of the first code 0, that of the second is 0.55."""

    num_decoded = 0

    def last_tokens(self, codes: torch.Tensor, *, modality: str) -> torch.Tensor:
        return F.pad(codes, (1, 0))[..., -1]

    def decode_next(
        self,
        tokens: torch.Tensor,
        rows: torch.Tensor,
        cross_cache: CrossAttentionCache,
        self_caches: list[SelfAttentionCache],
    ) -> tuple[torch.Tensor, SelfAttentionCache]:
        self.num_decoded += tokens.numel()
        return cross_cache.keys[0][rows, 0], SelfAttentionCache([], [])

    def code_logits(self, states: torch.Tensor, *, modality: str, first_level: int) -> torch.Tensor:
        probability = states if first_level == 0 else torch.full_like(states, 0.55)
        return torch.cat([probability, 1 - probability], dim=-1).log()


def test_a_narrow_beam_by_hand() -> None:
    """The more probable first code divides its probability between two items, so a beam of one misses the third item.

    The items have 0.6 * (0.55, 0.45) = (0.33, 0.27) and 0.4 for the first history, and 0.3 * (0.55, 0.45) and 0.7 for
    the second. Item 2 is best for both, but the first history's beam continues from code 0 and ends at item 0.
    """
    model = cast(GenerativeRecommender, TableModel())
    tree = PrefixTree(torch.tensor([[0, 0], [0, 1], [1, 0]]), codebook_size=2)
    cross_cache = table_cache(0.6, 0.3)
    scores = score_catalogue(model, cross_cache, tree, modality="text")
    torch.testing.assert_close((scores * 2).exp(), torch.tensor([[0.33, 0.27, 0.4], [0.165, 0.135, 0.7]]))
    exact = unscored(scores.argsort(dim=1, descending=True))
    assert [ranked.item_indices.tolist() for ranked in exact] == [[2, 0, 1], [2, 0, 1]]

    narrow = unscored(beam_search(model, cross_cache, tree, modality="text", beam_width=1).items)
    assert [ranked.item_indices.tolist() for ranked in narrow] == [[0], [2]]
    assert agreement(narrow, exact, cutoff=1) == Agreement(same_set=0.5, overlap=0.5)
    assert agreement(narrow, exact, cutoff=2) == Agreement(same_set=0.0, overlap=0.5)
    wide = unscored(beam_search(model, cross_cache, tree, modality="text", beam_width=2).items)
    assert agreement(wide, exact, cutoff=2) == Agreement(same_set=1.0, overlap=1.0)


def unscored(items: torch.Tensor) -> list[Ranked]:
    return [Ranked(row, np.zeros(len(row))) for row in items.numpy()]
