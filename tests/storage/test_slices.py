"""Tables that are written slice by slice and read as scans."""

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


def test_slices_become_one_table(store: AssetStore) -> None:
    """Slices in order, including empty ones, are read back or scanned; the same slices give the same digest."""
    slices = [ROWS[:1], ROWS[:0], ROWS[1:3], ROWS[3:]]
    first = store.write_slices("interactions", iter(slices), details={"slices": 4})
    assert store.read_table("interactions").equals(ROWS)
    assert store.scan_table("interactions").collect().equals(ROWS)
    assert store.manifest("interactions").details == {"slices": 4}
    assert store.write_slices("interactions", slices).digest == first.digest


def test_no_slices_give_an_empty_table(store: AssetStore) -> None:
    """For example, a quarantine without rows."""
    store.write_slices("quarantine", [])
    assert store.read_table("quarantine").equals(TABLES["quarantine"].empty())


@pytest.mark.parametrize("slices", [[ROWS[2:], ROWS[:2]], [ROWS[[1, 0]]], [ROWS.drop("rating")]])
def test_slices_that_break_the_schema_are_rejected(store: AssetStore, slices: list[pl.DataFrame]) -> None:
    """Slices that break the schema, or come in the wrong order, are rejected and no version is stored."""
    with pytest.raises(SchemaError, match=r"interactions \(to be written for demo\)"):
        store.write_slices("interactions", slices)
    assert not store.has("interactions")


def test_an_error_while_slices_are_computed_is_passed_on(store: AssetStore) -> None:
    """The stage's own error is raised, not one of the writer, and the version before stays current."""
    store.write_slices("interactions", [ROWS])

    def failing() -> Iterator[pl.DataFrame]:
        yield ROWS[:1]
        raise DataError("the second slice cannot be computed")

    with pytest.raises(DataError, match="second slice"):
        store.write_slices("interactions", failing())
    assert store.read_table("interactions").equals(ROWS)


def test_a_scan_verifies_its_file(store: AssetStore) -> None:
    """A changed file is rejected before a row is read, as by `read_table`."""
    store.write_slices("interactions", [ROWS])
    path = store.folder("interactions") / "interactions.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(StorageError, match=r"was changed after.*(run `macrec run demo`|downloaded again)"):
        store.scan_table("interactions")
    with pytest.raises(StorageError, match="does not exist yet"):
        store.scan_table("quarantine")
