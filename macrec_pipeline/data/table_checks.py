"""What must hold of the clean tables before anything is computed from them; each broken rule is one line.

These look at the tables as they are, whoever wrote them: they trust neither cleaning nor the code that split.
"""

import polars as pl

from macrec_pipeline.data.cleaning.clean import latest_ms
from macrec_pipeline.data.cleaning.k_core import MIN_HISTORY
from macrec_pipeline.data.histories.splits import MIN_BEFORE, HeldOutPeriod, expected_events
from macrec_pipeline.schemas import HISTORIES, INTERACTIONS, ITEMS, describe_rows


def interactions_problems(interactions: pl.DataFrame, *, latest: int | None = None) -> list[str]:
    """Broken rules of `interactions`: ids, times, copies, users too short for leave-one-out, order.

    Args:
        interactions: `INTERACTIONS`.
        latest: the latest accepted time in ms since the epoch; None: a day from now.
    """
    if interactions.is_empty():
        return ["interactions: there is no row."]
    latest = latest_ms() if latest is None else latest
    stamp = pl.col("timestamp")
    per_user = interactions.group_by("user_id").len()
    in_order = interactions.select("user_id", "timestamp").sort("user_id", "timestamp")
    found = [
        *INTERACTIONS.forbidden_rows(interactions),
        describe_rows(interactions, "missing timestamp", stamp.is_null()),
        describe_rows(interactions, "timestamp in the future", stamp > latest),
        describe_rows(
            interactions,
            "repeated user, item and time",
            ~pl.struct("user_id", "item_id", "timestamp").is_first_distinct(),
        ),
        describe_rows(per_user, f"user with fewer than {MIN_HISTORY} interactions", pl.col("len") < MIN_HISTORY),
    ]
    if not in_order.equals(interactions.select("user_id", "timestamp")):
        found.append("rows are not in the order of user_id, timestamp")
    return [f"interactions: {problem}." for problem in found if problem]


def items_problems(items: pl.DataFrame, interactions: pl.DataFrame, *, may_be_untouched: bool = False) -> list[str]:
    """Broken rules of `items` (`ITEMS`), by itself and beside `interactions`.

    Args:
        may_be_untouched: an item without an interaction is no problem.
    """
    if items.is_empty():
        return ["items: there is no row."]
    counted = interactions.group_by("item_id").len("counted")
    beside = items.join(counted, on="item_id", how="left").with_columns(pl.col("counted").fill_null(0))
    found = [
        *ITEMS.forbidden_rows(items),
        describe_rows(items, "repeated item_id", ~pl.col("item_id").is_first_distinct()),
        describe_rows(items, "item_index out of line with its row", pl.col("item_index") != pl.int_range(pl.len())),
        describe_rows(items, "item_id out of order", pl.col("item_id") < pl.col("item_id").shift(1)),
        describe_rows(
            beside,
            "item with another number of interactions than num_interactions says",
            (pl.col("num_interactions") != pl.col("counted")).fill_null(True),
        ),
        None if may_be_untouched else describe_rows(beside, "item without an interaction", pl.col("counted") == 0),
        describe_rows(
            interactions.join(items.select("item_id"), on="item_id", how="anti"),
            "interaction with an item that is not in items",
            pl.lit(True),
        ),
    ]
    return [f"items: {problem}." for problem in found if problem]


def histories_problems(
    histories: pl.DataFrame, interactions: pl.DataFrame, items: pl.DataFrame, *, period: HeldOutPeriod | None = None
) -> list[str]:
    """Broken rules of `histories` (`HISTORIES`), among them a held-out interaction inside the training part.

    A user's history must be exactly that user's interactions, with a test period those that the split keeps. No
    training interaction may be later than the validation target, nor that later than the test target. Where no user
    repeats an item in `interactions`, no target may be in the training part either. With a test period no training
    interaction or validation target may lie in or after it, and every test target in it; without one, all are tested.
    """
    if histories.is_empty():
        return ["histories: there is no row."]
    lengths = histories.select(
        "user_id",
        "tested",
        pl.col("item_indices").list.len().alias("items"),
    )
    too_short = pl.col("items") < pl.when("tested").then(MIN_HISTORY).otherwise(MIN_BEFORE)
    found = [
        describe_rows(histories, "repeated user_id", ~pl.col("user_id").is_first_distinct()),
        describe_rows(histories, "user_index out of line with its row", pl.col("user_index") != pl.int_range(pl.len())),
        describe_rows(lengths, f"history shorter than {MIN_HISTORY}, or {MIN_BEFORE} if not tested", too_short),
        describe_rows(lengths, "user who is not tested", ~pl.col("tested") & pl.lit(period is None)),
        *HISTORIES.forbidden_rows(histories),
    ]
    if not any(found):  # what follows pairs each item with its time
        events = _events(histories)
        found += [
            describe_rows(
                events, "item index outside the catalogue", ~pl.col("item_index").is_between(0, items.height - 1)
            ),
            describe_rows(events, "history that goes back in time", pl.col("timestamp") < pl.col("previous")),
            *_leaks(events, interactions),
            *_out_of_period(events, period),
            _differences(events, expected_events(interactions, period), items),
        ]
    return [f"histories: {problem}." for problem in found if problem]


def _events(histories: pl.DataFrame) -> pl.DataFrame:
    """One row an event, with its part: train, validation or test."""
    from_end = pl.len().over("user_id") - pl.int_range(pl.len()).over("user_id") - pl.col("tested").cast(pl.Int64)
    return (
        histories.select(
            "user_id", "tested", pl.col("item_indices").alias("item_index"), pl.col("timestamps").alias("timestamp")
        )
        .explode("item_index", "timestamp")
        .with_columns(
            pl.when(from_end == 0)
            .then(pl.lit("test"))
            .when(from_end == 1)
            .then(pl.lit("validation"))
            .otherwise(pl.lit("train"))
            .alias("part"),
            pl.col("timestamp").shift(1).over("user_id").alias("previous"),
        )
    )


def _leaks(events: pl.DataFrame, interactions: pl.DataFrame) -> list[str | None]:
    """Held-out interactions that the training part knows, by time and, where nobody repeats an item, by item."""
    part, stamp = pl.col("part"), pl.col("timestamp")
    times = events.group_by("user_id", maintain_order=True).agg(
        stamp.filter(part == "train").max().alias("train"),
        stamp.filter(part == "validation").first().alias("validation"),
        stamp.filter(part == "test").first().alias("test"),
    )
    found = [
        describe_rows(
            times, "training interaction later than the validation target", pl.col("train") > pl.col("validation")
        ),
        describe_rows(times, "validation target later than the test target", pl.col("validation") > pl.col("test")),
        describe_rows(times, "training interaction later than the test target", pl.col("train") > pl.col("test")),
    ]
    if interactions.select(pl.struct("user_id", "item_id").is_duplicated().any()).item():
        return found  # repeats are wanted here: an item may be learnt and asked for
    seen = events.filter(part == "train").select("user_id", "item_index").unique(maintain_order=True)
    for name in ("validation", "test"):
        again = events.filter(part == name).join(seen, on=["user_id", "item_index"], how="semi", maintain_order="left")
        found.append(describe_rows(again, f"{name} target that is in the user's training part", pl.lit(True)))
    return found


def _out_of_period(events: pl.DataFrame, period: HeldOutPeriod | None) -> list[str | None]:
    """Events on the wrong side of the test period's borders."""
    if period is None:
        return []
    late, is_test = pl.col("timestamp") >= period.begin, pl.col("part") == "test"
    outside = ~late if period.end is None else ~late | (pl.col("timestamp") >= period.end)
    return [
        describe_rows(
            events, "training interaction or validation target that is not before the period", late & ~is_test
        ),
        describe_rows(events, "test target outside the period", outside & is_test),
    ]


def _differences(events: pl.DataFrame, interactions: pl.DataFrame, items: pl.DataFrame) -> str | None:
    """Users whose history is another multiset of (item, time) than their interactions."""
    key = ["user_id", "item_index", "timestamp"]
    expected = interactions.join(items.select("item_id", "item_index"), on="item_id", how="left").select(key)
    there, wanted = events.group_by(key).len("there"), expected.group_by(key).len("wanted")
    differing = (
        there.join(wanted, on=key, how="full", coalesce=True, nulls_equal=True)
        .filter(pl.col("there").ne_missing(pl.col("wanted")))
        .sort(key)
    )
    return describe_rows(differing, "history that is not exactly the user's interactions", pl.lit(True))
