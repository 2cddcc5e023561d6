"""Sample users are chosen reproducibly, include hits and misses, and come with their own items."""

from pathlib import Path

import polars as pl
import pytest

from macrec_pipeline.errors import DataError
from macrec_pipeline.evaluation import Evaluation, SampleItem, choose_sample_users, sample_users


def _items(image_path: str | None = "images/0.jpg", num_items: int = 30) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item_index": range(num_items),
            "item_id": [f"i{index}" for index in range(num_items)],
            "title": [None if index == 1 else f"Title {index}" for index in range(num_items)],
            "image_path": [image_path if index == 0 else None for index in range(num_items)],
        },
        schema_overrides={"image_path": pl.String},
    )


def test_a_third_of_the_chosen_users_have_a_hit(evaluation: Evaluation) -> None:
    """Of twelve distinct users, the first four have the target among the first ten, by rank; the others do not."""
    chosen = choose_sample_users(evaluation.per_user, num_users=12, seed=1)
    ranks = dict(
        evaluation.per_user.filter((pl.col("system") == "macrec") & ~pl.col("exclude_seen"))
        .select("user_index", pl.col("rank").fill_null(99))
        .iter_rows()
    )
    assert len(set(chosen)) == 12
    assert [ranks[user] <= 10 for user in chosen] == [True] * 4 + [False] * 8
    assert [ranks[user] for user in chosen[:4]] == sorted(ranks[user] for user in chosen[:4])
    assert chosen[4:] == sorted(chosen[4:])


def test_the_choice_depends_only_on_the_seed(evaluation: Evaluation) -> None:
    """The same seed chooses the same users, and another seed chooses others."""
    first = choose_sample_users(evaluation.per_user, num_users=12, seed=1)
    assert choose_sample_users(evaluation.per_user, num_users=12, seed=1) == first
    assert choose_sample_users(evaluation.per_user, num_users=12, seed=2) != first


@pytest.mark.parametrize(("num_users", "expected"), [(0, 0), (1, 1), (40, 40), (99, 40)])
def test_no_more_users_than_exist(evaluation: Evaluation, num_users: int, expected: int) -> None:
    """As many users are returned as requested, or all users if there are fewer."""
    assert len(set(choose_sample_users(evaluation.per_user, num_users=num_users, seed=1))) == expected


def test_samples_hold_the_users_own_items(histories: pl.DataFrame, predictions: pl.DataFrame, tmp_path: Path) -> None:
    """History, target and recommendations come from the tables; an item without a title is named by its id."""
    (user,) = sample_users([5], histories=histories, predictions=predictions, items=_items(), data_dir=tmp_path)
    items = histories["item_indices"][5].to_list()
    fused = predictions.filter((pl.col("system") == "macrec") & ~pl.col("exclude_seen"))
    assert user.user_id == "u05"
    assert [item.item_id for item in user.history] == [f"i{index}" for index in items[:-1]]
    assert user.history_length == len(items) - 1
    assert user.target.item_id == f"i{items[-1]}"
    assert [item.item_id for item in user.recommendations] == [f"i{index}" for index in fused["item_indices"][5][:10]]
    history_items = {
        item
        for sample in sample_users(
            list(range(40)), histories=histories, predictions=predictions, items=_items(), data_dir=tmp_path
        )
        for item in sample.history
    }
    assert SampleItem("i0", "Title 0", tmp_path / "images" / "0.jpg") in history_items
    assert SampleItem("i1", "Item i1", None) in history_items


def test_images_outside_the_data_folder_are_rejected(
    histories: pl.DataFrame, predictions: pl.DataFrame, tmp_path: Path
) -> None:
    """A path that leads out of the data folder raises an error."""
    with pytest.raises(DataError, match="leads out of the data folder"):
        sample_users(
            [0], histories=histories, predictions=predictions, items=_items("../secret.jpg"), data_dir=tmp_path
        )


def test_unknown_users_are_rejected(histories: pl.DataFrame, predictions: pl.DataFrame, tmp_path: Path) -> None:
    """A user who is not in the tables raises an error with the user's index."""
    with pytest.raises(DataError, match="user_index 77"):
        sample_users([77], histories=histories, predictions=predictions, items=_items(), data_dir=tmp_path)
