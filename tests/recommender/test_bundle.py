"""A loaded bundle recommends by item id, applies business rules, and rejects impossible requests."""

from pathlib import Path

import numpy as np
import pytest

from macrec_pipeline.errors import RequestError
from macrec_pipeline.recommender import FittedRecommender, RecommenderBundle
from macrec_pipeline.recommender.retrieval.eligible_items import Rules
from tests.recommender.cyclic_catalogue import NUM_ITEMS, codes
from tests.recommender.cyclic_models import write_cyclic_bundle


def test_recommendations_by_item_id(cyclic_bundle_folder: Path) -> None:
    """Unknown ids are skipped, and a history without known ids falls back to popularity, which is reported."""
    bundle = RecommenderBundle.load(cyclic_bundle_folder)
    known, with_unknown, empty, unknown = bundle.recommend_ids(
        [
            ["item/3 ü", "item/4 ü", "item/5 ü"],
            ["nobody", "item/3 ü", "item/4 ü", "??", "item/5 ü"],
            [],
            ["nobody"],
        ],
        k=3,
    )
    assert known.item_ids[0] == "item/6 ü"
    assert known.fallback == "none"
    assert with_unknown.item_ids == known.item_ids
    assert with_unknown.scores == pytest.approx(known.scores, rel=1e-4)
    assert empty == unknown
    assert empty.item_ids == ["item/0 ü", "item/1 ü", "item/2 ü"]
    assert empty.fallback == "popularity"
    assert bundle.recommend_ids([["nobody"]], k=3) == [empty], "also if no history of the call is known"
    assert bundle.recommend_ids([]) == []


def test_rules_use_the_shops_ids(cyclic_bundle_folder: Path) -> None:
    """Shared rules and row rules apply to known and unknown histories; ids that the catalogue lacks match nothing."""
    bundle = RecommenderBundle.load(cyclic_bundle_folder)
    history = ["item/3 ü", "item/4 ü", "item/5 ü"]
    (without_rules,) = bundle.recommend_ids([history], k=NUM_ITEMS, beam_width=NUM_ITEMS)
    out_of_stock, stock = without_rules.item_ids[0], [*without_rules.item_ids[1:6], "gone"]
    known, unknown, nothing_allowed, few_eligible = bundle.recommend_ids(
        [history, ["nobody"], history, history],
        k=4,
        beam_width=NUM_ITEMS,
        rules=Rules(excluded=[out_of_stock, "gone"]),
        rules_of_rows=[
            None,
            Rules(allowed=stock),
            Rules(allowed=["gone"]),
            Rules(excluded=without_rules.item_ids[1:-2]),
        ],
    )
    assert known.item_ids == without_rules.item_ids[1:5]
    assert known.scores == pytest.approx(without_rules.scores[1:5], rel=1e-4)
    by_popularity = sorted(stock[:5], key=lambda item: int(item.split("/")[1].split()[0]))
    assert (unknown.item_ids, unknown.fallback) == (by_popularity[:4], "popularity")
    assert (nothing_allowed.item_ids, nothing_allowed.scores, nothing_allowed.fallback) == ([], [], "none")
    assert few_eligible.item_ids == without_rules.item_ids[-2:], "fewer than k are eligible"
    (unknown_and_nothing_allowed,) = bundle.recommend_ids([["nobody"]], k=4, rules=Rules(allowed=[]))
    assert (unknown_and_nothing_allowed.item_ids, unknown_and_nothing_allowed.fallback) == ([], "popularity")
    with pytest.raises(RequestError, match="`rules_of_rows` has 1 entries for 2 histories"):
        bundle.recommend_ids([history, history], rules_of_rows=[None])


def test_an_item_that_has_left_the_catalogue_is_never_recommended(cyclic_bundle_folder: Path) -> None:
    """No route, rule or fallback returns it. In a history it counts as before, and the other items keep their order."""
    every_item = RecommenderBundle.load(cyclic_bundle_folder)
    gone = {"item/0 ü", "item/6 ü"}
    catalogue = [item | ({"listed": False} if item["item_id"] in gone else {}) for item in every_item.catalogue]
    popularity = np.arange(NUM_ITEMS, 0, -1)
    bundle = RecommenderBundle(every_item._retriever, catalogue, popularity, every_item.description)
    histories = [["item/3 ü", "item/4 ü", "item/5 ü"], ["item/4 ü", "item/5 ü", "item/6 ü"], ["nobody"]]
    for route in ("fused", *bundle.routes):
        for rules in (None, Rules(allowed=["item/0 ü", "item/6 ü", "item/7 ü", "item/8 ü"]), Rules(excluded=["x"])):
            for exclude_seen in (False, True):
                answers = bundle.recommend_ids(
                    histories, k=NUM_ITEMS, route=route, rules=rules, exclude_seen=exclude_seen
                )
                for answer in answers:
                    assert answer.item_ids
                    assert not gone & set(answer.item_ids)
    full, without = (
        each.recommend_ids(histories[1:2], k=NUM_ITEMS, route="text", beam_width=NUM_ITEMS)[0].item_ids
        for each in (every_item, bundle)
    )
    assert without == [item for item in full if item not in gone]
    assert bundle.recommend_ids([["nobody"]], k=2)[0].item_ids == ["item/1 ü", "item/2 ü"]
    by_index = bundle.recommend([np.array([3, 4, 5])], routes=("fused", *bundle.routes), k=NUM_ITEMS)
    assert all(not {0, 6} & set(ranked[0].item_indices.tolist()) for ranked in by_index.values())


def test_rules_use_the_catalogues_categories(cyclic_bundle_folder: Path) -> None:
    """Every third item has two categories and the others have none; a bundle of an older version has none at all."""
    bundle = RecommenderBundle.load(cyclic_bundle_folder)
    assert all(("categories" in item) == (index % 3 == 0) for index, item in enumerate(bundle.catalogue))
    for rules in (Rules(allowed_categories=["Third"]), Rules(allowed_categories=["All thirds", "Third"])):
        for history in (["item/3 ü"], ["nobody"]):
            (allowed,) = bundle.recommend_ids([history], k=NUM_ITEMS, rules=rules)
            assert {int(item.split("/")[1].split()[0]) for item in allowed.item_ids} == set(range(0, NUM_ITEMS, 3))
    (not_excluded,) = bundle.recommend_ids([["item/3 ü"]], k=NUM_ITEMS, rules=Rules(excluded_categories=["Third"]))
    assert len(not_excluded.item_ids) == NUM_ITEMS - NUM_ITEMS // 3
    for item in bundle.catalogue:
        item.pop("categories", None)
    bundle = RecommenderBundle(bundle._retriever, bundle.catalogue, np.ones(NUM_ITEMS), bundle.description)
    assert bundle.items_by_category == {}
    with pytest.raises(RequestError, match=r"Unknown category 'Third'. The catalogue of this model has no categories"):
        bundle.recommend_ids([["nobody"]], rules=Rules(allowed_categories=["Third"]))


def test_each_history_can_exclude_seen_items(cyclic_bundle_folder: Path) -> None:
    """Every recommendation equals the one that its history gets in a call of its own."""
    bundle = RecommenderBundle.load(cyclic_bundle_folder)
    histories = [["item/3 ü"], ["nobody"], ["item/7 ü", "item/8 ü"], ["item/3 ü"], []]
    exclude_seen = [True, True, False, False, True]
    mixed = bundle.recommend_ids(histories, k=NUM_ITEMS, exclude_seen=exclude_seen)
    for history, of_row, recommendation in zip(histories, exclude_seen, mixed, strict=True):
        (alone,) = bundle.recommend_ids([history], k=NUM_ITEMS, exclude_seen=of_row)
        assert (recommendation.item_ids, recommendation.fallback) == (alone.item_ids, alone.fallback)
        assert recommendation.scores == pytest.approx(alone.scores, rel=1e-4)
    assert "item/3 ü" not in mixed[0].item_ids
    assert "item/3 ü" in mixed[3].item_ids
    with pytest.raises(RequestError, match="`exclude_seen` has 1 entries for 2 histories"):
        bundle.recommend_ids([[], []], exclude_seen=[True])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "`k` is 0, but must be between 1 and 30, the size of the catalogue"),
        ({"k": 31}, "`k` is 31"),
        ({"route": "sound"}, "Unknown route 'sound'. This model has the routes fused, text, image"),
        ({"beam_width": -1}, "`beam_width` is -1, but must be between 1 and 30"),
    ],
)
def test_impossible_requests_are_rejected(cyclic_bundle_folder: Path, arguments: dict, message: str) -> None:
    """Each raises a RequestError with the value and the range."""
    with pytest.raises(RequestError, match=message):
        RecommenderBundle.load(cyclic_bundle_folder).recommend_ids([["item/1 ü"]], **arguments)


def test_the_quantizer_is_part_of_the_bundle(trained_model: FittedRecommender, tmp_path: Path) -> None:
    """The bundle has the quantizer's files. A bundle whose IDs came with the data set has none, and loads."""
    for name, content in (("with", b"{}"), ("without", None)):
        (tmp_path / name / "bundle").mkdir(parents=True)
        trained_model.save(tmp_path / name)
        write_cyclic_bundle(tmp_path / name / "bundle", tmp_path / name, quantizer=content)
    bundle = RecommenderBundle.load(tmp_path / "with" / "bundle")
    assert bundle.quantizer_folder == tmp_path / "with" / "bundle" / "quantizer"
    assert sorted(path.name for path in bundle.quantizer_folder.iterdir()) == ["quantizer.json", "text.safetensors"]
    assert RecommenderBundle.load(tmp_path / "without" / "bundle").quantizer_folder is None
    np.testing.assert_array_equal(bundle.codes["image"], codes(2))


def test_semantic_ids_are_available_by_item_id(cyclic_bundle_folder: Path) -> None:
    """Each of the shop's ids maps to its text codes and its image codes."""
    ids = RecommenderBundle.load(cyclic_bundle_folder).semantic_ids
    assert list(ids) == [f"item/{index} ü" for index in range(NUM_ITEMS)]
    assert ids["item/7 ü"] == (tuple(codes(1)[7].tolist()), tuple(codes(2)[7].tolist()))
