"""The prefix index against enumeration, beam search against exhaustive scoring, fusion by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.recommender.retrieval.beam_search import Beams, beam_search
from macrec_pipeline.recommender.retrieval.fusion import fuse
from macrec_pipeline.recommender.retrieval.prefix_tree import PrefixTree
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever
from macrec_pipeline.recommender.training.losses import ItemCodes
from tests.recommender.exhaustive import LEVELS, SIZE, a_decoder, distinct_codes, exhaustive_scores


@settings(max_examples=40, deadline=None)
@given(num_items=st.integers(1, SIZE**LEVELS), seed=st.integers(0, 999))
def test_the_prefix_index_knows_exactly_the_prefixes_that_exist(num_items: int, seed: int) -> None:
    """Walking the tree reaches every ID, and nothing else."""
    codes = distinct_codes(num_items, seed)
    index = PrefixTree(codes, codebook_size=SIZE)
    reached = {(): 0}
    for depth in range(LEVELS):
        longer = {}
        for prefix, node in reached.items():
            assert index.prefixes(torch.tensor(node), depth=depth).tolist() == list(prefix)
            _, children = index.children(torch.tensor([node]), depth=depth)
            codes_of_children = index.last_codes(children, depth=depth + 1)
            for child, code in zip(children.tolist(), codes_of_children.tolist(), strict=True):
                longer[(*prefix, code)] = child
        assert len(longer) == index.num_nodes(depth=depth + 1)
        reached = longer
    found = {prefix: int(index.items(torch.tensor(node))) for prefix, node in reached.items()}
    assert found == {tuple(row.tolist()): item for item, row in enumerate(codes)}


def test_shared_ids_are_refused() -> None:
    """Two items with one ID are an error that names both rows."""
    with pytest.raises(SemanticIdError, match="Items 0 and 2 share the semantic ID"):
        PrefixTree(torch.tensor([[1, 2], [1, 3], [1, 2]]), codebook_size=4)


@torch.no_grad()
@pytest.mark.parametrize("forbidden", [[], [0, 1, 2, 5, 8, 13, 21, 34]])
def test_a_beam_as_wide_as_the_catalogue_is_exhaustive(forbidden: list[int]) -> None:
    """All allowed items come back, in the order and with the scores of exhaustive scoring."""
    decoder = a_decoder()
    tokens = decoder.model.vocabulary.item_tokens(decoder.items.codes["text"][torch.tensor([[7, 9]])], modality="text")
    states = decoder.model.encode(tokens.flatten(1))
    mask = torch.zeros(1, 40, dtype=torch.bool)
    mask[0, forbidden] = True
    beams = beam_search(
        decoder.model,
        decoder.model.cross_attention_cache(states),
        decoder.indices["text"],
        modality="text",
        beam_width=40,
        forbidden=mask if forbidden else None,
    )
    allowed = [item for item in range(40) if item not in forbidden]
    expected = exhaustive_scores(decoder, states, "text", allowed)
    order = sorted(allowed, key=lambda item: (-expected[item], item))
    assert beams.items[0, : len(allowed)].tolist() == order
    assert (beams.items[0, len(allowed) :] == -1).all()
    torch.testing.assert_close(beams.scores[0, : len(allowed)], torch.tensor([expected[item] for item in order]))
    assert sum(np.exp(np.array(list(expected.values())) * LEVELS)) == pytest.approx(1.0), "a distribution over items"


def test_a_row_gets_the_same_alone_as_in_a_batch() -> None:
    """Neither batching nor the order of the histories changes anyone's recommendations."""
    decoder = a_decoder()
    histories = [np.array([1]), np.array([5, 6, 7, 8, 9, 10]), np.array([3, 2])]
    together = decoder.rank(histories, routes=["fused", "text"], top_k=5, beam_width=8, batch_size=2)
    for row, history in enumerate(histories):
        alone = decoder.rank([history], routes=["fused"], top_k=5, beam_width=8, batch_size=9)["fused"][0]
        assert together["fused"][row].item_indices.tolist() == alone.item_indices.tolist()
        # a log-probability near 0 is the difference of logits, whose last digits float32 rounds
        np.testing.assert_allclose(together["fused"][row].scores, alone.scores, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seen=st.lists(st.integers(0, 39), min_size=1, max_size=39, unique=True), top_k=st.integers(1, 40))
def test_as_many_unseen_items_come_back_as_there_are(seen: list[int], top_k: int) -> None:
    """With seen items excluded, min(k, unseen) distinct unseen items come back, whatever the beam's width."""
    decoder = a_decoder()
    ranked = decoder.rank(
        [np.array(seen)], routes=["fused", "text"], top_k=top_k, beam_width=2, batch_size=4, exclude_seen=True
    )
    for route in ("fused", "text"):
        items = ranked[route][0].item_indices.tolist()
        assert len(items) == len(set(items)) == min(top_k, 40 - len(seen))
        assert not set(items) & set(seen)


def test_fusion_by_hand() -> None:
    """An item of both routes scores the average plus one; a missing item (-1) agrees with nothing."""
    text = Beams(torch.tensor([[4, 2, -1]]), torch.tensor([[-0.5, -1.0, float("-inf")]]))
    image = Beams(torch.tensor([[7, 4, -1]]), torch.tensor([[-0.2, -1.5, float("-inf")]]))
    fused = fuse(text, image)
    assert fused.items.tolist() == [[4, 7, 2, -1, -1, -1]]
    assert fused.scores[0, :3].tolist() == pytest.approx([0.0, -0.2, -1.0])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    batch_size=st.integers(1, 50),
)
def test_batches_are_of_like_lengths(lengths: list[int], batch_size: int) -> None:
    """Each history once, no batch too large, and little padding where there is enough of it to matter."""
    decoder = a_decoder()
    decoder.model.config = decoder.model.config.model_copy(update={"history_length": 50})
    batches = list(decoder.batches([np.zeros(length, dtype=np.int64) for length in lengths], batch_size=batch_size))
    assert sorted(place for batch in batches for place in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        read = np.minimum(np.array(lengths)[batch], 50)
        assert read.max() * len(batch) <= max(1024, 1.2 * read.sum())
        assert len(batch) == 1 or read.max() * len(batch) <= 1536


def test_items_that_differ_in_the_first_code_need_one_decision() -> None:
    """A catalogue in which every first code is one item's: the walk goes on without the model, to the same scores."""
    model = a_decoder().model
    codes = torch.tensor([[2, 1, 1], [0, 3, 2], [3, 3, 0]])
    decoder = MultiRouteRetriever(model, ItemCodes({"text": codes, "image": codes}))
    histories = [np.array([0, 2]), np.array([1])]
    exact = decoder.exact_scores(histories, route="text")
    ranked = decoder.rank(histories, routes=["text"], top_k=3, beam_width=3, batch_size=2)["text"]
    for row, found in enumerate(ranked):
        assert found.item_indices.tolist() == exact[row].argsort(descending=True).tolist()
        np.testing.assert_allclose(found.scores, exact[row, found.item_indices])
    torch.testing.assert_close((exact * LEVELS).exp().sum(dim=1), torch.ones(2))
