"""Tables that are written and read in parts."""

from collections.abc import Iterator

import polars as pl
import pytest

from macrec_pipeline.errors import DataError, SchemaError, StorageError
from macrec_pipeline.schemas import EARLIEST_MS, TABLES
from macrec_pipeline.storage import AssetStore

ROWS = pl.DataFrame(
    [("u1", "a", None, 1), ("u1", "b", 3.0, 2), ("u2", "a", 5.0, 1), ("u3", "c", None, 9)],
    schema=TABLES["interactions"].columns,
    orient="row",
).with_columns(pl.col("timestamp") + EARLIEST_MS)


def test_parts_become_one_table(store: AssetStore) -> None:
    """The parts in their order, also empty ones, read as a whole or scanned; the same parts give the same digest."""
    parts = [ROWS[:1], ROWS[:0], ROWS[1:3], ROWS[3:]]
    first = store.write_slices("interactions", iter(parts), details={"parts": 4})
    assert store.read_table("interactions").equals(ROWS)
    assert store.scan_table("interactions").collect().equals(ROWS)
    assert store.manifest("interactions").details == {"parts": 4}
    assert store.write_slices("interactions", parts).digest == first.digest


def test_no_part_is_an_empty_table(store: AssetStore) -> None:
    """A quarantine into which nothing went."""
    store.write_slices("quarantine", [])
    assert store.read_table("quarantine").equals(TABLES["quarantine"].empty())


@pytest.mark.parametrize("parts", [[ROWS[2:], ROWS[:2]], [ROWS[[1, 0]]], [ROWS.drop("rating")]])
def test_parts_that_break_the_schema_are_refused(store: AssetStore, parts: list[pl.DataFrame]) -> None:
    """Also where only the border of two parts does; nothing is there afterwards."""
    with pytest.raises(SchemaError, match=r"interactions \(to be written for demo\)"):
        store.write_slices("interactions", parts)
    assert not store.has("interactions")


def test_what_goes_wrong_while_parts_are_made_comes_through(store: AssetStore) -> None:
    """An error of the stage is not dressed up as one of the writer, and the version before it still serves."""
    store.write_slices("interactions", [ROWS])

    def failing() -> Iterator[pl.DataFrame]:
        yield ROWS[:1]
        raise DataError("the second part cannot be made")

    with pytest.raises(DataError, match="second part"):
        store.write_slices("interactions", failing())
    assert store.read_table("interactions").equals(ROWS)


def test_a_scan_is_of_a_verified_file(store: AssetStore) -> None:
    """A file that was changed is refused before a row is read, as `read_table` does."""
    store.write_slices("interactions", [ROWS])
    path = store.folder("interactions") / "interactions.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(StorageError, match=r"was changed after.*(run `macrec run demo`|copied again)"):
        store.scan_table("interactions")
    with pytest.raises(StorageError, match="is not there yet"):
        store.scan_table("quarantine")
