"""Explanations name the route that carried an item, its score per route and the codes it shares, and change nothing."""

import numpy as np
import pytest

from macrec_pipeline.recommender import FittedRecommender, RecommenderBundle
from macrec_pipeline.recommender.retrieval.eligible_items import Rules
from macrec_pipeline.recommender.retrieval.explanations import RouteEvidence, longest_shared_prefixes
from macrec_pipeline.recommender.retrieval.fusion import CalibratedFusion
from tests.recommender.cyclic_catalogue import NUM_ITEMS, codes
from tests.recommender.cyclic_models import fit_trained_sasrec, write_fused_bundle

HISTORIES = [["3", "4", "5"], ["nobody"], ["20", "21", "unknown"], ["7"]]


@pytest.fixture(scope="module")
def bundles(trained_model: FittedRecommender, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RecommenderBundle]:
    """One bundle per rule of fusion, and one whose calibrated rule leaves seen items out."""
    sasrec = fit_trained_sasrec()
    weights = {"text": 0.5, "image": 0.2, "collaborative": 0.3}
    rules = {
        "published": (None, None),
        "mixture": (CalibratedFusion("mixture", weights, 0.5, 60), sasrec),
        "product": (CalibratedFusion("product", weights, 0.5, 60), sasrec),
        "unseen": (CalibratedFusion("mixture", {"text": 0.0, "image": 1.0}, 0.5, 60, recommend_seen=False), None),
    }
    folder = tmp_path_factory.mktemp("bundles")
    return {
        name: RecommenderBundle.load(
            write_fused_bundle(
                trained_model,
                folder / name,
                fusion=fusion,
                fusion_setting="published" if fusion is None else "calibrated",
                sasrec=sasrec,
            )
        )
        for name, (fusion, sasrec) in rules.items()
    }


@pytest.mark.parametrize("name", ["published", "mixture", "product", "unseen"])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_an_explanation_changes_no_item_and_no_score(
    bundles: dict[str, RecommenderBundle], name: str, exclude_seen: bool
) -> None:
    """Under every rule of fusion and route; with one explanation per item, and finite scores for all routes."""
    bundle = bundles[name]
    for route in ("fused", *bundle.routes):
        for rules in (None, Rules(excluded=["6", "8"]), Rules(allowed=["3", "4", "5", "6"]), Rules(allowed=[])):
            plain = bundle.recommend_ids(HISTORIES, k=6, route=route, exclude_seen=exclude_seen, rules=rules)
            explained = bundle.recommend_ids(
                HISTORIES, k=6, route=route, exclude_seen=exclude_seen, rules=rules, explain=True
            )
            for row, expected in zip(explained, plain, strict=True):
                assert (row.item_ids, row.scores, row.fallback) == (
                    expected.item_ids,
                    expected.scores,
                    expected.fallback,
                )
                assert expected.explanations is None
                assert row.explanations is not None
                assert len(row.explanations) == len(row.item_ids)
                for explanation in row.explanations:
                    if row.fallback == "popularity":
                        assert (explanation.route, explanation.scores, explanation.shared_codes) == ("popular", {}, {})
                    else:
                        assert list(explanation.scores) == bundle.routes
                        assert np.isfinite(list(explanation.scores.values())).all()
                        assert explanation.route in (bundle.routes if route == "fused" else [route])


def test_the_scores_are_those_of_each_route_alone(bundles: dict[str, RecommenderBundle]) -> None:
    """A request for a single route with the whole catalogue gives the same score to the same item."""
    bundle = bundles["mixture"]
    (explained, *_) = bundle.recommend_ids(HISTORIES[:1], k=8, explain=True)
    for route in bundle.routes:
        (alone,) = bundle.recommend_ids(HISTORIES[:1], k=NUM_ITEMS, route=route)
        expected = dict(zip(alone.item_ids, alone.scores, strict=True))
        assert explained.explanations is not None
        for item_id, explanation in zip(explained.item_ids, explained.explanations, strict=True):
            assert explanation.scores[route] == pytest.approx(expected[item_id], rel=1e-4)


def test_a_route_without_weight_carries_nothing(bundles: dict[str, RecommenderBundle]) -> None:
    """The bundle's rule has no weight for text, although text finds the items too."""
    (explained,) = bundles["unseen"].recommend_ids(HISTORIES[:1], k=8, explain=True)
    assert explained.explanations is not None
    assert {explanation.route for explanation in explained.explanations} == {"image"}


def test_the_carrying_route_by_hand() -> None:
    """The largest weight times probability among the routes that found the item; all of them if none did."""
    log = np.log
    evidence = RouteEvidence(
        weights={"text": 0.25, "image": 0.75, "collaborative": 0.0},
        # probabilities of whole IDs of two codes: text 0.4, 0.4, 0.4, 0.03; image 0.1, 0.2, 0.2, 0.01
        scores={
            "text": log([0.4, 0.4, 0.4, 0.03]) / 2,
            "image": log([0.1, 0.2, 0.2, 0.0099]) / 2,
            "collaborative": log([0.9, 0.9, 0.9, 0.9]),
        },
        found={
            "text": np.array([True, True, True, False]),
            "image": np.array([True, True, False, False]),
            "collaborative": np.array([True, True, True, True]),
        },
        num_codes={"text": 2, "image": 2, "collaborative": 1},
    )
    # text 0.1, 0.1, 0.1, 0.0075 against image 0.075, 0.15, 0.15 (not found), 0.0074
    assert evidence.carrying_routes() == ["text", "image", "text", "text"]


def test_the_longest_shared_prefix_by_hand() -> None:
    """Codes count from the first level on, and of equally long prefixes the newest item's is taken."""
    history = np.array([[1, 2, 3], [1, 2, 0], [5, 2, 3], [1, 9, 9]])
    places, lengths = longest_shared_prefixes(np.array([[1, 2, 3], [1, 2, 7], [1, 7, 7], [9, 2, 3]]), history)
    assert lengths.tolist() == [3, 2, 1, 0]
    assert places[:3].tolist() == [0, 1, 3]


def test_shared_codes_name_an_item_of_the_history(bundles: dict[str, RecommenderBundle]) -> None:
    """They are the leading codes of both IDs, and unknown items of the history shift nothing."""
    bundle = bundles["published"]
    history = ["unknown", "3", "4", "5"]
    (explained,) = bundle.recommend_ids([history], k=NUM_ITEMS, explain=True, beam_width=NUM_ITEMS)
    assert explained.explanations is not None
    num_shared = 0
    for item_id, explanation in zip(explained.item_ids, explained.explanations, strict=True):
        for modality, ids in (("text", codes(1)), ("image", codes(2))):
            lengths = {other: int(np.cumprod(ids[int(other)] == ids[int(item_id)]).sum()) for other in ("3", "4", "5")}
            if modality not in explanation.shared_codes:
                assert not any(lengths.values())
                continue
            shared = explanation.shared_codes[modality]
            assert len(shared.codes) == lengths[shared.item_id] == max(lengths.values())
            assert list(shared.codes) == ids[int(item_id), : len(shared.codes)].tolist()
            num_shared += 1
    assert num_shared >= NUM_ITEMS // 2
