"""A shard, what computes one, and how a worker reports that it could not.

A shard is a range of rows of a long table. What it contains depends only on its rows and the settings, never on which
worker computed it, on the other shards or on their order (docs/decisions/023-drivers.md).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from macrec_pipeline.errors import MacrecError

if TYPE_CHECKING:  # torch is loaded only when there is work, and numeric code must run where pydantic is not installed
    import torch

MAX_ATTEMPTS = 3
"""How many workers may die on one shard before the run gives up."""


@dataclass(frozen=True)
class Shard:
    """A range of rows of a long table.

    Attributes:
        number: index of the shard, from 0.
        first: index of its first row.
        count: number of rows.
    """

    number: int
    first: int
    count: int

    def __str__(self) -> str:
        return f"shard {self.number} ({self.count} rows from row {self.first})"


ShardTask = Callable[[Shard], None]
"""Computes the rows of a shard and writes them to disk, either completely or not at all."""

TaskLoader: TypeAlias = "Callable[[torch.device], ShardTask]"
"""Loads what a shard task needs, such as a model, on the device of a worker. The loader is what gets sent to workers: a
frozen dataclass from a module that they can import. A worker loads equal loaders only once."""


def split_into_shards(num_rows: int, rows_per_shard: int) -> list[Shard]:
    """Split a table into shards of consecutive rows.

    Returns:
        Shards of `rows_per_shard` rows, in order; the last may be shorter. A table without rows has one empty shard.
    """
    starts = range(0, max(num_rows, 1), rows_per_shard)
    return [Shard(number, first, min(rows_per_shard, num_rows - first)) for number, first in enumerate(starts)]


@dataclass(frozen=True)
class ShardFailure:
    """A worker's report of an error, in a form that can always be sent to another process; exceptions cannot.

    Attributes:
        kind: type of the error if this package raised it; None for an unexpected exception.
        message: the error's message, or the traceback of an unexpected exception.
        errno: number of the operating system's error that caused it, which shows whether a retry may help.
    """

    kind: type[MacrecError] | None
    message: str
    errno: int | None

    def raise_for(self, shard: Shard) -> None:
        """Raise the error that this report describes, with the shard in front of its message."""
        error = (self.kind or RuntimeError)(f"{shard}: {self.message}")
        raise error from (None if self.errno is None else OSError(self.errno, self.message))


def run_in_worker(load_task: Callable[[], ShardTask], shard: Shard) -> ShardFailure | None:
    """Compute a shard inside a worker and catch whatever goes wrong.

    Args:
        load_task: returns the task. It is called here so that an error while loading is reported as well.
        shard: the shard to compute.

    Returns:
        None on success, else a description of the error.
    """
    try:
        load_task()(shard)
    except MacrecError as error:
        return ShardFailure(type(error), str(error), _errno(error))
    except Exception as error:
        return ShardFailure(None, traceback.format_exc(), _errno(error))
    return None


def _errno(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        error = error.__cause__ or error.__context__
    return None
