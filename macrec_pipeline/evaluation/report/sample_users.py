"""A few test users to look at: what they had, what they took next, what they were recommended.

What enters: the tables of the run. What leaves: `SampleUser` records with titles and picture files, ready to draw.
The users are drawn at random, hits and misses apart, so that the page shows hits without hiding misses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import polars as pl

from macrec_pipeline.errors import DataError
from macrec_pipeline.evaluation.predictions import FUSED_SYSTEM
from macrec_pipeline.runtime.seeds import numpy_generator

HIT_SHARE = 1 / 3
NUM_RECOMMENDED = 10
NUM_HISTORY = 10


@dataclass(frozen=True)
class SampleItem:
    """An item as it is shown.

    Attributes:
        item_id: the shop's key.
        title: any text; it is escaped when drawn.
        image: a picture file, None where the item has none.
    """

    item_id: str
    title: str
    image: Path | None = None


@dataclass(frozen=True)
class SampleUser:
    """A test user as shown.

    Attributes:
        user_id: the shop's key.
        history: the newest items of the input, oldest first.
        history_length: items of the whole input.
        target: the true next item.
        recommendations: the fused system's items with seen items allowed, best first.
    """

    user_id: str
    history: tuple[SampleItem, ...]
    history_length: int
    target: SampleItem
    recommendations: tuple[SampleItem, ...]


def choose_sample_users(per_user: pl.DataFrame, *, num_users: int, seed: int) -> list[int]:
    """Draw user indices: a third with the target among the first ten (if there are as many), the rest without.

    Args:
        per_user: `Evaluation.per_user`.
        num_users: how many; fewer come back only where there are fewer test users.
        seed: root seed.

    Returns:
        `user_index` values: those with a hit by rank, then the others, equal ones by index.
    """
    fused = per_user.filter((pl.col("system") == FUSED_SYSTEM) & ~pl.col("exclude_seen")).sort("user_index")
    is_hit = pl.col("rank").fill_null(NUM_RECOMMENDED + 1) <= NUM_RECOMMENDED
    hits = fused.filter(is_hit)["user_index"].to_numpy()
    misses = fused.filter(~is_hit)["user_index"].to_numpy()
    num_hits = min(len(hits), max(round(num_users * HIT_SHARE), num_users - len(misses)))
    num_misses = min(len(misses), num_users - num_hits)
    generator = numpy_generator(seed, "evaluation/sample_users")
    chosen = [
        *generator.choice(hits, size=num_hits, replace=False).tolist(),
        *generator.choice(misses, size=num_misses, replace=False).tolist(),
    ]
    shown = fused.filter(pl.col("user_index").is_in(chosen)).with_columns(is_hit.alias("hit"))
    order = [pl.col("hit"), pl.when("hit").then(pl.col("rank")), pl.col("user_index")]
    return shown.sort(order, descending=[True, False, False])["user_index"].to_list()


def sample_users(
    user_indices: Sequence[int],
    *,
    histories: pl.DataFrame,
    predictions: pl.DataFrame,
    items: pl.DataFrame,
    data_dir: Path,
) -> tuple[SampleUser, ...]:
    """Collect titles and pictures of the histories, targets and recommendations of some users.

    Args:
        user_indices: whom to show, in this order.
        histories, predictions, items: the tables of one run.
        data_dir: the folder that `items.image_path` is relative to.

    Raises:
        DataError: a user is not in the tables, or a picture path leaves the data folder.
    """
    catalogue = [
        SampleItem(item_id, title or f"Item {item_id}", _picture(data_dir, path))
        for item_id, title, path in items.sort("item_index").select("item_id", "title", "image_path").iter_rows()
    ]
    fused = predictions.filter((pl.col("system") == FUSED_SYSTEM) & ~pl.col("exclude_seen"))
    lists = dict(fused.select("user_index", "item_indices").iter_rows())
    rows = {row["user_index"]: row for row in histories.iter_rows(named=True) if row["user_index"] in user_indices}
    shown = []
    for user in user_indices:
        if user not in rows or user not in lists:
            raise DataError(f"user_index {user} is not in both histories and predictions; materialize them together.")
        *inputs, target = rows[user]["item_indices"]
        shown.append(
            SampleUser(
                user_id=rows[user]["user_id"],
                history=tuple(catalogue[index] for index in inputs[-NUM_HISTORY:]),
                history_length=len(inputs),
                target=catalogue[target],
                recommendations=tuple(catalogue[index] for index in lists[user][:NUM_RECOMMENDED]),
            )
        )
    return tuple(shown)


def _picture(data_dir: Path, relative: str | None) -> Path | None:
    if relative is None:
        return None
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts:
        raise DataError(f"items: image_path {relative!r} leaves the data folder; it must be a relative path inside it.")
    return data_dir / pure
