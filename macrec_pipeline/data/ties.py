"""How many interactions are tied: they share their user and their time with another interaction.

The data do not say in which order tied interactions happened, so `cleaning.ties` decides.
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
