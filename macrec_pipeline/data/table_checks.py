"""The checks that the clean tables must pass before anything is computed from them.

Each function takes tables and returns one line per broken rule, so an empty list means that the tables are valid. The
checks look at the tables as they are stored. They rely neither on cleaning nor on the code that splits histories.
"""

import polars as pl

from macrec_pipeline.data.cleaning.clean import latest_plausible_ms
from macrec_pipeline.data.cleaning.k_core import MIN_HISTORY
from macrec_pipeline.data.histories.splits import MIN_BEFORE_PERIOD, HeldOutPeriod, interactions_in_histories
from macrec_pipeline.schemas import HISTORIES, INTERACTIONS, ITEMS, describe_rows


def interactions_problems(interactions: pl.DataFrame, *, latest: int | None = None) -> list[str]:
    """Check `interactions`: IDs, times, duplicates, the length of users' histories, and the order of rows.

    Args:
        interactions: `INTERACTIONS`.
        latest: the latest accepted timestamp, in milliseconds since the epoch; None for `latest_plausible_ms`.

    Returns:
        One line per broken rule.
    """
    if interactions.is_empty():
        return ["interactions: the table has no rows."]
    latest = latest_plausible_ms() if latest is None else latest
    timestamp = pl.col("timestamp")
    per_user = interactions.group_by("user_id").len()
    in_order = interactions.select("user_id", "timestamp").sort("user_id", "timestamp")
    problems = [
        *INTERACTIONS.forbidden_rows(interactions),
        describe_rows(interactions, "missing timestamp", timestamp.is_null()),
        describe_rows(interactions, "timestamp in the future", timestamp > latest),
        describe_rows(
            interactions,
            "repeated user, item and time",
            ~pl.struct("user_id", "item_id", "timestamp").is_first_distinct(),
        ),
        describe_rows(per_user, f"user with fewer than {MIN_HISTORY} interactions", pl.col("len") < MIN_HISTORY),
    ]
    if not in_order.equals(interactions.select("user_id", "timestamp")):
        problems.append("rows are not sorted by user_id, timestamp")
    return [f"interactions: {problem}." for problem in problems if problem]


def items_problems(
    items: pl.DataFrame, interactions: pl.DataFrame, *, allow_items_without_interactions: bool = False
) -> list[str]:
    """Check `items`, both by itself and against `interactions`.

    Args:
        items: `ITEMS`.
        interactions: `INTERACTIONS`.
        allow_items_without_interactions: do not report items without interactions.

    Returns:
        One line per broken rule.
    """
    if items.is_empty():
        return ["items: the table has no rows."]
    counts = interactions.group_by("item_id").len("counted")
    with_counts = items.join(counts, on="item_id", how="left").with_columns(pl.col("counted").fill_null(0))
    problems = [
        *ITEMS.forbidden_rows(items),
        describe_rows(items, "repeated item_id", ~pl.col("item_id").is_first_distinct()),
        describe_rows(
            items, "item_index that differs from the row's position", pl.col("item_index") != pl.int_range(pl.len())
        ),
        describe_rows(items, "item_id out of order", pl.col("item_id") < pl.col("item_id").shift(1)),
        describe_rows(
            with_counts,
            "num_interactions that differs from the rows of interactions",
            (pl.col("num_interactions") != pl.col("counted")).fill_null(True),
        ),
        None
        if allow_items_without_interactions
        else describe_rows(with_counts, "item without an interaction", pl.col("counted") == 0),
        describe_rows(
            interactions.join(items.select("item_id"), on="item_id", how="anti"),
            "interaction with an item that is not in items",
            pl.lit(True),
        ),
    ]
    return [f"items: {problem}." for problem in problems if problem]


def histories_problems(
    histories: pl.DataFrame, interactions: pl.DataFrame, items: pl.DataFrame, *, period: HeldOutPeriod | None = None
) -> list[str]:
    """Check `histories`, above all that no held-out interaction leaks into a training part.

    - A user's history holds exactly that user's interactions, or with a test period those that the split keeps.
    - No training interaction is later than the validation target, nor the validation target later than the test target.
    - If no user repeats an item in `interactions`, no target is in its user's training part.
    - `num_at_target_time` counts the user's interactions at the time of the test target.
    - With a test period, training interactions and validation targets lie before it, and test targets in it. Without
      one, every user is tested.

    Args:
        histories: `HISTORIES`.
        interactions: `INTERACTIONS`.
        items: `ITEMS`.
        period: the test period of a split by time; None for leave-one-out.

    Returns:
        One line per broken rule.
    """
    if histories.is_empty():
        return ["histories: the table has no rows."]
    lengths = histories.select("user_id", "tested", pl.col("item_indices").list.len().alias("items"))
    is_too_short = pl.col("items") < pl.when("tested").then(MIN_HISTORY).otherwise(MIN_BEFORE_PERIOD)
    problems = [
        describe_rows(histories, "repeated user_id", ~pl.col("user_id").is_first_distinct()),
        describe_rows(
            histories, "user_index that differs from the row's position", pl.col("user_index") != pl.int_range(pl.len())
        ),
        describe_rows(
            lengths, f"history shorter than {MIN_HISTORY}, or {MIN_BEFORE_PERIOD} if not tested", is_too_short
        ),
        describe_rows(lengths, "user who is not tested", ~pl.col("tested") & pl.lit(period is None)),
        *HISTORIES.forbidden_rows(histories),
    ]
    if not any(problems):  # the remaining checks need as many times as items in each history
        events = _explode_events(histories)
        problems += [
            describe_rows(
                events, "item index outside the catalogue", ~pl.col("item_index").is_between(0, items.height - 1)
            ),
            describe_rows(events, "history that goes back in time", pl.col("timestamp") < pl.col("previous")),
            *_leaks(events, interactions),
            *_events_outside_period(events, period),
            _differences(events, interactions_in_histories(interactions, period), items),
            _miscounted_ties(histories, interactions),
        ]
    return [f"histories: {problem}." for problem in problems if problem]


def _explode_events(histories: pl.DataFrame) -> pl.DataFrame:
    """Return one row per interaction, with its part (train, validation or test) and the time before it."""
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
    """Report leaks of held-out interactions into the training part: by time, and by item if no user repeats an item."""
    part, timestamp = pl.col("part"), pl.col("timestamp")
    times = events.group_by("user_id", maintain_order=True).agg(
        timestamp.filter(part == "train").max().alias("train"),
        timestamp.filter(part == "validation").first().alias("validation"),
        timestamp.filter(part == "test").first().alias("test"),
    )
    problems = [
        describe_rows(
            times, "training interaction later than the validation target", pl.col("train") > pl.col("validation")
        ),
        describe_rows(times, "validation target later than the test target", pl.col("validation") > pl.col("test")),
        describe_rows(times, "training interaction later than the test target", pl.col("train") > pl.col("test")),
    ]
    if interactions.select(pl.struct("user_id", "item_id").is_duplicated().any()).item():
        return problems  # repeats are intended here, so an item of the training part may also be a target
    in_training = events.filter(part == "train").select("user_id", "item_index").unique(maintain_order=True)
    for name in ("validation", "test"):
        targets = events.filter(part == name)
        leaked = targets.join(in_training, on=["user_id", "item_index"], how="semi", maintain_order="left")
        problems.append(describe_rows(leaked, f"{name} target that is in the user's training part", pl.lit(True)))
    return problems


def _events_outside_period(events: pl.DataFrame, period: HeldOutPeriod | None) -> list[str | None]:
    """Report training interactions and validation targets not before the test period, and test targets outside it."""
    if period is None:
        return []
    is_late, is_test = pl.col("timestamp") >= period.begin, pl.col("part") == "test"
    is_outside = ~is_late if period.end is None else ~is_late | (pl.col("timestamp") >= period.end)
    return [
        describe_rows(
            events, "training interaction or validation target that is not before the period", is_late & ~is_test
        ),
        describe_rows(events, "test target outside the period", is_outside & is_test),
    ]


def _differences(events: pl.DataFrame, interactions: pl.DataFrame, items: pl.DataFrame) -> str | None:
    """Report users whose history is a different multiset of (item, time) than their interactions."""
    key = ["user_id", "item_index", "timestamp"]
    expected = interactions.join(items.select("item_id", "item_index"), on="item_id", how="left").select(key)
    found_counts, expected_counts = events.group_by(key).len("in_history"), expected.group_by(key).len("expected")
    differing = (
        found_counts.join(expected_counts, on=key, how="full", coalesce=True, nulls_equal=True)
        .filter(pl.col("in_history").ne_missing(pl.col("expected")))
        .sort(key)
    )
    return describe_rows(differing, "history that is not exactly the user's interactions", pl.lit(True))


def _miscounted_ties(histories: pl.DataFrame, interactions: pl.DataFrame) -> str | None:
    """Report users whose `num_at_target_time` differs from their interactions at the time of the test target."""
    counts = interactions.group_by("user_id", "timestamp").len("counted")
    targets = histories.filter("tested").select(
        "user_id", "num_at_target_time", timestamp=pl.col("timestamps").list.last()
    )
    compared = targets.join(counts, on=["user_id", "timestamp"], how="left", maintain_order="left")
    differs = pl.col("num_at_target_time").ne_missing(pl.col("counted").cast(pl.Int64))
    return describe_rows(compared, "num_at_target_time that is not the number of such interactions", differs)
