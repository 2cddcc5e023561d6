"""The fusion rules by hand."""

import math

import pytest
import torch

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.beam_search import Beams
from macrec_pipeline.recommender.fusion import CalibratedFusion, fuse_calibrated

NOTHING = float("-inf")
# of whole IDs of two codes: text 4: -1, 2: -2; image 7: -0.4, 4: -3
TEXT = Beams(torch.tensor([[4, 2, -1]]), torch.tensor([[-0.5, -1.0, NOTHING]]))
IMAGE = Beams(torch.tensor([[7, 4, -1]]), torch.tensor([[-0.2, -1.5, NOTHING]]))


def fused(rule: str, weight: float) -> tuple[list[int], list[float]]:
    fusion = CalibratedFusion.from_description(
        {"rule": rule, "text_weight": weight, "validation_ndcg": 0.0, "num_users": 0}, where="a test"
    )
    beams = fuse_calibrated(TEXT, IMAGE, fusion, num_levels=2)
    assert beams.items[0, 3:].tolist() == [-1, -1, -1]
    assert beams.scores[0, 3:].isneginf().all()
    return beams.items[0, :3].tolist(), beams.scores[0, :3].tolist()


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
    for rule in ("product", "mixture"):
        fusion = CalibratedFusion.from_description(
            {"rule": rule, "text_weight": 0.0, "validation_ndcg": 0.0, "num_users": 0}, where="a test"
        )
        beams = fuse_calibrated(empty, empty, fusion, num_levels=2)
        assert beams.items.tolist() == [[4, 2, -1, -1, -1, -1], [-1] * 6]


@pytest.mark.parametrize(
    "values",
    [
        {"rule": "sum", "text_weight": 0.5, "validation_ndcg": 0.1, "num_users": 3},
        {"rule": "mixture", "text_weight": 1.5, "validation_ndcg": 0.1, "num_users": 3},
        {"rule": "mixture", "text_weight": None, "validation_ndcg": 0.1, "num_users": 3},
        {"rule": "mixture"},
    ],
)
def test_what_is_no_rule_is_refused(values: dict) -> None:
    """A wrong rule, weight or set of names is an error that says where it stood and what is needed."""
    with pytest.raises(StorageError, match=r"fusion.json is .*it needs rule"):
        CalibratedFusion.from_description(values, where="fusion.json")
