"""A table in shards: what is finished stays, what depends on something else does not."""

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


class Maker:
    """Makes rows and keeps which it was asked for; stops before a row if told."""

    def __init__(self, *, stops_at: int | None = None) -> None:
        self.stops_at = stops_at
        self.asked: list[tuple[int, int]] = []

    def __call__(self, first: int, count: int) -> pl.DataFrame:
        self.asked.append((first, count))
        if first == self.stops_at:
            raise KeyboardInterrupt
        users = [f"u{row}" for row in range(first, first + count)]
        columns = {
            "user_id": users,
            "item_ids": [["a"]] * count,
            "scores": [[0.5]] * count,
            "fallback": ["none"] * count,
        }
        return pl.DataFrame(columns, schema=RECOMMENDATIONS.columns)


def _write(folder: Path, make: Maker, *, rows: int = 10, model: str = "one") -> list[Path]:
    return _shards(folder, make, num_rows=rows, rows_per_shard=4, depends_on={"model": model})


def _shards(folder: Path, make: Callable[[int, int], pl.DataFrame], **named: Any) -> list[Path]:
    return write_shards(
        folder, RECOMMENDATIONS, lambda _: make, runtime=RuntimeConfig(), device=torch.device("cpu"), **named
    )


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 30), size=st.integers(1, 12))
def test_the_shards_are_the_table(rows: int, size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In order, each of the size asked for but the last, no row twice and none missing."""
    folder = tmp_path_factory.mktemp("shards")
    shards = _shards(folder, Maker(), num_rows=rows, rows_per_shard=size, depends_on={})
    tables = [pl.read_parquet(shard) for shard in shards]
    assert [user for table in tables for user in table["user_id"]] == [f"u{row}" for row in range(rows)]
    assert all(table.height == size for table in tables[:-1])
    assert [shard.name for shard in shards] == [f"part-{number:05d}.parquet" for number in range(len(shards))]


def test_what_is_finished_is_not_made_again(tmp_path: Path) -> None:
    """The second attempt begins with the shard that the first did not finish, and gives the same bytes."""
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "a", Maker(stops_at=8))
    again = Maker()
    shards = _write(tmp_path / "a", again)
    assert again.asked == [(8, 2)]
    whole = _write(tmp_path / "b", Maker())
    assert [shard.read_bytes() for shard in shards] == [shard.read_bytes() for shard in whole]


def test_shards_of_another_model_are_not_mixed_in(tmp_path: Path) -> None:
    """What was made by another model, or for more users, goes."""
    for first, second in (({}, {"model": "two"}), ({"model": "two"}, {"model": "two", "rows": 12})):
        _write(tmp_path, Maker(), **first)
        again = Maker()
        _write(tmp_path, again, **second)
        assert [row for row, _ in again.asked] == [0, 4, 8]
        assert len(list(tmp_path.iterdir())) == 1


def _flipped(whole: bytes) -> bytes:
    return whole[:30] + bytes([whole[30] ^ 1]) + whole[31:]


@pytest.mark.parametrize("damage", [lambda _: b"", lambda _: b"PAR1 cut", _flipped, None])
def test_a_damaged_shard_is_made_again(damage: Callable[[bytes], bytes] | None, tmp_path: Path) -> None:
    """A file that is cut off, holds another number of rows or one bit that differs does not count as finished."""
    shards = _write(tmp_path, Maker())
    if damage is None:
        pl.read_parquet(shards[1]).head(3).write_parquet(shards[1])
    else:
        shards[1].write_bytes(damage(shards[1].read_bytes()))
    again = Maker()
    _write(tmp_path, again)
    assert again.asked == [(4, 4)]
    assert pl.read_parquet(shards[1]).height == 4


def test_what_breaks_the_schema_or_cannot_be_written_is_told(tmp_path: Path) -> None:
    """No file is there afterwards that a next attempt would take for finished."""
    with pytest.raises(SchemaError, match=r"part-00000.parquet"):
        _shards(tmp_path / "a", lambda *_: pl.DataFrame(), num_rows=1, rows_per_shard=1, depends_on={})
    assert not list((tmp_path / "a").rglob("*.parquet"))
    (tmp_path / "b").write_text("a file")
    with pytest.raises(StorageError, match="recommendations cannot be stored"):
        _write(tmp_path / "b", Maker())
