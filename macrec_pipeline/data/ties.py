"""How many interactions are tied: they share their user and their time with another interaction.

The data do not say in which order tied interactions happened, so `cleaning.ties` decides
(docs/decisions/026-equal-timestamps.md).
"""

from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl


class TiedRows:
    """Counts the tied rows of `interactions` while its slices are written.

    Attributes:
        num_rows: the number of tied rows among the slices so far.
    """

    def __init__(self) -> None:
        self.num_rows = 0

    def count(self, slices: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Yield each slice of `INTERACTIONS` unchanged. A slice must hold whole users, in order."""
        for table_slice in slices:
            self.num_rows += count_tied_interactions(table_slice)
            yield table_slice


def count_tied_interactions(interactions: pl.DataFrame) -> int:
    """Count the rows of `INTERACTIONS` that share user and time with a neighbour; rows must be in the table's order."""
    equals_next = interactions.select(
        (pl.col("timestamp") == pl.col("timestamp").shift(-1)) & (pl.col("user_id") == pl.col("user_id").shift(-1))
    ).to_series()
    return int((equals_next | equals_next.shift(1, fill_value=False)).sum())


def count_tied_in_histories(histories: pl.DataFrame) -> int:
    """Count the interactions of `HISTORIES` that share their time with another one of their history."""
    starts = np.cumsum(histories["timestamps"].list.len().to_numpy())
    times = histories["timestamps"].explode().to_numpy()
    equals_next = times[1:] == times[:-1]
    equals_next[starts[:-1] - 1] = False  # the last interaction of a user is not tied with the next user's first
    return int(np.count_nonzero(np.append(equals_next, False) | np.append(False, equals_next)))


def count_undetermined_targets(histories: pl.DataFrame) -> int:
    """Count the test users of `HISTORIES` whose target the data do not determine: others are at the same time."""
    return int((histories["num_at_target_time"] > 1).sum())


def tie_warning(rule: str, *, num_tied: int, num_rows: int) -> str | None:
    """Return what models learn from the order of tied interactions, as a warning; None if it carries no information.

    Args:
        rule: the setting `cleaning.ties`.
        num_tied: the number of tied interactions.
        num_rows: the number of all interactions.
    """
    if rule == "hash" or not num_tied:
        return None
    share = (
        f"{num_tied:,} of {num_rows:,} interactions ({num_tied / num_rows:.1%}) share user and time with another one"
    )
    if rule == "item_id":
        return (
            f"{share}, and `cleaning.ties: item_id` sorts them by item ID. Models learn this order and are tested on "
            "it, so the metrics are wrong: the test target is always the largest of the IDs at its time. Remove the "
            "setting, or set it to hash, whose order carries no information."
        )
    return (
        f"{share}, and `cleaning.ties: position` leaves them in the order of the lines. This is right if the lines are "
        "in chronological order. If they are sorted in another way, such as by item, models learn that order and are "
        "tested on it, so the metrics are wrong. In that case, remove the setting, or set it to hash, whose order "
        "carries no information."
    )


def describe_targets(num_undetermined: int, *, num_tested: int, rule: str) -> str:
    """Return a sentence on the test users whose target the data do not determine.

    Args:
        num_undetermined: the number of these users.
        num_tested: the number of all test users.
        rule: the setting `cleaning.ties`, which chose their targets.
    """
    share = num_undetermined / num_tested
    return (
        f"{num_undetermined:,} of {num_tested:,} test users ({share:.1%}) have several items at the time of the test "
        f"target; `cleaning.ties: {rule}` chose which of them is the target."
    )
