"""Diverse lists follow maximal marginal relevance, respect limits per group, and have k items where possible."""

import dataclasses
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from macrec_pipeline.config import DecodingConfig
from macrec_pipeline.errors import RequestError
from macrec_pipeline.recommender import FittedRecommender, RecommenderBundle
from macrec_pipeline.recommender.retrieval.beam_search import Beams
from macrec_pipeline.recommender.retrieval.diversity import (
    Diversity,
    DiversityOptions,
    groups_by_category,
    groups_by_prefix,
    select_diverse,
)
from macrec_pipeline.recommender.retrieval.eligible_items import Rules
from macrec_pipeline.recommender.retrieval.fusion import CalibratedFusion
from tests.recommender.cyclic_catalogue import NUM_ITEMS, codes
from tests.recommender.cyclic_models import write_fused_bundle

HISTORIES = [["3", "4", "5"], ["20", "21"], ["7"], ["nobody"]]
ALL = torch.ones(1, 6, dtype=torch.bool)
CODES = {"text": torch.tensor([[0, 0], [0, 0], [0, 1], [1, 0], [1, 0], [2, 2]])}


def found(scores: list[float]) -> Beams:
    order = np.argsort([-score for score in scores], kind="stable")
    return Beams(torch.tensor(order)[None], torch.tensor(scores)[None][:, order])


def test_the_selection_by_hand() -> None:
    """Six items with scores 0 to -10; similarities are 1, 0.5 or 0 by the first of two equal codes."""
    beams = found([0.0, -1.0, -2.0, -6.0, -7.0, -10.0])  # relevance 1, 0.9, 0.8, 0.4, 0.3, 0

    def select(strength: float) -> list[int]:
        result = select_diverse([lambda *_: beams], eligible=ALL, codes=CODES, diversity=Diversity(strength), k=4)
        assert result.scores.tolist() == [[float(beams.scores[0, beams.items[0] == item]) for item in result.items[0]]]
        return result.items[0].tolist()

    assert select(0.0) == [0, 1, 2, 3]
    # 0; then 1: 0.45 - 0.5, 2: 0.4 - 0.25 = 0.15, 3: 0.2, 4: 0.15, 5: 0; then 2: 0.15, 4: 0.15 - 0.5, 5: 0; then 5: 0
    assert select(0.5) == [0, 3, 2, 5]
    # 0; then 3, the first one that shares nothing; then 5; then 2, which is half as close as 1 and 4
    assert select(1.0) == [0, 3, 5, 2]


def test_a_limit_by_hand() -> None:
    """Two of group 0 and one of group 1; an item without a group does not count, and only three come back then."""
    beams = found([0.0, -1.0, -2.0, -3.0, -4.0, -5.0])
    groups = torch.tensor([0, 0, 0, 1, 1, -1])
    for limit, expected in ((1, [0, 3, 5, -1]), (2, [0, 1, 3, 4]), (3, [0, 1, 2, 3])):
        diversity = Diversity(0.0, limit, groups)

        def search(rows: torch.Tensor, eligible: torch.Tensor) -> Beams:
            return Beams(beams.items.masked_fill(~eligible[:, beams.items[0]], -1), beams.scores)

        result = select_diverse([search], eligible=ALL, codes=CODES, diversity=diversity, k=4)
        assert result.items.tolist() == [expected]


def test_groups_by_hand() -> None:
    """An item counts for its smallest category, by name among equal ones; prefixes are numbered together."""
    categories = {"All": np.arange(5), "B": np.array([1, 2]), "A": np.array([2, 3])}
    groups = groups_by_category(categories, num_items=6)
    assert groups[5] == -1
    assert groups[0] == groups[4]
    assert groups[2] == groups[3] != groups[1]
    prefixes = groups_by_prefix(np.array([[1, 2, 3], [1, 2, 4], [1, 3, 3], [2, 2, 3]]), length=2)
    assert prefixes[0] == prefixes[1]
    assert len(set(prefixes.tolist())) == 3


@pytest.fixture(scope="module")
def bundles(trained_model: FittedRecommender, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RecommenderBundle]:
    """One bundle per rule of fusion, and one whose calibrated rule leaves seen items out; each third is a category."""
    weights = {"text": 0.6, "image": 0.4}
    rules = {
        "published": None,
        "mixture": CalibratedFusion("mixture", weights, 0.5, 60),
        "unseen": CalibratedFusion("product", weights, 0.5, 60, recommend_seen=False),
    }
    loaded = {}
    for name, fusion in rules.items():
        folder = tmp_path_factory.mktemp(name)
        setting = "published" if fusion is None else "calibrated"
        loaded[name] = RecommenderBundle.load(
            write_fused_bundle(trained_model, folder / "parts", fusion=fusion, fusion_setting=setting)
        )
        for index, item in enumerate(loaded[name].catalogue):
            item["categories"] = ["All", f"Third {index % 3}"]
    return loaded


def plain_selection(ids: list[str], scores: list[float], *, strength: float, k: int) -> list[str]:
    """Select by maximal marginal relevance with plain loops."""
    relevance = {item: (score - scores[-1]) / (scores[0] - scores[-1]) for item, score in zip(ids, scores, strict=True)}
    chosen: list[str] = []
    while len(chosen) < k:
        values = {
            item: (1 - strength) * relevance[item]
            - strength * max((prefix_share(item, other) for other in chosen), default=0.0)
            for item in ids
            if item not in chosen
        }
        chosen.append(max(values, key=lambda item: values[item]))
    return chosen


def prefix_share(item: str, other: str) -> float:
    shares = [np.cumprod(ids[int(item)] == ids[int(other)]).mean() for ids in (codes(1), codes(2))]
    return float(np.mean(shares))


@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
def test_lists_are_those_of_a_plain_selection(bundles: dict[str, RecommenderBundle], strength: float) -> None:
    """Among the four best candidates per item, with the scores that the items have anyway."""
    bundle, k = bundles["mixture"], 4
    for history in HISTORIES[:3]:
        for route in ("fused", *bundle.routes):
            (candidates,) = bundle.recommend_ids([history], k=4 * k, route=route)
            (diverse,) = bundle.recommend_ids([history], k=k, route=route, diversity=DiversityOptions(strength))
            expected = plain_selection(candidates.item_ids, candidates.scores, strength=strength, k=k)
            assert diverse.item_ids == expected
            scores = dict(zip(candidates.item_ids, candidates.scores, strict=True))
            assert diverse.scores == pytest.approx([scores[item] for item in expected], rel=1e-4)


@pytest.mark.parametrize("name", ["published", "mixture", "unseen"])
def test_without_diversity_nothing_changes(bundles: dict[str, RecommenderBundle], name: str) -> None:
    """Diversity 0 without a limit gives the same bytes as no option."""
    bundle = bundles[name]
    for route, exclude_seen in product(("fused", *bundle.routes), (False, True)):
        plain = bundle.recommend_ids(HISTORIES, k=8, route=route, exclude_seen=exclude_seen)
        assert plain == bundle.recommend_ids(
            HISTORIES, k=8, route=route, exclude_seen=exclude_seen, diversity=DiversityOptions(prefix_length=2)
        )


@pytest.mark.parametrize("name", ["published", "mixture", "unseen"])
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_limit_holds_and_k_items_come_back(bundles: dict[str, RecommenderBundle], name: str, strength: float) -> None:
    """For every route, with rules and seen items excluded; alone as in a batch; and for the most popular items."""
    bundle, k = bundles[name], 6
    for route, exclude_seen in product(("fused", "image"), (False, True)):
        for options in (
            DiversityOptions(strength, max_per_category=2),
            DiversityOptions(strength, max_per_prefix=2, prefix_length=1),
            DiversityOptions(strength, max_per_prefix=1, prefix_length=2),
        ):
            for rules in (None, Rules(excluded=[str(index) for index in range(9, 15)])):
                arguments = {
                    "k": k,
                    "route": route,
                    "exclude_seen": exclude_seen,
                    "rules": rules,
                    "diversity": options,
                    "beam_width": 1,
                }
                answers = bundle.recommend_ids(HISTORIES, explain=True, **arguments)
                for history, answer in zip(HISTORIES, answers, strict=True):
                    items = [int(item) for item in answer.item_ids]
                    assert len(set(items)) == k
                    assert not rules or not set(items) & set(range(9, 15))
                    assert not exclude_seen or not set(answer.item_ids) & set(history)
                    ids = codes(2 if route == "image" and answer.fallback == "none" else 1).tolist()
                    prefixes = [tuple(ids[item][: options.prefix_length]) for item in items]
                    groups = [item % 3 for item in items] if options.max_per_category else prefixes
                    limit = options.max_per_category or options.max_per_prefix
                    assert max(groups.count(group) for group in groups) <= limit
                    (alone,) = bundle.recommend_ids([history], **arguments)
                    assert alone.item_ids == answer.item_ids


def test_fewer_items_come_back_if_the_catalogue_has_no_more(bundles: dict[str, RecommenderBundle]) -> None:
    """Three categories with one item each make three; a rule that permits one category makes one."""
    bundle = bundles["published"]
    options = DiversityOptions(max_per_category=1)
    for history in HISTORIES:
        (answer,) = bundle.recommend_ids([history], k=10, diversity=options)
        assert sorted(int(item) % 3 for item in answer.item_ids) == [0, 1, 2]
        (ruled,) = bundle.recommend_ids([history], k=10, diversity=options, rules=Rules(allowed_categories=["Third 1"]))
        assert [int(item) % 3 for item in ruled.item_ids] == [1]
        (nothing,) = bundle.recommend_ids([history], k=10, diversity=options, rules=Rules(allowed=[]))
        assert nothing.item_ids == []


def test_seen_items_follow_if_a_limit_leaves_too_few_others(bundles: dict[str, RecommenderBundle]) -> None:
    """The bundle's rule leaves seen items out, although the caller did not."""
    seen = [str(index) for index in range(0, NUM_ITEMS, 3)]  # a whole category
    options = DiversityOptions(max_per_category=2)
    (answer,) = bundles["unseen"].recommend_ids([seen], k=6, diversity=options)
    assert [int(item) % 3 for item in answer.item_ids].count(0) == 2
    assert all(int(item) % 3 == 0 for item in answer.item_ids[4:])
    (excluded,) = bundles["unseen"].recommend_ids([seen], k=6, diversity=options, exclude_seen=True)
    assert len(excluded.item_ids) == 4


def test_the_bundles_own_settings_apply_without_options(trained_model: FittedRecommender, tmp_path: Path) -> None:
    """They equal the same options in a request, by item id and by index."""
    folder = write_fused_bundle(trained_model, tmp_path, fusion=None, fusion_setting="published")
    bundle = RecommenderBundle.load(folder)
    options = DiversityOptions(0.6, max_per_prefix=2)
    settings = bundle.description | {"decoding": bundle.description["decoding"] | dataclasses.asdict(options)}
    diverse = RecommenderBundle(bundle._retriever, bundle.catalogue, np.ones(NUM_ITEMS), settings)
    expected = bundle.recommend_ids(HISTORIES, k=5, diversity=options)
    assert diverse.diversity == options
    assert diverse.recommend_ids(HISTORIES, k=5) == expected
    assert diverse.recommend_ids(HISTORIES, k=5, diversity=DiversityOptions()) == bundle.recommend_ids(HISTORIES, k=5)
    (by_index,) = diverse.recommend([np.array([3, 4, 5])], k=5)["fused"]
    assert [str(item) for item in by_index.item_indices] == expected[0].item_ids
    older = {name: value for name, value in bundle.description["decoding"].items() if name not in options.__dict__}
    bundle.description["decoding"] = older
    assert not RecommenderBundle(
        bundle._retriever, bundle.catalogue, np.ones(NUM_ITEMS), bundle.description
    ).diversity.is_active


def test_impossible_options_are_rejected(bundles: dict[str, RecommenderBundle]) -> None:
    """A prefix cannot be longer than an ID, and a list has one limit; the settings say the same."""
    with pytest.raises(RequestError, match="`prefix_length` is 4, but semantic IDs have only 3 codes"):
        bundles["published"].recommend_ids([["3"]], diversity=DiversityOptions(max_per_prefix=1, prefix_length=4))
    with pytest.raises(RequestError, match="Only one of `max_per_category` and `max_per_prefix`"):
        DiversityOptions(max_per_category=1, max_per_prefix=2)
    with pytest.raises(ValueError, match="only one of max_per_category and max_per_prefix"):
        DecodingConfig(max_per_category=1, max_per_prefix=2)
