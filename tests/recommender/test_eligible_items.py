"""Business rules against an oracle: score every item exactly, leave out what is illegal, take the best k."""

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
from macrec_pipeline.recommender.retrieval.prefix_tree import PrefixTree
from macrec_pipeline.recommender.retrieval.ranking import Ranked
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever
from macrec_pipeline.recommender.sasrec.model import Sasrec
from tests.recommender.exhaustive import LEVELS, SIZE, a_decoder, distinct_codes

NUM_ITEMS = 40
INDEX_OF = {str(item): item for item in range(NUM_ITEMS)}
HISTORIES = [np.array([7, 9, 1]), np.array([3]), np.array([30, 2, 2, 8, 11, 17])]
WEIGHTS = {"text": 0.3, "image": 0.2, "collaborative": 0.5}
ROUTES = ["text", "image", "collaborative", "fused"]
FUSIONS = st.sampled_from(["published", "mixture", "product"])
ITEMS = st.sets(st.integers(0, NUM_ITEMS - 1))
CATEGORIES_OF = {item: {name for name, step in (("even", 2), ("third", 3)) if item % step == 0} for item in range(40)}
ITEMS_OF = {
    name: np.array([item for item, names in CATEGORIES_OF.items() if name in names]) for name in ("even", "third")
}
CATEGORIES = st.sets(st.sampled_from(sorted(ITEMS_OF)))
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
def a_world() -> MultiRouteRetriever:
    """Three routes with random weights."""
    plain = a_decoder(NUM_ITEMS)
    sasrec = Sasrec(NUM_ITEMS, SasrecConfig(d_model=16, max_length=5), torch.Generator().manual_seed(4)).eval()
    return MultiRouteRetriever(plain.model, plain.items, collaborative=sasrec)


def rank(
    fusion: str, rules: Rules | None, of_rows: list[Rules | None] | None = None, *, learned: bool = False, **how: object
) -> dict[str, list[Ranked]]:
    decoder = a_world()
    decoder.fusion = None if fusion == "published" else CalibratedFusion(fusion, WEIGHTS, 0.0, 1, not learned)
    legal = None if rules is None and of_rows is None else EligibleItems(INDEX_OF, rules, of_rows, items_of=ITEMS_OF)
    return decoder.rank(HISTORIES, routes=ROUTES, batch_size=2, legal=legal, **how)


def legal_of(rules: Rules | None) -> set[int]:
    """By the plainest means there are."""
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
def oracle(route: str, fusion: str) -> torch.Tensor:
    """Every item's exact score by a route or by the fused ones, without rules: float [B, N]."""
    scores = {one: a_world().exact_scores(HISTORIES, route=one) for one in ROUTES[:3]}
    if route != "fused":
        return scores[route]
    if fusion == "published":
        return (scores["text"] + scores["image"]) / 2 + AGREEMENT_BONUS

    whole = {one: scores[one] * (1 if one == "collaborative" else LEVELS) for one in WEIGHTS}
    if fusion == "product":
        return sum(WEIGHTS[one] * whole[one] for one in WEIGHTS)
    return torch.stack([whole[one] + np.log(WEIGHTS[one]) for one in WEIGHTS]).logsumexp(dim=0)


@settings(max_examples=25, deadline=None)
@given(fusion=FUSIONS, rules=RULES, of_rows=st.tuples(*[st.none() | RULES] * 3), k=st.integers(1, NUM_ITEMS))
def test_rules_only_take_away(fusion: str, rules: Rules, of_rows: tuple[Rules | None, ...], k: int) -> None:
    """By a beam as wide as the catalogue, every route and all fused: the exact scores without the illegal items."""
    ranked = rank(fusion, rules, list(of_rows), top_k=k, beam_width=NUM_ITEMS)
    for route in ROUTES:
        for row, found in enumerate(ranked[route]):
            legal = sorted(legal_of(rules) & legal_of(of_rows[row]))
            scores = oracle(route, fusion)[row]
            best = sorted(legal, key=lambda item: -float(scores[item]))[:k]
            assert found.item_indices.tolist() == best
            np.testing.assert_allclose(found.scores, scores[best], rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    fusion=FUSIONS, rules=RULES, k=st.integers(1, NUM_ITEMS), beam_width=st.integers(1, 5), exclude_seen=st.booleans()
)
def test_k_items_come_back_where_k_are_legal(
    fusion: str, rules: Rules, k: int, beam_width: int, exclude_seen: bool
) -> None:
    """However narrow the beam, and also where leaving out what was seen has been learned: no item twice, none illegal,
    and of the history only what nothing else is left for."""
    for learned in (False, True):
        ranked = rank(fusion, rules, learned=learned, top_k=k, beam_width=beam_width, exclude_seen=exclude_seen)
        for route in ROUTES:
            for history, found in zip(HISTORIES, ranked[route], strict=True):
                legal, seen = legal_of(rules), set(history.tolist())
                items = found.item_indices.tolist()
                assert set(items) <= (legal - seen if exclude_seen else legal)
                assert len(items) == len(set(items)) == min(k, len(legal - seen if exclude_seen else legal))
                if learned and route == "fused" and fusion != "published":
                    fresh = [item for item in items if item not in seen]
                    assert len(fresh) == min(k, len(legal - seen))
                    assert items[: len(fresh)] == fresh
                else:
                    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_rules_that_take_nothing_away_change_nothing(exclude_seen: bool) -> None:
    """Not a bit of a score, with a narrow beam, whether all rows have the rules or each has them."""
    how = {"top_k": 6, "beam_width": 3, "exclude_seen": exclude_seen}
    free = rank("mixture", None, **how)
    for rules, of_rows in ((Rules(), None), (Rules(list(INDEX_OF), ["gone"]), [Rules(), None, Rules(INDEX_OF)])):
        ruled = rank("mixture", rules, of_rows, **how)
        for route in ROUTES:
            for one, other in zip(free[route], ruled[route], strict=True):
                assert one.item_indices.tolist() == other.item_indices.tolist()
                assert one.scores.tolist() == other.scores.tolist()


@settings(max_examples=30, deadline=None)
@given(items=st.tuples(ITEMS, ITEMS), seed=st.integers(0, 999))
def test_the_prefix_index_knows_what_is_left_below_a_prefix(items: tuple[set[int], set[int]], seed: int) -> None:
    """Of each row's own items, at every depth; a single row holds for all."""
    codes = distinct_codes(NUM_ITEMS, seed)
    index = PrefixTree(codes, codebook_size=SIZE)
    mask = torch.tensor([[item in row for item in range(NUM_ITEMS)] for row in items])
    for depth in range(1, LEVELS + 1):
        nodes = torch.arange(index.num_nodes(depth=depth)).repeat(2)
        rows = torch.arange(2).repeat_interleave(index.num_nodes(depth=depth))
        prefixes = [tuple(prefix) for prefix in index.prefixes(nodes, depth=depth).tolist()]
        having = [{tuple(codes[item, :depth].tolist()) for item in row} for row in items]
        found = index.any_below(index.counted(mask), rows, nodes, depth=depth).tolist()
        assert found == [prefix in having[row] for row, prefix in zip(rows.tolist(), prefixes, strict=True)]
        alone = index.any_below(index.counted(mask[:1]), rows, nodes, depth=depth).tolist()
        assert alone == [prefix in having[0] for prefix in prefixes]


@pytest.mark.parametrize(
    "wrong", [{"allowed": "P0001"}, {"excluded": [1]}, {"allowed": ["P0001", None]}, {"excluded_categories": "Shoes"}]
)
def test_rules_are_lists(wrong: dict[str, object]) -> None:
    """A single string would else be read as its letters."""
    (name,) = wrong
    what = "categories" if name.endswith("categories") else "item ids"
    with pytest.raises(RequestError, match=rf"{name} must be a list of {what}, got"):
        Rules(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("category", "items_of", "answer"),
    [
        ("shoe", ["Show", "Shoes", "Boots"], "There is no category 'shoe' in the catalogue. Near it: 'Shoes'."),
        ("Shose", ["Show", "Shoes", "Boots"], "Near it: 'Shoes', 'Show'."),
        ("Xylophones", [*"abcdefg"], r"The largest of 7: 'a', 'b', 'c', 'd', 'e'\."),
        ("Shoes", [], "Its items have none: map `categories`"),
    ],
)
def test_an_unknown_category_is_a_mistake(category: str, items_of: list[str], answer: str) -> None:
    """Of all rows or of one, allowed or excluded: what is meant may be near it, and nothing is worked out before."""
    known = {name: np.array([0]) for name in items_of}
    for rules in (Rules(allowed_categories=[category]), Rules(excluded_categories=[category])):
        for how in ((rules,), (None, [None, rules])):
            with pytest.raises(RequestError, match=answer):
                EligibleItems(INDEX_OF, *how, items_of=known)
