"""How much of the data is new: later interactions, a log that grew, and new items."""

import polars as pl
import pytest

from macrec_pipeline.defs.changed_data import changed_share, describe_data


def histories(*timestamps: list[int]) -> pl.DataFrame:
    return pl.DataFrame(
        {"item_indices": [list(range(len(times))) for times in timestamps], "timestamps": list(timestamps)}
    )


BEFORE = describe_data(histories([1, 2, 3], [2, 5, 6, 7, 8]), num_items=20)


@pytest.mark.parametrize(
    ("now", "num_items", "share"),
    [
        (histories([1, 2, 3], [2, 5, 6, 7, 8]), 20, 0.0),
        (histories([1, 2, 3, 9], [2, 5, 6, 7, 8, 9]), 20, 0.2),  # two of ten are later than 8
        (histories([1, 2, 3, 4], [2, 3, 5, 6, 7, 8]), 20, 0.2),  # two of ten came in late
        (histories([3, 9], [7, 8, 9, 10]), 20, 0.5),  # the log forgets its oldest rows: three of six are later
        (histories([1, 2, 3], [2, 5, 6, 7, 8]), 25, 0.2),  # five of 25 items are new, without interactions
        (histories([1, 2], [2, 5]), 10, 0.0),  # nothing is new where rows and items only disappeared
    ],
)
def test_the_share_of_what_is_new(now: pl.DataFrame, num_items: int, share: float) -> None:
    """The larger of the shares of new interactions and of new items counts."""
    assert changed_share(now, num_items=num_items, before=BEFORE) == pytest.approx(share)


def test_everything_is_new_to_a_model_that_does_not_say_what_it_was_trained_on() -> None:
    """A model of an earlier version of the program is trained for all epochs once."""
    assert changed_share(histories([1, 2, 3]), num_items=2, before=None) == 1.0
