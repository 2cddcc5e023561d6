"""The fusion rules by hand."""

import math

import pytest
import torch

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.beam_search import Beams
from macrec_pipeline.recommender.fusion import (
    COLLABORATIVE,
    CalibratedFusion,
    best_items,
    fuse_candidates,
    gather_candidates,
)

NOTHING = float("-inf")
# of whole IDs of two codes: text 4: -1, 2: -2; image 7: -0.4, 4: -3
TEXT = Beams(torch.tensor([[4, 2, -1]]), torch.tensor([[-0.5, -1.0, NOTHING]]))
IMAGE = Beams(torch.tensor([[7, 4, -1]]), torch.tensor([[-0.2, -1.5, NOTHING]]))


# of the eight items of a catalogue; the collaborative route's best two are 5 and 4
COLLABORATIVE_SCORES = torch.tensor([[-9.0, -8.0, -3.0, NOTHING, -1.5, -0.5, -7.0, -6.0]])


def a_fusion(rule: str, **weights: float) -> CalibratedFusion:
    values = {"rule": rule, "weights": weights, "validation_ndcg": 0.0, "num_users": 0}
    return CalibratedFusion.from_description(values, where="a test")


def fused(rule: str, weight: float) -> tuple[list[int], list[float]]:
    candidates = gather_candidates({"text": TEXT, "image": IMAGE}, num_levels=2)
    beams = fuse_candidates(candidates, a_fusion(rule, text=weight, image=1 - weight))
    assert beams.items[0, 3:].tolist() == [-1, -1, -1]
    assert beams.scores[0, 3:].isneginf().all()
    return beams.items[0, :3].tolist(), beams.scores[0, :3].tolist()


def fused_three(rule: str, weights: tuple[float, float, float], width: int = 2) -> tuple[list[int], list[float]]:
    candidates = gather_candidates(
        {"text": TEXT, "image": IMAGE}, num_levels=2, collaborative=COLLABORATIVE_SCORES, width=width
    )
    text, image, collaborative = weights
    beams = fuse_candidates(candidates, a_fusion(rule, text=text, image=image, collaborative=collaborative))
    found = beams.items[0] >= 0
    return beams.items[0, found].tolist(), beams.scores[0, found].tolist()


# what each route says of each candidate: floors are -2 of text and -3 of image, the collaborative score is exact
OPINIONS = {4: (-1.0, -3.0, -1.5), 2: (-2.0, -3.0, -3.0), 7: (-2.0, -0.4, -6.0), 5: (-2.0, -3.0, -0.5)}


def test_three_routes_as_a_product_by_hand() -> None:
    """An item of a generative route has its exact collaborative score; one of the collaborative route their floors."""
    weights = (0.5, 0.2, 0.3)
    expected = {
        item: sum(share * score for share, score in zip(weights, scores, strict=True))
        for item, scores in OPINIONS.items()
    }
    assert expected[4] == pytest.approx(-1.55)
    assert expected[5] == pytest.approx(-1.75)
    items, scores = fused_three("product", weights)
    assert items == [4, 5, 2, 7] == sorted(expected, key=lambda item: -expected[item])
    assert scores == pytest.approx([expected[item] for item in items])


def test_three_routes_as_a_mixture_by_hand() -> None:
    """The logarithm of the weighted sum of three probabilities."""
    weights = (0.2, 0.3, 0.5)
    expected = {
        item: math.log(sum(share * math.exp(score) for share, score in zip(weights, scores, strict=True)))
        for item, scores in OPINIONS.items()
    }
    items, scores = fused_three("mixture", weights)
    assert items == [5, 7, 4, 2] == sorted(expected, key=lambda item: -expected[item])
    assert scores == pytest.approx([expected[item] for item in items])


@pytest.mark.parametrize("rule", ["product", "mixture"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_collaborative_route_without_weight_is_not_there(rule: str, weight: float) -> None:
    """The result is that of the two generative routes, items and scores, and has none that it alone found."""
    assert fused_three(rule, (weight, 1 - weight, 0.0), width=5) == fused(rule, weight)


@pytest.mark.parametrize("rule", ["product", "mixture"])
def test_all_weight_on_the_collaborative_route_is_that_route(rule: str) -> None:
    """All candidates by its exact scores; what a row must not get never comes."""
    assert fused_three(rule, (0.0, 0.0, 1.0)) == ([5, 4, 2, 7], pytest.approx([-0.5, -1.5, -3.0, -6.0]))
    assert 3 not in fused_three(rule, (0.0, 0.0, 1.0), width=8)[0]


def test_one_generative_route_and_the_collaborative_one() -> None:
    """Two routes of which one is exact."""
    candidates = gather_candidates({"text": TEXT}, num_levels=2, collaborative=COLLABORATIVE_SCORES, width=1)
    beams = fuse_candidates(candidates, a_fusion("product", text=0.5, collaborative=0.5))
    assert beams.items.tolist() == [[4, 5, 2, -1]]
    assert beams.scores[0, :3].tolist() == pytest.approx([-1.25, -1.25, -2.5])


def test_the_best_items_of_a_catalogue() -> None:
    """By score, then by index; forbidden ones are missing, and no more than there are."""
    found = best_items(torch.tensor([[-1.0, NOTHING, -0.5, -1.0]]), width=9)
    assert found.items.tolist() == [[2, 0, 3, -1]]
    assert COLLABORATIVE == "collaborative"


def test_a_product_by_hand() -> None:
    """The weighted sum of both routes' totals; what a route lacks counts as its worst, -2 of text and -3 of image."""
    items, scores = fused("product", 0.75)
    assert items == [4, 7, 2]
    assert scores == pytest.approx([0.75 * -1 + 0.25 * -3, 0.75 * -2 + 0.25 * -0.4, 0.75 * -2 + 0.25 * -3])


def test_a_mixture_by_hand() -> None:
    """The logarithm of the weighted sum of both routes' probabilities, with the same floors."""
    items, scores = fused("mixture", 0.25)
    expected = {4: (-1, -3), 2: (-2, -3), 7: (-2, -0.4)}
    assert items == [7, 4, 2]
    assert scores == pytest.approx(
        [math.log(0.25 * math.exp(expected[item][0]) + 0.75 * math.exp(expected[item][1])) for item in items]
    )


@pytest.mark.parametrize("rule", ["product", "mixture"])
def test_all_weight_on_one_route_is_that_route(rule: str) -> None:
    """The other's items come at the floor; equal scores go to the lower item."""
    assert fused(rule, 1.0) == ([4, 2, 7], pytest.approx([-1, -2, -2]))
    assert fused(rule, 0.0) == ([7, 2, 4], pytest.approx([-0.4, -3, -3]))


def test_the_same_item_in_rows_that_lack_others() -> None:
    """A row in which nothing is allowed stays empty and disturbs no other."""
    empty = Beams(
        torch.cat([TEXT.items, -torch.ones(1, 3).long()]), torch.cat([TEXT.scores, torch.full((1, 3), NOTHING)])
    )
    nothing_allowed = torch.cat([COLLABORATIVE_SCORES, torch.full((1, 8), NOTHING)])
    for rule in ("product", "mixture"):
        candidates = gather_candidates({"text": empty, "image": empty}, num_levels=2)
        beams = fuse_candidates(candidates, a_fusion(rule, text=0.0, image=1.0))
        assert beams.items.tolist() == [[4, 2, -1, -1, -1, -1], [-1] * 6]
        candidates = gather_candidates(
            {"text": empty, "image": empty}, num_levels=2, collaborative=nothing_allowed, width=2
        )
        beams = fuse_candidates(candidates, a_fusion(rule, text=0.4, image=0.4, collaborative=0.2))
        assert beams.items[0, :3].tolist() == [4, 5, 2]
        assert beams.items[1].tolist() == [-1] * 8


@pytest.mark.parametrize(
    "values",
    [
        {"rule": "sum", "weights": {"text": 0.5, "image": 0.5}, "validation_ndcg": 0.1, "num_users": 3},
        {"rule": "mixture", "weights": {"text": 1.5, "image": -0.5}, "validation_ndcg": 0.1, "num_users": 3},
        {"rule": "mixture", "weights": {"text": 0.5, "image": 0.4}, "validation_ndcg": 0.1, "num_users": 3},
        {"rule": "mixture", "weights": {"text": None, "image": 0.5}, "validation_ndcg": 0.1, "num_users": 3},
        {"rule": "mixture", "weights": [0.5, 0.5], "validation_ndcg": 0.1, "num_users": 3},
        {"rule": "mixture"},
    ],
)
def test_what_is_no_rule_is_refused(values: dict) -> None:
    """A wrong rule, weight or set of names is an error that says where it stood and what is needed."""
    with pytest.raises(StorageError, match=r"fusion.json is .*it needs rule"):
        CalibratedFusion.from_description(values, where="fusion.json")


def test_the_description_of_an_older_version_is_refused() -> None:
    """It knew one weight for two routes; the error says what to do."""
    old = {"rule": "mixture", "text_weight": 0.5, "validation_ndcg": 0.1, "num_users": 3}
    with pytest.raises(StorageError, match=r"older version.*Materialize `recommender` again"):
        CalibratedFusion.from_description(old, where="fusion.json")
