"""The fusion rules give the results that are worked out by hand."""

import math

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.retrieval.beam_search import Beams
from macrec_pipeline.recommender.retrieval.fusion import (
    COLLABORATIVE,
    CalibratedFusion,
    Candidates,
    append_missing,
    best_items,
    distinct_candidates,
    fuse_calibrated,
    fuse_published,
)

NEG_INF = float("-inf")

# log-probabilities of each candidate by text, image and the collaborative route
SCORES_OF_ITEM = {4: (-1.0, -3.0, -1.5), 2: (-2.0, -3.0, -3.0), 7: (-2.0, -0.4, -6.0), 5: (-2.0, -3.0, -0.5)}


def calibrated(rule: str, **weights: float) -> CalibratedFusion:
    values = {"rule": rule, "weights": weights, "validation_ndcg": 0.0, "num_users": 0}
    return CalibratedFusion.from_description(values, where="a test")


def fuse(rule: str, weights: tuple[float, float, float]) -> tuple[list[int], list[float]]:
    """Fuse candidates of which text found 4 and 2, image found 7, and only the collaborative route found 5."""
    items = torch.tensor([[4, 2, 7, -1, 5]])
    scores = torch.tensor([[SCORES_OF_ITEM.get(int(item), (0.0, 0.0, 0.0)) for item in items[0]]])
    scores_of_route = dict(zip(("text", "image", COLLABORATIVE), scores.unbind(dim=2), strict=True))
    candidates = Candidates(items, scores_of_route, num_generative=4)
    text, image, collaborative = weights
    beams = fuse_calibrated(candidates, calibrated(rule, text=text, image=image, collaborative=collaborative))
    exists = beams.items[0] >= 0
    assert beams.scores[0, ~exists].isneginf().all()
    return beams.items[0, exists].tolist(), beams.scores[0, exists].tolist()


def test_the_published_rule_by_hand() -> None:
    """An item of both routes scores the average plus one; padding (-1) agrees with nothing."""
    text = Beams(torch.tensor([[4, 2, -1]]), torch.tensor([[-0.5, -1.0, NEG_INF]]))
    image = Beams(torch.tensor([[7, 4, -1]]), torch.tensor([[-0.2, -1.5, NEG_INF]]))
    fused = fuse_published(text, image)
    assert fused.items.tolist() == [[4, 7, 2, -1, -1, -1]]
    assert fused.scores[0, :3].tolist() == pytest.approx([0.0, -0.2, -1.0])


def test_the_published_rule_agrees_with_a_plain_loop() -> None:
    """Rows of different lengths, with equal scores, no overlap, some overlap and full overlap."""
    generator = torch.Generator().manual_seed(11)
    num_rows, width, num_items = 30, 9, 12
    routes = []
    for _ in range(2):
        items = torch.stack([torch.randperm(num_items, generator=generator)[:width] for _ in range(num_rows)])
        scores = -torch.randint(1, 4, items.shape, generator=generator).float()
        padding = torch.arange(width) >= torch.randint(0, width + 1, (num_rows, 1), generator=generator)
        routes.append(Beams(items.masked_fill(padding, -1), scores.masked_fill(padding, NEG_INF)))
    fused = fuse_published(*routes)
    for row in range(num_rows):
        text, image = (
            {
                int(item): float(score)
                for item, score in zip(route.items[row], route.scores[row], strict=True)
                if item >= 0
            }
            for route in routes
        )
        expected = {
            item: (text[item] + image[item]) / 2 + 1 if item in text and item in image else {**image, **text}[item]
            for item in text.keys() | image.keys()
        }
        ranking = sorted(expected, key=lambda item: (-expected[item], item))
        assert fused.items[row, : len(ranking)].tolist() == ranking
        assert fused.scores[row, : len(ranking)].tolist() == pytest.approx([expected[item] for item in ranking])
        assert (fused.items[row, len(ranking) :] == -1).all()


def test_fusion_of_wide_beams_needs_little_memory() -> None:
    """Two beams of 20,000 items: a comparison of all pairs would take 400 MB, and this takes a few MB."""
    items = torch.arange(20_000)[None]
    beams = Beams(items, -items.float())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        fused = fuse_published(beams, Beams(items.flip(1), -items.float()))
    assert fused.items.shape == (1, 40_000)
    largest = max(event.self_cpu_memory_usage for event in profiler.events())
    assert largest < 4_000_000


def test_a_product_of_three_routes_by_hand() -> None:
    """The score is the weighted sum of the log-probabilities, whichever route found the item."""
    weights = (0.5, 0.2, 0.3)
    expected = {
        item: sum(weight * score for weight, score in zip(weights, scores, strict=True))
        for item, scores in SCORES_OF_ITEM.items()
    }
    assert expected[4] == pytest.approx(-1.55)
    assert expected[5] == pytest.approx(-1.75)
    items, scores = fuse("product", weights)
    assert items == [4, 5, 2, 7] == sorted(expected, key=lambda item: -expected[item])
    assert scores == pytest.approx([expected[item] for item in items])


def test_a_mixture_of_three_routes_by_hand() -> None:
    """The score is the logarithm of the weighted sum of the probabilities."""
    weights = (0.2, 0.3, 0.5)
    expected = {
        item: math.log(sum(weight * math.exp(score) for weight, score in zip(weights, scores, strict=True)))
        for item, scores in SCORES_OF_ITEM.items()
    }
    items, scores = fuse("mixture", weights)
    assert items == [5, 7, 4, 2] == sorted(expected, key=lambda item: -expected[item])
    assert scores == pytest.approx([expected[item] for item in items])


@pytest.mark.parametrize("rule", ["product", "mixture"])
def test_a_route_without_weight_has_no_effect(rule: str) -> None:
    """With all weight on one route, the result is that route; equal scores are ordered by item index.

    Items that only the collaborative route found are left out if it has no weight.
    """
    assert fuse(rule, (1.0, 0.0, 0.0)) == ([4, 2, 7], pytest.approx([-1, -2, -2]))
    assert fuse(rule, (0.0, 1.0, 0.0)) == ([7, 2, 4], pytest.approx([-0.4, -3, -3]))
    assert fuse(rule, (0.0, 0.0, 1.0)) == ([5, 4, 2, 7], pytest.approx([-0.5, -1.5, -3.0, -6.0]))


def test_each_candidate_is_listed_once() -> None:
    """An item stays where it was found first, and padding stays padding."""
    items = distinct_candidates([torch.tensor([[4, 2, -1], [1, 1, 3]]), torch.tensor([[7, 4, -1], [3, 0, 1]])])
    assert items.tolist() == [[4, 2, -1, 7, -1, -1], [1, -1, 3, -1, 0, -1]]


def test_missing_items_are_appended_before_the_padding() -> None:
    """Items of the first beams keep their places and scores; repeated ones of the second are dropped."""
    first = Beams(torch.tensor([[4, 2, -1]]), torch.tensor([[-0.5, -1.0, NEG_INF]]))
    second = Beams(torch.tensor([[7, 4]]), torch.tensor([[-0.2, -0.3]]))
    joined = append_missing(first, second)
    assert joined.items.tolist() == [[4, 2, 7, -1, -1]]
    assert joined.scores[0, :3].tolist() == pytest.approx([-0.5, -1.0, -0.2])


def test_the_best_items_of_a_catalogue() -> None:
    """Items are ordered by score, then by index; excluded items are padding, and at most N items are returned."""
    beams = best_items(torch.tensor([[-1.0, NEG_INF, -0.5, -1.0]]), width=9)
    assert beams.items.tolist() == [[2, 0, 3, -1]]
    assert COLLABORATIVE == "collaborative"


def test_a_row_without_candidates_stays_empty() -> None:
    """A row without candidates does not affect other rows."""
    scores = torch.full((2, 2), NEG_INF)
    scores[0] = torch.tensor([-1.0, -2.0])
    candidates = Candidates(torch.tensor([[4, 2], [-1, -1]]), {"text": scores, "image": scores}, num_generative=2)
    for rule in ("product", "mixture"):
        beams = fuse_calibrated(candidates, calibrated(rule, text=0.4, image=0.6))
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
def test_invalid_rules_are_rejected(values: dict) -> None:
    """An unknown rule, a bad weight or a missing field raises an error that names its location and what is expected."""
    with pytest.raises(StorageError, match=r"fusion.json is .*not a valid fusion rule. Expected `rule`"):
        CalibratedFusion.from_description(values, where="fusion.json")


def test_rules_of_an_older_version_are_rejected() -> None:
    """Rules with one weight for two routes are rejected with an error that says what to do."""
    old = {"rule": "mixture", "text_weight": 0.5, "validation_ndcg": 0.1, "num_users": 3}
    with pytest.raises(StorageError, match=r"older version.*Materialize `recommender` again"):
        CalibratedFusion.from_description(old, where="fusion.json")
