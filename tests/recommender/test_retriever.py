"""A retriever ranks each history as if it were alone, returns as many items as there are, and batches by length."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recommender.random_retriever import random_retriever


def test_a_history_gets_the_same_items_alone_as_in_a_batch() -> None:
    """Neither batching nor the order of the histories changes anyone's recommendations."""
    retriever = random_retriever()
    histories = [np.array([1]), np.array([5, 6, 7, 8, 9, 10]), np.array([3, 2])]
    together = retriever.rank(histories, routes=["fused", "text"], top_k=5, beam_width=8, batch_size=2)
    for row, history in enumerate(histories):
        alone = retriever.rank([history], routes=["fused"], top_k=5, beam_width=8, batch_size=9)["fused"][0]
        assert together["fused"][row].item_indices.tolist() == alone.item_indices.tolist()
        # a log-probability near 0 is a difference of logits, whose last digits float32 rounds
        np.testing.assert_allclose(together["fused"][row].scores, alone.scores, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seen=st.lists(st.integers(0, 39), min_size=1, max_size=39, unique=True), top_k=st.integers(1, 40))
def test_min_of_k_and_unseen_items_come_back(seen: list[int], top_k: int) -> None:
    """If seen items are excluded, min(k, unseen) distinct unseen items come back, whatever the beam width."""
    retriever = random_retriever()
    ranked = retriever.rank(
        [np.array(seen)], routes=["fused", "text"], top_k=top_k, beam_width=2, batch_size=4, exclude_seen=True
    )
    for route in ("fused", "text"):
        items = ranked[route][0].item_indices.tolist()
        assert len(items) == len(set(items)) == min(top_k, 40 - len(seen))
        assert not set(items) & set(seen)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    batch_size=st.integers(1, 50),
)
def test_batches_have_similar_lengths(lengths: list[int], batch_size: int) -> None:
    """Each history is in one batch, no batch is too large, and little is padded once there is enough to matter."""
    retriever = random_retriever()
    retriever.model.spec = replace(retriever.model.spec, history_length=50)
    batches = list(retriever.batches([np.zeros(length, dtype=np.int64) for length in lengths], batch_size=batch_size))
    assert sorted(position for batch in batches for position in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        num_read = np.minimum(np.array(lengths)[batch], 50)
        assert num_read.max() * len(batch) <= max(1024, 1.2 * num_read.sum())
        assert len(batch) == 1 or num_read.max() * len(batch) <= 1536
