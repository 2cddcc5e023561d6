"""The test users' predictions, and the agreement of beam search with exact scores."""

from pathlib import Path

import numpy as np
import pytest
import torch

from macrec_pipeline.recommender import RecommenderBundle, beam_agreement, predict_test_users
from macrec_pipeline.recommender.bundle import predictions
from tests.recommender.cyclic_catalogue import NUM_ITEMS, cyclic_histories


def test_test_users_are_predicted_from_all_items_but_the_last(cyclic_bundle_folder: Path) -> None:
    """Every system ranks for every user, and the cycle's next item nearly always comes first."""
    bundle = RecommenderBundle.load(cyclic_bundle_folder)
    histories = cyclic_histories()
    results = predict_test_users(bundle, histories, top_k=5)
    systems = ("macrec", "macrec_text", "macrec_image")
    assert set(results) == {(system, exclude_seen) for system in systems for exclude_seen in (False, True)}
    for (_, exclude_seen), ranked in results.items():
        assert len(ranked) == len(histories)
        for history, of_user in zip(histories, ranked, strict=True):
            assert not (exclude_seen and set(history[:-1].tolist()) & set(of_user.item_indices.tolist()))
    hits = [
        of_user.item_indices[0] == history[-1]
        for history, of_user in zip(histories, results["macrec", False], strict=True)
    ]
    assert np.mean(hits) > 0.9


def test_the_agreement_of_beam_search_with_exact_scores(
    cyclic_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beam as wide as the catalogue agrees for every user; one as wide as the list misses some items."""
    bundle = RecommenderBundle.load(cyclic_bundle_folder)
    full_agreement = {"same_top_10": 1.0, "overlap_10": 1.0, "users": 60.0}
    bundle.description["decoding"]["beam_width"] = NUM_ITEMS
    assert beam_agreement(bundle, cyclic_histories()) == {"text": full_agreement, "image": full_agreement}
    monkeypatch.setattr(predictions, "EXACT_CUTOFF", 5)
    bundle.description["decoding"] |= {"beam_width": 5, "top_k": 5}
    narrow = beam_agreement(bundle, cyclic_histories())["image"]
    assert 0 < narrow["same_top_10"] < narrow["overlap_10"] < 1


def test_the_agreement_is_measured_for_few_users_of_a_small_catalogue(
    cyclic_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users are evenly spaced from the first to the last, fewer for more items; a large catalogue is not measured."""
    bundle = RecommenderBundle.load(cyclic_bundle_folder)
    histories, scored = cyclic_histories(), []

    def record_inputs(inputs: list[np.ndarray], route: str) -> torch.Tensor:
        scored.extend(inputs)
        return torch.rand(3, NUM_ITEMS)

    monkeypatch.setattr(predictions, "EXACT_PAIRS", 3 * NUM_ITEMS + 1)
    monkeypatch.setattr(bundle, "exact_scores", record_inputs)
    beam_agreement(bundle, histories)
    expected = sorted((histories[user][:-1].tolist() for user in (0, 30, 59)), key=len)
    assert [history.tolist() for history in scored] == expected * 2
    monkeypatch.setattr(predictions, "EXACT_ITEMS", NUM_ITEMS - 1)
    assert beam_agreement(bundle, histories) == {}
