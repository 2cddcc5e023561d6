"""From files to histories: the same rows give the same split, whatever the order of lines."""

import gzip
import json
import random
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items
from macrec_pipeline.datasets import DatasetSpec

_SOURCES = {
    "amazon2018": {"reader": "amazon2018", "folder": "shop", "prefix": "X"},
    "amazon2023": {"reader": "amazon2023", "folder": "shop", "prefix": "X"},
    "movielens": {"reader": "movielens", "folder": "shop", "layout": "1m"},
}
_Rating = tuple[str, str, int, int]

# Few users, items and times, so that duplicates, repeats and equal times are common.
_ratings = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcdef"), st.integers(1, 2), st.integers(0, 3)), max_size=40
)


def _write(reader: str, folder: Path, ratings: list[_Rating], items: list[str]) -> None:
    """Write the rows in the file format that the reader expects."""
    folder.mkdir(exist_ok=True)
    start = 1_400_000_000
    if reader == "amazon2023":
        reviews = [
            {"user_id": user, "parent_asin": item, "rating": rating, "timestamp": (start + time) * 1000}
            for user, item, rating, time in ratings
        ]
        (folder / "X.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, reviews)).encode()))
        (folder / "meta_X.jsonl").write_text("\n".join(json.dumps({"parent_asin": item}) for item in items))
    elif reader == "amazon2018":
        lines = [f"{item},{user},{rating}.0,{start + time}" for user, item, rating, time in ratings]
        (folder / "X.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
        (folder / "meta_X.json").write_text("\n".join(json.dumps({"asin": item}) for item in items))
    else:
        lines = [f"{user}::{item}::{rating}::{start + time}" for user, item, rating, time in ratings]
        (folder / "ratings.dat").write_text("\n".join(lines))
        (folder / "movies.dat").write_text("\n".join(f"{item}::Movie {item}::Drama" for item in items))


def _histories(reader: str, data_dir: Path, config: CleaningConfig) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    spec = DatasetSpec(name="x", title="x", source=_SOURCES[reader])
    tables = clean(read_raw_interactions(spec, data_dir), read_raw_items(spec, data_dir), config)
    return build_histories(tables.interactions, tables.items), tables.interactions, tables.items


@pytest.mark.parametrize("reader", list(_SOURCES))
@settings(max_examples=25, deadline=None)
@given(ratings=_ratings, seed=st.integers(0, 99), policy=st.sampled_from(["first", "last", "keep"]))
def test_shuffled_lines_give_the_same_split(tmp_path_factory, reader, ratings, seed, policy) -> None:
    """Histories, interactions and catalogue are equal, also with duplicates and equal times among the rows."""
    ratings = ratings + [(user, item, 1, time) for user in "uvw" for time, item in enumerate("abc")]
    config = CleaningConfig(k_core=2, duplicates=policy)
    data_dir = tmp_path_factory.mktemp("data")
    _write(reader, data_dir / "shop", ratings, list("abcdef"))
    in_order = _histories(reader, data_dir, config)
    shuffle = random.Random(seed)
    _write(reader, data_dir / "shop", shuffle.sample(ratings, len(ratings)), shuffle.sample(list("abcdef"), 6))
    for table, shuffled in zip(in_order, _histories(reader, data_dir, config), strict=True):
        assert table.equals(shuffled)


def test_with_ties_by_position_the_order_of_lines_counts(tmp_path: Path) -> None:
    """A file in chronological order that gives only the day keeps its order with `ties: position`."""
    ratings = [("u", item, 1, 0) for item in "dacb"]
    _write("movielens", tmp_path / "shop", ratings, list("abcd"))
    by_id, *_ = _histories("movielens", tmp_path, CleaningConfig(k_core=1, ties="item_id"))
    by_line, *_ = _histories("movielens", tmp_path, CleaningConfig(k_core=1, ties="position"))
    assert by_id["item_indices"].to_list() == [[0, 1, 2, 3]]
    assert by_line["item_indices"].to_list() == [[3, 0, 2, 1]]


def test_the_core_is_that_of_plain_loops(tmp_path: Path) -> None:
    """The 5-core and the histories, read from a file in the real format, equal those of loops over dictionaries."""
    draw = random.Random(7)
    pairs = {(f"u{draw.randrange(60)}", f"i{int(draw.random() ** 2 * 40)}") for _ in range(500)}
    ratings = [(user, item, 5, draw.randrange(50)) for user, item in sorted(pairs)]
    _write("amazon2018", tmp_path / "shop", ratings, [f"i{item}" for item in range(40)])
    histories, _, items = _histories("amazon2018", tmp_path, CleaningConfig(k_core=5, ties="item_id"))
    remaining = list(ratings)
    while True:
        users = {user: sum(row[0] == user for row in remaining) for user, *_ in remaining}
        counts = {item: sum(row[1] == item for row in remaining) for _, item, *_ in remaining}
        kept = [row for row in remaining if users[row[0]] >= 5 and counts[row[1]] >= 5]
        if len(kept) == len(remaining):
            break
        remaining = kept
    assert 0 < len(remaining) < len(ratings)
    expected = {
        user: [item for _, item in sorted((time, item) for other, item, _, time in remaining if other == user)]
        for user in {row[0] for row in remaining}
    }
    ids = items["item_id"].to_list()
    assert {user: [ids[item] for item in row] for user, row in histories.select("user_id", "item_indices").rows()} == (
        expected
    )
