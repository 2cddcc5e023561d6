"""Sample users: chosen the same way every time, hits and misses both, with their own items."""

from pathlib import Path

import polars as pl
import pytest

from macrec_pipeline.errors import DataError
from macrec_pipeline.evaluation import Evaluation, SampleItem, choose_sample_users, sample_users


def _items(image_path: str | None = "pictures/0.jpg", num_items: int = 30) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item_index": range(num_items),
            "item_id": [f"i{index}" for index in range(num_items)],
            "title": [None if index == 1 else f"Title {index}" for index in range(num_items)],
            "image_path": [image_path if index == 0 else None for index in range(num_items)],
        },
        schema_overrides={"image_path": pl.String},
    )


def test_a_third_of_the_chosen_have_a_hit(evaluation: Evaluation) -> None:
    """Of twelve distinct users the first four have the target among the first ten, by rank; the others do not."""
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


def test_the_choice_depends_on_the_seed_alone(evaluation: Evaluation) -> None:
    """The same seed chooses the same users, another one others."""
    first = choose_sample_users(evaluation.per_user, num_users=12, seed=1)
    assert choose_sample_users(evaluation.per_user, num_users=12, seed=1) == first
    assert choose_sample_users(evaluation.per_user, num_users=12, seed=2) != first


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (1, 1), (40, 40), (99, 40)])
def test_no_more_users_than_there_are(evaluation: Evaluation, asked: int, given: int) -> None:
    """As many users come back as were asked for, or all there are."""
    assert len(set(choose_sample_users(evaluation.per_user, num_users=asked, seed=1))) == given


def test_samples_hold_the_users_own_items(histories: pl.DataFrame, predictions: pl.DataFrame, tmp_path: Path) -> None:
    """History, target and recommendations are those of the tables; an item without a title is named by its id."""
    (user,) = sample_users([5], histories=histories, predictions=predictions, items=_items(), data_dir=tmp_path)
    items = histories["item_indices"][5].to_list()
    fused = predictions.filter((pl.col("system") == "macrec") & ~pl.col("exclude_seen"))
    assert user.user_id == "u05"
    assert [item.item_id for item in user.history] == [f"i{index}" for index in items[:-1]]
    assert user.history_length == len(items) - 1
    assert user.target.item_id == f"i{items[-1]}"
    assert [item.item_id for item in user.recommendations] == [f"i{index}" for index in fused["item_indices"][5][:10]]
    everything = {
        item
        for shown in sample_users(
            list(range(40)), histories=histories, predictions=predictions, items=_items(), data_dir=tmp_path
        )
        for item in shown.history
    }
    assert SampleItem("i0", "Title 0", tmp_path / "pictures" / "0.jpg") in everything
    assert SampleItem("i1", "Item i1", None) in everything


def test_pictures_outside_the_data_folder_are_refused(
    histories: pl.DataFrame, predictions: pl.DataFrame, tmp_path: Path
) -> None:
    """A path that climbs out of the data folder is not read."""
    with pytest.raises(DataError, match="leaves the data folder"):
        sample_users(
            [0], histories=histories, predictions=predictions, items=_items("../secret.jpg"), data_dir=tmp_path
        )


def test_unknown_users_are_refused(histories: pl.DataFrame, predictions: pl.DataFrame, tmp_path: Path) -> None:
    """A user who is not in the tables is named."""
    with pytest.raises(DataError, match="user_index 77"):
        sample_users([77], histories=histories, predictions=predictions, items=_items(), data_dir=tmp_path)
