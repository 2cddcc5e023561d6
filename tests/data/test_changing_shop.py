"""The shop that changes every week: the same plan gives the same files, and everything that should change does."""

import hashlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from macrec_pipeline.data.demo.changing_shop import ChangingShop, ShopPlan, user_ids

PLAN = ShopPlan(
    num_items=60,
    num_users=80,
    num_kinds=5,
    num_styles=3,
    new_items=3,
    leaving_items=3,
    weeks_before=4,
    empty_weeks=(2,),
    damaged=((1, "unreadable_times"), (3, "truncated_catalogue")),
)
NUM_WEEKS = 12


@pytest.fixture(scope="module")
def shop() -> ChangingShop:
    return ChangingShop(PLAN, num_weeks=NUM_WEEKS)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_plan_gives_the_same_bytes(shop: ChangingShop, tmp_path: Path) -> None:
    """A week does not depend on how many weeks follow, nor on which deliveries were written before. Seeds differ."""
    for week in (0, 3, 5):
        shop.write(week, tmp_path / "week by week")
    ChangingShop(PLAN, num_weeks=6).write(5, tmp_path / "at once")
    ChangingShop(replace(PLAN, seed=8), num_weeks=6).write(5, tmp_path / "another seed")
    assert digests(tmp_path / "week by week") == digests(tmp_path / "at once")
    assert digests(tmp_path / "another seed") != digests(tmp_path / "at once")


def test_items_come_go_and_return_but_the_log_keeps_everything(shop: ChangingShop) -> None:
    sold = [shop.sold_in(week) for week in range(NUM_WEEKS)]
    for before, after in pairwise(sold):
        assert len(before - after) == PLAN.leaving_items
        assert len(after - before) in (PLAN.new_items, PLAN.new_items + 1), "new ones, and at most one that returns"
    returned = [item for week in range(2, NUM_WEEKS) for item in sold[week] - sold[week - 1] if item in sold[week - 2]]
    assert not returned, "an item is away for at least two weeks"
    ever = set().union(*sold)
    assert any(
        item in sold[week] and item not in sold[week - 1] and item in set().union(*sold[: week - 1])
        for item in ever
        for week in range(2, NUM_WEEKS)
    )
    first, last = shop.log(0), shop.log(NUM_WEEKS - 1)
    assert last.head(first.height).equals(first)
    assert not set(first["item_id"]) <= sold[0], "some items left before the first delivery"
    for week in range(NUM_WEEKS):
        assert set(shop.log(week).filter(pl.col("week") == week)["item_id"]) <= sold[week]


def test_nobody_chooses_an_item_twice_and_weeks_do_not_overlap(shop: ChangingShop) -> None:
    log = shop.log(NUM_WEEKS - 1)
    assert log.select("user_id", "item_id").is_unique().all()
    assert log["time"].is_sorted()
    ends = log.group_by("week").agg(first=pl.col("time").min(), last=pl.col("time").max()).sort("week")
    assert (ends["first"].to_numpy()[1:] > ends["last"].to_numpy()[:-1]).all()
    assert 2 not in ends["week"].to_list(), "an empty week"


def test_users_come_and_pause(shop: ChangingShop) -> None:
    log = shop.log(NUM_WEEKS - 1)
    newcomers = set(log["user_id"]) - set(user_ids(range(PLAN.num_users)))
    assert len(newcomers) >= NUM_WEEKS
    weeks = log.group_by("user_id").agg(pl.col("week").unique().sort())
    gaps = [int(np.diff(row).max(initial=0)) for row in weeks["week"].to_list()]
    assert sum(gap >= 5 for gap in gaps) >= 3


def test_the_next_item_follows_from_the_last_one(shop: ChangingShop) -> None:
    """The share of items whose title has the next kind of the chain is far above one in five, which is chance."""
    kind_of = {f"P{item:05d}": int(kind) for item, kind in enumerate(shop.kinds)}
    histories = shop.log(NUM_WEEKS - 1).group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()
    pairs = [pair for history in histories for pair in pairwise(history)]
    share = np.mean([kind_of[after] == (kind_of[before] + 1) % PLAN.num_kinds for before, after in pairs])
    assert share > 0.5


def test_deliveries(shop: ChangingShop, tmp_path: Path) -> None:
    """Customers of a branch have days, others exact times. Damaged files are what they claim to be."""
    shop.write(1, tmp_path)
    log = pl.read_csv(tmp_path / "log.csv")
    only_day = log["time"].str.len_chars() == 10
    assert 0.1 < only_day.mean() < 0.45
    assert (
        log.with_columns(only_day=only_day).group_by("user_id").agg(pl.col("only_day").n_unique())["only_day"].max()
        == 1
    )
    items = pl.read_csv(tmp_path / "items.csv")
    assert set(items["item_id"]) == shop.sold_in(1)
    assert {path.stem for path in (tmp_path / "images").iterdir()} == shop.sold_in(1)
    with Image.open(tmp_path / "images" / f"{items['item_id'][0]}.jpg") as image:
        assert image.size == (96, 96)
    shop.write(1, tmp_path, damage="unreadable_times")
    assert (pl.read_csv(tmp_path / "log.csv")["time"] == "#REF!").mean() == pytest.approx(0.3, abs=0.01)
    shop.write(1, tmp_path, damage="truncated_catalogue")
    assert pl.read_csv(tmp_path / "items.csv").height == items.height // 2


def test_texts_and_prices_change(shop: ChangingShop, tmp_path: Path) -> None:
    shop.write(0, tmp_path / "0")
    shop.write(NUM_WEEKS - 1, tmp_path / "11")
    before, after = (pl.read_csv(tmp_path / name / "items.csv") for name in ("0", "11"))
    both = before.join(after, on="item_id", suffix="_later")
    assert (both["title"] == both["title_later"]).all()
    assert 0 < (both["description"] != both["description_later"]).sum() < both.height / 2
    assert (both["price"] != both["price_later"]).mean() > 0.9
