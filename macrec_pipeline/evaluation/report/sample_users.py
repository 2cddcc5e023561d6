"""Choose a few test users to show in the report, with their history, their next item and their recommendations.

The input is the tables of the run. The output is `SampleUser` records with titles and image files, ready to be drawn.
Hits and misses are drawn at random but separately, so that the page always shows both where both exist.
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
    """An item as shown on the page.

    Attributes:
        item_id: the key of the item in the source data.
        title: any text; it is escaped when drawn.
        image: an image file; None if the item has none.
    """

    item_id: str
    title: str
    image: Path | None = None


@dataclass(frozen=True)
class SampleUser:
    """A test user as shown on the page.

    Attributes:
        user_id: the key of the user in the source data.
        history: the newest items of the input history, oldest first.
        history_length: number of items in the whole input history.
        target: the item that came next.
        recommendations: the first items of the fused system with seen items allowed, best first.
    """

    user_id: str
    history: tuple[SampleItem, ...]
    history_length: int
    target: SampleItem
    recommendations: tuple[SampleItem, ...]


def choose_sample_users(per_user: pl.DataFrame, *, num_users: int, seed: int) -> list[int]:
    """Draw users at random: a third with the target among the first ten items (a hit), the rest without (a miss).

    If there are too few hits or misses, the other kind fills up.

    Args:
        per_user: `Evaluation.per_user`.
        num_users: number of users to draw; if there are fewer test users, all of them are returned.
        seed: root seed.

    Returns:
        `user_index` values: the hits by rank, then the misses. Users with equal ranks are ordered by index.
    """
    fused = per_user.filter((pl.col("system") == FUSED_SYSTEM) & ~pl.col("exclude_seen")).sort("user_index")
    is_hit = pl.col("rank").fill_null(NUM_RECOMMENDED + 1) <= NUM_RECOMMENDED
    hits = fused.filter(is_hit)["user_index"].to_numpy()
    misses = fused.filter(~is_hit)["user_index"].to_numpy()
    num_hits = min(len(hits), max(round(num_users * HIT_SHARE), num_users - len(misses)))
    num_misses = min(len(misses), num_users - num_hits)
    generator = numpy_generator(seed, "evaluation/sample_users")
    drawn = [
        *generator.choice(hits, size=num_hits, replace=False).tolist(),
        *generator.choice(misses, size=num_misses, replace=False).tolist(),
    ]
    chosen = fused.filter(pl.col("user_index").is_in(drawn)).with_columns(is_hit.alias("hit"))
    order = [pl.col("hit"), pl.when("hit").then(pl.col("rank")), pl.col("user_index")]
    return chosen.sort(order, descending=[True, False, False])["user_index"].to_list()


def sample_users(
    user_indices: Sequence[int],
    *,
    histories: pl.DataFrame,
    predictions: pl.DataFrame,
    items: pl.DataFrame,
    data_dir: Path,
) -> tuple[SampleUser, ...]:
    """Collect the titles and images of the histories, targets and recommendations of some users.

    Args:
        user_indices: the users to show, in this order.
        histories, predictions, items: the tables of one run.
        data_dir: the folder that `items.image_path` is relative to.

    Raises:
        DataError: a user is not in the tables, or an image path leads out of the data folder.
    """
    catalogue = [
        SampleItem(item_id, title or f"Item {item_id}", _image_file(data_dir, path))
        for item_id, title, path in items.sort("item_index").select("item_id", "title", "image_path").iter_rows()
    ]
    fused = predictions.filter((pl.col("system") == FUSED_SYSTEM) & ~pl.col("exclude_seen"))
    lists = dict(fused.select("user_index", "item_indices").iter_rows())
    rows = {row["user_index"]: row for row in histories.iter_rows(named=True) if row["user_index"] in user_indices}
    samples = []
    for user in user_indices:
        if user not in rows or user not in lists:
            raise DataError(
                f"user_index {user} is missing from histories or predictions. Materialize both tables together."
            )
        *inputs, target = rows[user]["item_indices"]
        samples.append(
            SampleUser(
                user_id=rows[user]["user_id"],
                history=tuple(catalogue[index] for index in inputs[-NUM_HISTORY:]),
                history_length=len(inputs),
                target=catalogue[target],
                recommendations=tuple(catalogue[index] for index in lists[user][:NUM_RECOMMENDED]),
            )
        )
    return tuple(samples)


def _image_file(data_dir: Path, relative: str | None) -> Path | None:
    if relative is None:
        return None
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts:
        raise DataError(
            f"items: image_path {relative!r} leads out of the data folder. It must be a relative path inside it."
        )
    return data_dir / pure
