"""Calibrated fusion is fitted on validation targets, prefers the route that knows, and travels with the bundle."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender import (
    FittedRecommender,
    RecommenderBundle,
)
from macrec_pipeline.recommender.bundle.parts import sealed
from macrec_pipeline.recommender.retrieval.fusion import CalibratedFusion
from macrec_pipeline.recommender.retrieval.fusion_fitting import fit_fusion, fusion_grid
from tests.recommender.cycle import NUM_ITEMS, cyclic_histories
from tests.recommender.fusing import (
    DECODING,
    ROUTES,
    TRUE_CODES,
    decoder_of,
    knowing_model,
    scrambled,
    trained,
    validation_ndcg,
    write_bundle,
)

GRID = fusion_grid(ROUTES[:2])


@pytest.fixture(scope="module")
def fitted() -> FittedRecommender:
    return knowing_model()


@pytest.mark.parametrize("noise", ["image", "text"])
def test_a_route_of_noise_never_gets_the_larger_weight(fitted: FittedRecommender, noise: str) -> None:
    """And no other weight or rule of the grid ranks the validation targets better, by a plain loop."""
    ids, histories = scrambled(noise), cyclic_histories()
    # as wide a beam as the list that is ranked
    fusion = fit_fusion(fitted.model, histories, ids, config=DECODING.model_copy(update={"top_k": 10}))
    assert fusion is not None
    assert fusion.num_users == len(histories)
    # as much as the other where the route that knows is so sure that even this ranks no target lower
    assert fusion.weights[noise] <= 0.5
    figures = [validation_ndcg(decoder_of(fitted, ids, candidate), histories) for candidate in GRID]
    assert fusion.validation_ndcg == pytest.approx(max(figures))
    by_noise_alone = figures[GRID.index(max(GRID, key=lambda candidate: candidate.weights[noise]))]
    assert by_noise_alone < fusion.validation_ndcg - 0.3, "the weight matters"


def test_only_validation_targets_are_looked_at(fitted: FittedRecommender) -> None:
    """Other test targets change nothing, other validation targets do."""
    histories = cyclic_histories()

    def fit(position: int) -> CalibratedFusion | None:
        changed = [history.copy() for history in histories]
        for history in changed:
            history[position] = 0
        return fit_fusion(fitted.model, changed, scrambled("text"), config=DECODING)

    expected = fit_fusion(fitted.model, histories, scrambled("text"), config=DECODING)
    assert fit(-1) == expected
    assert fit(-2) != expected


def test_equal_figures_go_to_the_even_mixture(fitted: FittedRecommender) -> None:
    """Where no weight finds any target, nothing speaks against equal weights."""
    histories = cyclic_histories()
    decoder = decoder_of(fitted, TRUE_CODES, GRID[0])
    ranked = decoder.rank(
        [history[:-2] for history in histories], routes=["fused"], top_k=NUM_ITEMS, beam_width=5, batch_size=99
    )["fused"]
    assert all(len(found.item_indices) == NUM_ITEMS for found in ranked)
    missed = [
        np.array([*history[:-2], found.item_indices[-1], 0]) for history, found in zip(histories, ranked, strict=True)
    ]
    narrow = DECODING.model_copy(update={"beam_width": 1, "top_k": 1})
    fusion = fit_fusion(fitted.model, missed, TRUE_CODES, config=narrow)
    assert fusion == CalibratedFusion("mixture", {"text": 0.5, "image": 0.5}, 0.0, len(histories), recommend_seen=False)


def test_seen_items_come_back_only_where_someone_took_one_twice(fitted: FittedRecommender) -> None:
    """Learned from the validation targets: without a repeat none is recommended, asked or not; the test target is no
    evidence, and repeats among the validation targets bring them back."""
    fresh = [np.array([*history[:-1], history[0]]) for history in cyclic_histories()]
    fusion = fit_fusion(fitted.model, fresh, TRUE_CODES, config=DECODING)
    assert fusion is not None
    assert not fusion.recommend_seen
    inputs = [history[:-1] for history in fresh]
    ranked = decoder_of(fitted, TRUE_CODES, fusion).rank(
        inputs, routes=["fused", "text"], top_k=25, beam_width=25, batch_size=16
    )
    assert all(
        not set(found.item_indices) & set(history) for found, history in zip(ranked["fused"], inputs, strict=True)
    )
    assert any(set(found.item_indices) & set(history) for found, history in zip(ranked["text"], inputs, strict=True))
    assert all(
        len(found.item_indices) == 30 - len(set(h)) or len(found.item_indices) == 25
        for found, h in zip(ranked["fused"], inputs, strict=True)
    )

    # everyone goes once around and takes the first item again
    again = [(history[0] + np.arange(NUM_ITEMS + 2)) % NUM_ITEMS for history in cyclic_histories()]
    repeating = fit_fusion(fitted.model, again, TRUE_CODES, config=DECODING)
    assert repeating is not None
    assert repeating.recommend_seen
    assert repeating.validation_ndcg > 0.5


def test_a_model_of_one_route_has_nothing_to_fuse() -> None:
    """No rule is fitted for it."""
    alone = trained(tasks=("text_to_text",), num_epochs=1)
    assert fit_fusion(alone.model, cyclic_histories(), TRUE_CODES, config=DECODING) is None


def test_the_grid_is_the_whole_simplex_and_has_its_corners() -> None:
    """Both rules; 11 weights of two routes and 66 of three, each once, together one; every route can be gated off."""
    for routes, count in ((ROUTES[:2], 11), (ROUTES, 66)):
        grid = fusion_grid(routes)
        for rule in ("mixture", "product"):
            weights = [tuple(one.weights[route] for route in routes) for one in grid if one.rule == rule]
            assert len(weights) == len(set(weights)) == count
            assert all(sum(shares) == pytest.approx(1) for shares in weights)
            for corner in np.eye(len(routes)):
                assert tuple(corner) in weights
    without = [one for one in fusion_grid(ROUTES) if one.weights["collaborative"] == 0]
    assert [(one.rule, one.weights["text"]) for one in without] == [(one.rule, one.weights["text"]) for one in GRID]


def test_a_bundle_fuses_by_the_rule_that_it_carries(fitted: FittedRecommender, tmp_path: Path) -> None:
    """Calibrated settings use the fitted rule, published ones never do, whatever lies beside the weights."""
    fusion = CalibratedFusion("product", {"text": 0.3, "image": 0.7}, 0.25, 60)
    inputs = [history[:-1] for history in cyclic_histories()]

    def scores(folder: Path) -> list[list[float]]:
        found = RecommenderBundle.load(folder).recommend(inputs, k=5)["fused"]
        return [ranked.scores.tolist() for ranked in found]

    calibrated = write_bundle(fitted, tmp_path / "calibrated", fusion=fusion, config="calibrated")
    assert RecommenderBundle.load(calibrated).description["fusion"] == asdict(fusion)
    own = decoder_of(fitted, TRUE_CODES, fusion).rank(inputs, routes=["fused"], top_k=5, beam_width=5, batch_size=16)
    assert scores(calibrated) == [ranked.scores.tolist() for ranked in own["fused"]]
    published = scores(write_bundle(fitted, tmp_path / "published", fusion=None, config="published"))
    assert scores(write_bundle(fitted, tmp_path / "unused", fusion=fusion, config="published")) == published
    assert published != scores(calibrated)


def test_a_bundle_without_the_rule_that_it_needs_refuses_to_load(fitted: FittedRecommender, tmp_path: Path) -> None:
    """Never fitted, and damaged: the error names the file."""
    folder = write_bundle(fitted, tmp_path, fusion=None, config="calibrated")
    with pytest.raises(StorageError, match=r"bundle.json asks for calibrated fusion, but has no fitted weights"):
        RecommenderBundle.load(folder)
    description = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(sealed(description | {"fusion": {"rule": "product"}})))
    with pytest.raises(StorageError, match=r"fusion in .*bundle.json is .*it needs rule"):
        RecommenderBundle.load(folder)
