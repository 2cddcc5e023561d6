"""A table in shards: finished shards are reused, unless they depend on something else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.config import RuntimeConfig
from macrec_pipeline.errors import SchemaError, StorageError
from macrec_pipeline.schemas import RECOMMENDATIONS
from macrec_pipeline.storage import write_shards


class RecordingTask:
    """Computes rows and records which rows were requested; can stop at a given row."""

    def __init__(self, *, stops_at: int | None = None) -> None:
        self.stops_at = stops_at
        self.requested: list[tuple[int, int]] = []

    def __call__(self, first: int, count: int) -> pl.DataFrame:
        self.requested.append((first, count))
        if first == self.stops_at:
            raise KeyboardInterrupt
        users = [f"u{row}" for row in range(first, first + count)]
        columns = {
            "user_id": users,
            "item_ids": [["a"]] * count,
            "scores": [[0.5]] * count,
            "fallback": ["none"] * count,
            "model": ["models:/macrec-shop/1"] * count,
            "as_of": [1_700_000_000_000] * count,
        }
        return pl.DataFrame(columns, schema=RECOMMENDATIONS.columns)


def _write(folder: Path, task: RecordingTask, *, rows: int = 10, model: str = "one") -> list[Path]:
    return _write_shards(folder, task, num_rows=rows, rows_per_shard=4, depends_on={"model": model})


def _write_shards(folder: Path, task: Callable[[int, int], pl.DataFrame], **arguments: Any) -> list[Path]:
    return write_shards(
        folder, RECOMMENDATIONS, lambda _: task, runtime=RuntimeConfig(), device=torch.device("cpu"), **arguments
    )


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 30), size=st.integers(1, 12))
def test_the_shards_make_up_the_table(rows: int, size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Shards are in order and of the requested size, except the last; no row is missing or repeated."""
    folder = tmp_path_factory.mktemp("shards")
    shards = _write_shards(folder, RecordingTask(), num_rows=rows, rows_per_shard=size, depends_on={})
    tables = [pl.read_parquet(shard) for shard in shards]
    assert [user for table in tables for user in table["user_id"]] == [f"u{row}" for row in range(rows)]
    assert all(table.height == size for table in tables[:-1])
    assert [shard.name for shard in shards] == [f"part-{number:05d}.parquet" for number in range(len(shards))]


def test_finished_shards_are_not_computed_again(tmp_path: Path) -> None:
    """The second attempt starts with the shard that the first did not finish, and gives the same bytes."""
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "a", RecordingTask(stops_at=8))
    second = RecordingTask()
    shards = _write(tmp_path / "a", second)
    assert second.requested == [(8, 2)]
    uninterrupted = _write(tmp_path / "b", RecordingTask())
    assert [shard.read_bytes() for shard in shards] == [shard.read_bytes() for shard in uninterrupted]


def test_shards_of_another_model_are_not_mixed_in(tmp_path: Path) -> None:
    """Shards of another model, or of a table with more users, are deleted."""
    for first_arguments, second_arguments in (({}, {"model": "two"}), ({"model": "two"}, {"model": "two", "rows": 12})):
        _write(tmp_path, RecordingTask(), **first_arguments)
        second = RecordingTask()
        _write(tmp_path, second, **second_arguments)
        assert [row for row, _ in second.requested] == [0, 4, 8]
        assert len(list(tmp_path.iterdir())) == 1


def _flip_bit(content: bytes) -> bytes:
    return content[:30] + bytes([content[30] ^ 1]) + content[31:]


@pytest.mark.parametrize("damage", [lambda _: b"", lambda _: b"PAR1 cut", _flip_bit, None])
def test_a_damaged_shard_is_computed_again(damage: Callable[[bytes], bytes] | None, tmp_path: Path) -> None:
    """A file that is truncated, has a flipped bit, or has the wrong number of rows does not count as finished."""
    shards = _write(tmp_path, RecordingTask())
    if damage is None:
        pl.read_parquet(shards[1]).head(3).write_parquet(shards[1])
    else:
        shards[1].write_bytes(damage(shards[1].read_bytes()))
    second = RecordingTask()
    _write(tmp_path, second)
    assert second.requested == [(4, 4)]
    assert pl.read_parquet(shards[1]).height == 4


def test_rows_that_break_the_schema_and_failed_writes_are_errors(tmp_path: Path) -> None:
    """Failed shards leave no file that the next attempt would take for a finished shard."""
    with pytest.raises(SchemaError, match=r"part-00000.parquet"):
        _write_shards(tmp_path / "a", lambda *_: pl.DataFrame(), num_rows=1, rows_per_shard=1, depends_on={})
    assert not list((tmp_path / "a").rglob("*.parquet"))
    (tmp_path / "b").write_text("a file")
    with pytest.raises(StorageError, match="recommendations cannot be stored"):
        _write(tmp_path / "b", RecordingTask())
