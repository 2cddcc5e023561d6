"""Challenger against champion: a comparison worked out by hand, the rules at their borders, and the card."""

from dataclasses import replace
from math import log2

import polars as pl
import pytest

from macrec_pipeline.config import PromotionConfig
from macrec_pipeline.errors import DataError
from macrec_pipeline.evaluation.promotion.comparison import Answers, HeadToHead, Standing, against_popularity, compare
from macrec_pipeline.evaluation.promotion.held_out import HeldOut, held_out
from macrec_pipeline.evaluation.promotion.rules import judge
from macrec_pipeline.evaluation.promotion.version_card import match_card, plain_card, version_card
from macrec_pipeline.evaluation.statistics import PairedDifference
from macrec_pipeline.schemas import HISTORIES

SECOND = 1 / log2(3)  # NDCG of a target in second place
TARGETS = ["a", "b", "c", "new"]
CODES = {"a": ((0, 0), (0, 0)), "b": ((0, 1), (0, 1)), "c": ((1, 0), (1, 0)), "x": ((1, 1), (1, 1))}
CHALLENGER = Answers([["a"], ["x", "b"], ["x"], ["new", "x"]], CODES | {"new": ((2, 0), (2, 0))}, 2.0, 3_000_000)
# Of an older catalogue: it has an item that is gone, lacks one that is new, and b has another image ID.
CHAMPION = Answers(
    [["z", "a"], ["b"], ["c"], ["z"]],
    {"z": ((3, 3), (3, 3)), "a": CODES["a"], "b": ((0, 1), (1, 0)), "c": CODES["c"]},
    1.0,
    2_000_000,
)


USERS = HeldOut([["x"]] * 4, TARGETS, [["a", "x"]] * 4, frozenset(("a", "b", "c", "x", "new")))


def worked_out(challenger: Answers = CHALLENGER, champion: Answers = CHAMPION, users: HeldOut = USERS) -> HeadToHead:
    return compare(challenger, champion, users, num_samples=200, confidence=0.9, seed=1)


def test_a_comparison_worked_out_by_hand() -> None:
    """Ranks 1, 2, missed, 1 against 2, 1, 1, unknown; coverage of the five items that are there now."""
    match = worked_out()
    mean = (2 + SECOND) / 4
    ours = Standing(0.75, pytest.approx(mean), 4 / 5, 0.0, 2.0, 3_000_000, 5)
    theirs = Standing(0.75, pytest.approx(mean), 3 / 5, 1 / 4, 1.0, 2_000_000, 4)
    assert (match.challenger, match.champion) == (ours, theirs)
    assert match.ndcg_10.difference == pytest.approx(0)
    assert match.hr_10.difference == 0
    assert match.ndcg_10_known is not None
    assert (match.ndcg_10_known.difference, match.ndcg_10_known.num_users) == (pytest.approx(-1 / 3), 3)
    assert match.popularity_ndcg_10 == 1 / 4
    assert (match.moved_ids, match.num_shared_items) == (1 / 3, 3)
    assert (match.num_users, match.confidence) == (4, 0.9)
    assert -1 <= match.ndcg_10.low < 0 < match.ndcg_10.high <= 1
    assert match == worked_out()


def test_only_the_first_ten_count() -> None:
    """A target in place 11 is a miss, and items from there on are not shown."""
    items = [f"i{place}" for place in range(11)]
    catalogue = dict.fromkeys(items, ((0,), (0,)))
    users = HeldOut([["i0"]], ["i10"], [items], frozenset(items))
    found = worked_out(Answers([items], catalogue, 1.0, 1), Answers([items[::-1]], catalogue, 1.0, 1), users)
    assert (found.challenger.hr_10, found.champion.hr_10) == (0, 1)
    assert found.challenger.coverage == 10 / 11


def test_catalogues_without_a_common_item() -> None:
    """Nothing can have moved, nobody's target is known to both, and the champion misses everything."""
    match = worked_out(champion=Answers([["z"]] * 4, {"z": ((0,), (0,))}, 1.0, 1))
    assert (match.moved_ids, match.num_shared_items, match.ndcg_10_known) == (None, 0, None)
    assert match.champion.unknown_targets == 1
    assert match.ndcg_10.difference == match.challenger.ndcg_10
    assert judge(match, PromotionConfig(max_moved_ids=0)).passed
    assert "no item in common" in match_card(match, judge(match, PromotionConfig()), champion=1)


def test_everyone_must_be_answered() -> None:
    """A list too few, or no user at all, is an error and no other figure."""
    with pytest.raises(DataError, match="4 test users need one list each, got 3"):
        worked_out(challenger=replace(CHALLENGER, lists=CHALLENGER.lists[:3]))
    with pytest.raises(DataError, match="0 test users"):
        worked_out(replace(CHALLENGER, lists=[]), replace(CHAMPION, lists=[]), HeldOut([], [], [], frozenset("a")))


def test_the_champion_alone_against_the_popular_items() -> None:
    """.63, 1, 1, unknown against 1, missed, missed, missed."""
    found, difference = against_popularity(CHAMPION, USERS, num_samples=200, confidence=0.9, seed=1)
    assert found == worked_out().champion
    assert difference.difference == pytest.approx((2 + SECOND - 1) / 4)
    assert difference.low < difference.difference < difference.high


def test_test_users_by_item_id() -> None:
    """All but the last is the input, the last the target; popular items are counted in what comes before both."""
    rows = {
        "user_index": [0, 1],
        "user_id": ["u", "v"],
        "item_indices": [[2, 0, 2, 1], [2, 1, 0]],
        "tested": [True, True],
    }
    table = pl.DataFrame(rows | {"timestamps": [[1, 2, 3, 4], [1, 2, 3]]}, schema=HISTORIES.columns)
    users = held_out(table, ["p", "q", "r"])
    assert users.inputs == [["r", "p", "r"], ["r", "q"]]
    assert users.targets == ["q", "p"]
    assert users.popular == [["r", "p", "q"]] * 2
    assert users.catalogue == {"p", "q", "r"}


def a_match(low: float = 0.0, **changes: object) -> HeadToHead:
    """Equal standings of NDCG@10 .2, and an interval that begins at `low`."""
    one = Standing(0.4, 0.2, 0.5, 0.0, 1.0, 100, 10)
    paired = PairedDifference(0.0, low, 0.01, 0.5, 100)
    return replace(HeadToHead(one, one, paired, paired, paired, 0.1, 0.25, 10, 100, 0.95), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "passed"), [(0.01, True), (0.0, True), (-0.0099, True), (-0.0101, False)])
def test_a_challenger_must_not_be_worse_by_more_than_is_allowed(low: float, passed: bool) -> None:
    """5% of .2 is .01: better, equal, a little worse, and too much worse at the interval's lower end."""
    verdict = judge(a_match(low), PromotionConfig(max_loss_ndcg_10=0.05))
    assert verdict.passed is passed
    assert f"[{low:+.4f}, +0.0100] at 95%, where -0.0100 is allowed" in verdict.reason


@pytest.mark.parametrize(
    ("rules", "ours", "sentence"),
    [
        ({}, {"ndcg_10": 0.05}, "The most popular items reach 0.1000, the challenger 0.0500."),
        ({"max_coverage_drop": 0.1}, {"coverage": 0.39}, "Coverage is 0.390 after 0.500; it may drop by 0.1."),
        ({"max_moved_ids": 0.2}, {}, "25.0% of 10 shared items moved to another semantic ID; 20.0% may."),
        ({"max_latency_ratio": 2}, {"milliseconds": 2.5}, "Time a history is 2.50 times the champion's; 2 times"),
        ({"max_size_ratio": 1.5}, {"num_bytes": 160}, "Size of the bundle is 1.60 times the champion's; 1.5 times"),
    ],
)
def test_each_rule_can_say_no(rules: dict, ours: dict, sentence: str) -> None:
    """One broken rule is enough; its sentence, with its figures, is the reason. Switched off, it says nothing."""
    match = a_match()
    broken = judge(replace(match, challenger=replace(match.challenger, **ours)), PromotionConfig(**rules))
    assert not broken.passed
    assert broken.reason.startswith(sentence)
    assert sum(not finding.kept for finding in broken.findings) == 1
    off = PromotionConfig(never_below_popularity=False)
    assert judge(replace(match, challenger=replace(match.challenger, **ours)), off).passed


def test_at_its_limit_each_rule_is_kept() -> None:
    """As good as popularity, a drop of just so much, twice the time: all of it is allowed."""
    match = a_match(popularity_ndcg_10=0.2)
    ours = replace(match.challenger, coverage=0.25, milliseconds=2.0, num_bytes=200)
    limits = {"max_coverage_drop": 0.25, "max_moved_ids": 0.25, "max_latency_ratio": 2, "max_size_ratio": 2}
    verdict = judge(replace(match, challenger=ours), PromotionConfig(**limits))
    assert verdict.passed
    assert len(verdict.findings) == 6


def test_the_card_shows_every_figure() -> None:
    """Both standings, the intervals, what moved, and each rule with whether it is kept."""
    match = worked_out()
    card = match_card(match, judge(match, PromotionConfig(max_size_ratio=1)), champion=3)
    mean = (2 + SECOND) / 4
    paired = f"[{match.ndcg_10.low:+.4f}, {match.ndcg_10.high:+.4f}]"
    for words in (
        "| | this version | version 3 | difference |",
        f"| NDCG@10 | {mean:.4f} | {mean:.4f} | {match.ndcg_10.difference:+.4f} {paired} |",
        "3 users whose target both know |  |  | -0.3333",
        "| targets unknown to it | 0.0% | 25.0% |",
        "| coverage | 0.800 | 0.600 | +0.200 |",
        "| milliseconds a history | 2.00 | 1.00 | x 2.00 |",
        "| size of the bundle, MB | 3.00 | 2.00 | x 1.50 |",
        "| items | 5 | 4 | +1 |",
        "33.3% of the 3 items that both know",
        "reach NDCG@10 0.2500",
        "- **broken**: Size of the bundle",
        "- kept: The most popular items",
    ):
        assert words in card


def test_a_card_names_its_data_set_and_escapes_it() -> None:
    """Figures are Markdown, the title is text."""
    card = version_card("<b>Shop</b> | *one*", plain_card({"hr_10": 0.5}))
    assert card.splitlines()[0] == r"**&lt;b&gt;Shop&lt;/b&gt; \| \*one\***"
    assert "| hr_10 | 0.5000 |" in card
