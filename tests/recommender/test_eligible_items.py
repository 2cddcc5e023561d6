"""Business rules against an oracle: score every item exactly, drop the ineligible ones, take the best k."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.config import SasrecConfig
from macrec_pipeline.errors import RequestError
from macrec_pipeline.recommender.retrieval.eligible_items import EligibleItems, Rules
from macrec_pipeline.recommender.retrieval.fusion import AGREEMENT_BONUS, CalibratedFusion
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever, Ranked
from macrec_pipeline.recommender.sasrec.model import Sasrec
from tests.recommender.random_retriever import LEVELS, random_retriever

NUM_ITEMS = 40
INDEX_OF = {str(item): item for item in range(NUM_ITEMS)}
HISTORIES = [np.array([7, 9, 1]), np.array([3]), np.array([30, 2, 2, 8, 11, 17])]
WEIGHTS = {"text": 0.3, "image": 0.2, "collaborative": 0.5}
ROUTES = ["text", "image", "collaborative", "fused"]
FUSIONS = st.sampled_from(["published", "mixture", "product"])
ITEMS = st.sets(st.integers(0, NUM_ITEMS - 1))
CATEGORIES_OF = {item: {name for name, step in (("even", 2), ("third", 3)) if item % step == 0} for item in range(40)}
ITEMS_BY_CATEGORY = {
    name: np.array([item for item, names in CATEGORIES_OF.items() if name in names]) for name in ("even", "third")
}
CATEGORIES = st.sets(st.sampled_from(sorted(ITEMS_BY_CATEGORY)))
RULES = st.builds(
    lambda allowed, excluded, *categories: Rules(
        None if allowed is None else [str(item) for item in allowed], ["gone", *map(str, excluded)], *categories
    ),
    st.none() | ITEMS,
    ITEMS,
    st.none() | CATEGORIES,
    CATEGORIES,
)


@cache
def retriever_of_three_routes() -> MultiRouteRetriever:
    """Random weights in every route."""
    generative = random_retriever(NUM_ITEMS)
    sasrec = Sasrec(NUM_ITEMS, SasrecConfig(d_model=16, max_length=5), torch.Generator().manual_seed(4)).eval()
    return MultiRouteRetriever(generative.model, generative.items, sasrec=sasrec)


def rank(
    fusion: str,
    rules: Rules | None,
    rules_of_rows: list[Rules | None] | None = None,
    *,
    learned_to_leave_out_seen: bool = False,
    **options: object,
) -> dict[str, list[Ranked]]:
    retriever = retriever_of_three_routes()
    retriever.fusion = None
    if fusion != "published":
        retriever.fusion = CalibratedFusion(fusion, WEIGHTS, 0.0, 1, recommend_seen=not learned_to_leave_out_seen)
    eligible = None
    if rules is not None or rules_of_rows is not None:
        eligible = EligibleItems(INDEX_OF, rules, rules_of_rows, items_by_category=ITEMS_BY_CATEGORY)
    return retriever.rank(HISTORIES, routes=ROUTES, batch_size=2, eligible=eligible, **options)


def eligible_under(rules: Rules | None) -> set[int]:
    """Apply the rules item by item."""
    if rules is None:
        return set(range(NUM_ITEMS))
    return {
        item
        for item, categories in CATEGORIES_OF.items()
        if (rules.allowed is None or str(item) in rules.allowed)
        and str(item) not in rules.excluded
        and (rules.allowed_categories is None or categories & set(rules.allowed_categories))
        and not categories & set(rules.excluded_categories)
    }


@cache
def exact_scores(route: str, fusion: str) -> torch.Tensor:
    """Return every item's exact score by a route or by the fused ones, without rules: float [B, N]."""
    scores = {one: retriever_of_three_routes().exact_scores(HISTORIES, route=one) for one in ROUTES[:3]}
    if route != "fused":
        return scores[route]
    if fusion == "published":
        return (scores["text"] + scores["image"]) / 2 + AGREEMENT_BONUS

    of_whole_ids = {one: scores[one] * (1 if one == "collaborative" else LEVELS) for one in WEIGHTS}
    if fusion == "product":
        return sum(WEIGHTS[one] * of_whole_ids[one] for one in WEIGHTS)
    return torch.stack([of_whole_ids[one] + np.log(WEIGHTS[one]) for one in WEIGHTS]).logsumexp(dim=0)


@settings(max_examples=25, deadline=None)
@given(fusion=FUSIONS, rules=RULES, rules_of_rows=st.tuples(*[st.none() | RULES] * 3), k=st.integers(1, NUM_ITEMS))
def test_rules_only_remove_items(fusion: str, rules: Rules, rules_of_rows: tuple[Rules | None, ...], k: int) -> None:
    """With a beam as wide as the catalogue, every route and their fusion give the exact scores of eligible items."""
    ranked = rank(fusion, rules, list(rules_of_rows), top_k=k, beam_width=NUM_ITEMS)
    for route in ROUTES:
        for row, of_row in enumerate(ranked[route]):
            eligible = sorted(eligible_under(rules) & eligible_under(rules_of_rows[row]))
            scores = exact_scores(route, fusion)[row]
            best = sorted(eligible, key=lambda item: -float(scores[item]))[:k]
            assert of_row.item_indices.tolist() == best
            np.testing.assert_allclose(of_row.scores, scores[best], rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    fusion=FUSIONS, rules=RULES, k=st.integers(1, NUM_ITEMS), beam_width=st.integers(1, 5), exclude_seen=st.booleans()
)
def test_k_items_come_back_if_k_are_eligible(
    fusion: str, rules: Rules, k: int, beam_width: int, exclude_seen: bool
) -> None:
    """For any beam width, the k items are distinct and eligible if at least k are eligible.

    If the fusion has learned to leave out seen items, they fill up the list only after all other eligible items.
    """
    for learned in (False, True):
        ranked = rank(
            fusion,
            rules,
            learned_to_leave_out_seen=learned,
            top_k=k,
            beam_width=beam_width,
            exclude_seen=exclude_seen,
        )
        for route in ROUTES:
            for history, of_row in zip(HISTORIES, ranked[route], strict=True):
                eligible, seen = eligible_under(rules), set(history.tolist())
                items = of_row.item_indices.tolist()
                assert set(items) <= (eligible - seen if exclude_seen else eligible)
                assert len(items) == len(set(items)) == min(k, len(eligible - seen if exclude_seen else eligible))
                if learned and route == "fused" and fusion != "published":
                    unseen = [item for item in items if item not in seen]
                    assert len(unseen) == min(k, len(eligible - seen))
                    assert items[: len(unseen)] == unseen
                else:
                    assert (np.diff(of_row.scores) <= 0).all()


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_rules_that_remove_nothing_change_nothing(exclude_seen: bool) -> None:
    """Scores are equal to the last bit with a narrow beam, whether the rules are shared or belong to rows."""
    options = {"top_k": 6, "beam_width": 3, "exclude_seen": exclude_seen}
    without_rules = rank("mixture", None, **options)
    row_rules = [Rules(), None, Rules(INDEX_OF)]
    for rules, rules_of_rows in ((Rules(), None), (Rules(list(INDEX_OF), ["gone"]), row_rules)):
        with_rules = rank("mixture", rules, rules_of_rows, **options)
        for route in ROUTES:
            for expected, found in zip(without_rules[route], with_rules[route], strict=True):
                assert expected.item_indices.tolist() == found.item_indices.tolist()
                assert expected.scores.tolist() == found.scores.tolist()


@pytest.mark.parametrize(
    "invalid", [{"allowed": "P0001"}, {"excluded": [1]}, {"allowed": ["P0001", None]}, {"excluded_categories": "Shoes"}]
)
def test_rules_must_be_lists_of_strings(invalid: dict[str, object]) -> None:
    """A single string is rejected, because it would be read as a list of its letters."""
    (name,) = invalid
    content = "categories" if name.endswith("categories") else "item ids"
    with pytest.raises(RequestError, match=rf"`{name}` must be a list of {content} \(strings\), but is"):
        Rules(**invalid)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("category", "categories", "message"),
    [
        ("shoe", ["Show", "Shoes", "Boots"], r"Unknown category 'shoe'. Similar categories: 'Shoes'\."),
        ("Shose", ["Show", "Shoes", "Boots"], r"Similar categories: 'Shoes', 'Show'\."),
        ("Xylophones", [*"abcdefg"], r"The largest of the 7 categories: 'a', 'b', 'c', 'd', 'e'\."),
        ("Shoes", [], "The catalogue of this model has no categories: map `categories`"),
    ],
)
def test_unknown_categories_are_rejected_with_a_suggestion(category: str, categories: list[str], message: str) -> None:
    """In shared rules or in those of one row, allowed or excluded; nothing is decoded before."""
    items_by_category = {name: np.array([0]) for name in categories}
    for rules in (Rules(allowed_categories=[category]), Rules(excluded_categories=[category])):
        for arguments in ((rules,), (None, [None, rules])):
            with pytest.raises(RequestError, match=message):
                EligibleItems(INDEX_OF, *arguments, items_by_category=items_by_category)
