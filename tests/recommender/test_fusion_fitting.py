"""Calibrated fusion is fitted on the validation targets, and prefers the route that predicts them."""

import numpy as np
import pytest

from macrec_pipeline.recommender import FittedRecommender
from macrec_pipeline.recommender.retrieval.fusion import CalibratedFusion
from macrec_pipeline.recommender.retrieval.fusion_fitting import fit_fusion, fusion_grid
from tests.recommender.cyclic_catalogue import NUM_ITEMS, cyclic_histories
from tests.recommender.cyclic_models import (
    DECODING,
    ROUTES,
    TRUE_CODES,
    fit,
    retriever_of,
    validation_ndcg,
    with_shuffled_route,
)

GRID = fusion_grid(ROUTES[:2])


@pytest.mark.parametrize("noise", ["image", "text"])
def test_a_route_of_noise_never_gets_the_larger_weight(trained_model: FittedRecommender, noise: str) -> None:
    """No other weight or rule of the grid ranks the validation targets better, computed by a plain loop."""
    codes_of, histories = with_shuffled_route(noise), cyclic_histories()
    # the beam is as wide as the list that is ranked
    fusion = fit_fusion(trained_model.model, histories, codes_of, config=DECODING.model_copy(update={"top_k": 10}))
    assert fusion is not None
    assert fusion.num_users == len(histories)
    # equal weights are possible: the other route can be so certain that noise lowers no target's rank
    assert fusion.weights[noise] <= 0.5
    ndcg = [validation_ndcg(retriever_of(trained_model, codes_of, rule), histories) for rule in GRID]
    assert fusion.validation_ndcg == pytest.approx(max(ndcg))
    ndcg_of_noise = ndcg[GRID.index(max(GRID, key=lambda rule: rule.weights[noise]))]
    assert ndcg_of_noise < fusion.validation_ndcg - 0.3, "the weight matters"


def test_only_validation_targets_are_read(trained_model: FittedRecommender) -> None:
    """Other test targets change nothing; other validation targets do."""
    histories = cyclic_histories()

    def fit_with_changed(position: int) -> CalibratedFusion | None:
        changed = [history.copy() for history in histories]
        for history in changed:
            history[position] = 0
        return fit_fusion(trained_model.model, changed, with_shuffled_route("text"), config=DECODING)

    expected = fit_fusion(trained_model.model, histories, with_shuffled_route("text"), config=DECODING)
    assert fit_with_changed(-1) == expected
    assert fit_with_changed(-2) != expected


def test_ties_prefer_the_even_mixture(trained_model: FittedRecommender) -> None:
    """If no rule finds any target, the routes get equal weights."""
    histories = cyclic_histories()
    ranked = retriever_of(trained_model, TRUE_CODES, GRID[0]).rank(
        [history[:-2] for history in histories], routes=["fused"], top_k=NUM_ITEMS, beam_width=5, batch_size=99
    )["fused"]
    assert all(len(of_user.item_indices) == NUM_ITEMS for of_user in ranked)
    with_missed_targets = [
        np.array([*history[:-2], of_user.item_indices[-1], 0])
        for history, of_user in zip(histories, ranked, strict=True)
    ]
    narrow = DECODING.model_copy(update={"beam_width": 1, "top_k": 1})
    fusion = fit_fusion(trained_model.model, with_missed_targets, TRUE_CODES, config=narrow)
    assert fusion == CalibratedFusion("mixture", {"text": 0.5, "image": 0.5}, 0.0, len(histories), recommend_seen=False)


def test_seen_items_come_back_only_if_some_target_was_seen(trained_model: FittedRecommender) -> None:
    """If no validation target repeats an earlier item, seen items are left out even where the caller permits them.

    Repeats among the test targets are no evidence; repeats among the validation targets are.
    """
    repeating_test_target = [np.array([*history[:-1], history[0]]) for history in cyclic_histories()]
    fusion = fit_fusion(trained_model.model, repeating_test_target, TRUE_CODES, config=DECODING)
    assert fusion is not None
    assert not fusion.recommend_seen
    inputs = [history[:-1] for history in repeating_test_target]
    ranked = retriever_of(trained_model, TRUE_CODES, fusion).rank(
        inputs, routes=["fused", "text"], top_k=25, beam_width=25, batch_size=16
    )

    def repeats(route: str) -> list[bool]:
        return [
            bool(set(of_user.item_indices) & set(history))
            for of_user, history in zip(ranked[route], inputs, strict=True)
        ]

    assert not any(repeats("fused"))
    assert any(repeats("text"))
    assert all(
        len(of_user.item_indices) == 30 - len(set(history)) or len(of_user.item_indices) == 25
        for of_user, history in zip(ranked["fused"], inputs, strict=True)
    )

    # everyone walks around the cycle once and takes the first item again
    repeating = [(history[0] + np.arange(NUM_ITEMS + 2)) % NUM_ITEMS for history in cyclic_histories()]
    fusion_of_repeating = fit_fusion(trained_model.model, repeating, TRUE_CODES, config=DECODING)
    assert fusion_of_repeating is not None
    assert fusion_of_repeating.recommend_seen
    assert fusion_of_repeating.validation_ndcg > 0.5


def test_a_single_route_has_nothing_to_fuse() -> None:
    """No rule is fitted for a model with one route."""
    text_only = fit(tasks=("text_to_text",), num_epochs=1)
    assert fit_fusion(text_only.model, cyclic_histories(), TRUE_CODES, config=DECODING) is None


def test_the_grid_covers_the_simplex_with_its_corners() -> None:
    """Each rule has 11 weights of two routes or 66 of three, each once and with sum 1; every route can get zero."""
    for routes, count in ((ROUTES[:2], 11), (ROUTES, 66)):
        grid = fusion_grid(routes)
        for name in ("mixture", "product"):
            weights = [tuple(rule.weights[route] for route in routes) for rule in grid if rule.rule == name]
            assert len(weights) == len(set(weights)) == count
            assert all(sum(of_routes) == pytest.approx(1) for of_routes in weights)
            for corner in np.eye(len(routes)):
                assert tuple(corner) in weights
    generative_only = [rule for rule in fusion_grid(ROUTES) if rule.weights["collaborative"] == 0]
    assert [(rule.rule, rule.weights["text"]) for rule in generative_only] == [
        (rule.rule, rule.weights["text"]) for rule in GRID
    ]
