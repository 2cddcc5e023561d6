"""The fusion rules by hand."""

import math

import pytest
import torch

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.retrieval.fusion import (
    COLLABORATIVE,
    CalibratedFusion,
    Candidates,
    best_items,
    distinct_candidates,
    fuse_candidates,
)

NOTHING = float("-inf")


def a_fusion(rule: str, **weights: float) -> CalibratedFusion:
    values = {"rule": rule, "weights": weights, "validation_ndcg": 0.0, "num_users": 0}
    return CalibratedFusion.from_description(values, where="a test")


def fused(rule: str, weights: tuple[float, float, float]) -> tuple[list[int], list[float]]:
    """The candidates below: 4 and 2 were found by text, 7 by image, and 5 by the collaborative route alone."""
    items = torch.tensor([[4, 2, 7, -1, 5]])
    opinions = torch.tensor([[OPINIONS.get(int(item), (0.0, 0.0, 0.0)) for item in items[0]]])
    scores = dict(zip(("text", "image", COLLABORATIVE), opinions.unbind(dim=2), strict=True))
    candidates = Candidates(items, scores, num_generative=4)
    text, image, collaborative = weights
    beams = fuse_candidates(candidates, a_fusion(rule, text=text, image=image, collaborative=collaborative))
    found = beams.items[0] >= 0
    assert beams.scores[0, ~found].isneginf().all()
    return beams.items[0, found].tolist(), beams.scores[0, found].tolist()


# what text, image and the collaborative route say of each candidate
OPINIONS = {4: (-1.0, -3.0, -1.5), 2: (-2.0, -3.0, -3.0), 7: (-2.0, -0.4, -6.0), 5: (-2.0, -3.0, -0.5)}


def test_three_routes_as_a_product_by_hand() -> None:
    """The weighted sum of the log-probabilities, whichever route found the item."""
    weights = (0.5, 0.2, 0.3)
    expected = {
        item: sum(share * score for share, score in zip(weights, scores, strict=True))
        for item, scores in OPINIONS.items()
    }
    assert expected[4] == pytest.approx(-1.55)
    assert expected[5] == pytest.approx(-1.75)
    items, scores = fused("product", weights)
    assert items == [4, 5, 2, 7] == sorted(expected, key=lambda item: -expected[item])
    assert scores == pytest.approx([expected[item] for item in items])


def test_three_routes_as_a_mixture_by_hand() -> None:
    """The logarithm of the weighted sum of three probabilities."""
    weights = (0.2, 0.3, 0.5)
    expected = {
        item: math.log(sum(share * math.exp(score) for share, score in zip(weights, scores, strict=True)))
        for item, scores in OPINIONS.items()
    }
    items, scores = fused("mixture", weights)
    assert items == [5, 7, 4, 2] == sorted(expected, key=lambda item: -expected[item])
    assert scores == pytest.approx([expected[item] for item in items])


@pytest.mark.parametrize("rule", ["product", "mixture"])
def test_a_route_without_weight_is_not_there(rule: str) -> None:
    """Nor what the collaborative one alone found; all weight on one is that route, equal scores by the lower item."""
    assert fused(rule, (1.0, 0.0, 0.0)) == ([4, 2, 7], pytest.approx([-1, -2, -2]))
    assert fused(rule, (0.0, 1.0, 0.0)) == ([7, 2, 4], pytest.approx([-0.4, -3, -3]))
    assert fused(rule, (0.0, 0.0, 1.0)) == ([5, 4, 2, 7], pytest.approx([-0.5, -1.5, -3.0, -6.0]))


def test_candidates_are_each_item_once() -> None:
    """Where it was found first; what is missing stays missing."""
    found = distinct_candidates([torch.tensor([[4, 2, -1], [1, 1, 3]]), torch.tensor([[7, 4, -1], [3, 0, 1]])])
    assert found.tolist() == [[4, 2, -1, 7, -1, -1], [1, -1, 3, -1, 0, -1]]


def test_the_best_items_of_a_catalogue() -> None:
    """By score, then by index; forbidden ones are missing, and no more than there are."""
    found = best_items(torch.tensor([[-1.0, NOTHING, -0.5, -1.0]]), width=9)
    assert found.items.tolist() == [[2, 0, 3, -1]]
    assert COLLABORATIVE == "collaborative"


def test_a_row_without_candidates_stays_empty() -> None:
    """And disturbs no other."""
    nothing = torch.full((2, 2), NOTHING)
    nothing[0] = torch.tensor([-1.0, -2.0])
    candidates = Candidates(torch.tensor([[4, 2], [-1, -1]]), {"text": nothing, "image": nothing}, num_generative=2)
    for rule in ("product", "mixture"):
        beams = fuse_candidates(candidates, a_fusion(rule, text=0.4, image=0.6))
        assert beams.items.tolist() == [[4, 2], [-1, -1]]


@pytest.mark.parametrize(
    "values",
    [
        {"rule": "sum", "weights": {"text": 0.5, "image": 0.5}, "validation_ndcg": 0.1, "num_users": 3},
        {"rule": "mixture", "weights": {"text": 1.5, "image": -0.5}, "validation_ndcg": 0.1, "num_users": 3},
        {"rule": "mixture", "weights": {"text": 0.5, "image": 0.4}, "validation_ndcg": 0.1, "num_users": 3},
        {"rule": "mixture", "weights": {"text": None, "image": 0.5}, "validation_ndcg": 0.1, "num_users": 3},
        {"rule": "mixture", "weights": [0.5, 0.5], "validation_ndcg": 0.1, "num_users": 3},
        {"rule": "mixture"},
        {
            "rule": "mixture",
            "weights": {"text": 0.5, "image": 0.5},
            "validation_ndcg": 0.1,
            "num_users": 3,
            "recommend_seen": "no",
        },
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
