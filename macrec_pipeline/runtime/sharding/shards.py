"""A long piece of work in shards, and who makes them: this process, worker processes of this machine, or Ray.

In: shards, and what loads the function that makes one (a model, say) from a few words and paths. Out: each shard made
once, its rows in a file that the function writes. What a shard holds depends on its rows and the settings alone, never
on who made it, beside which others or in which order (docs/decisions/023-drivers.md).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from macrec_pipeline.errors import MacrecError

if TYPE_CHECKING:  # torch is loaded when there is work, and numeric code must run where pydantic is not installed
    import torch

    from macrec_pipeline.config import RuntimeConfig

MAX_ATTEMPTS = 3
"""How many workers may die over one shard before it is given up."""


@dataclass(frozen=True)
class Shard:
    """Some rows of a long table.

    Attributes:
        number: counted from 0.
        first, count: the first row, and how many.
    """

    number: int
    first: int
    count: int

    def __str__(self) -> str:
        return f"shard {self.number} ({self.count} rows from row {self.first})"


Make = Callable[[Shard], None]
"""Makes the rows of a shard and writes them down, whole or not at all."""

Load: TypeAlias = "Callable[[torch.device], Make]"
"""Loads what it takes, on the device of a worker. What travels to workers is a frozen dataclass of a module that they
can import; equal ones are loaded once."""


def shards_of(num_rows: int, rows_per_shard: int) -> list[Shard]:
    """All rows in order, so many a shard, the last one shorter; one shard without rows if there are none."""
    starts = range(0, max(num_rows, 1), rows_per_shard)
    return [Shard(number, first, min(rows_per_shard, num_rows - first)) for number, first in enumerate(starts)]


def map_shards(
    load: Load,
    shards: Sequence[Shard],
    runtime: RuntimeConfig,
    *,
    device: torch.device,
    done: Callable[[Shard], None] = lambda _: None,
) -> None:
    """Have every shard made.

    Args:
        load: see `Load`; for `runtime.driver` in_process any function will do.
        shards: those that are missing.
        runtime: the driver, the number of workers, and the threads and the device of each.
        device: of this process.
        done: called here after each shard, in whatever order they are finished.

    Raises:
        MacrecError: what making a shard raised, as the error that it was, with the shard in front of its message.
        WorkerError: `MAX_ATTEMPTS` workers died over one shard.
    """
    if not shards:
        return
    if runtime.driver == "processes":
        from macrec_pipeline.runtime.sharding.worker_processes import map_in_processes

        map_in_processes(load, shards, runtime, done=done)
    elif runtime.driver == "ray":
        from macrec_pipeline.runtime.sharding.ray_tasks import map_in_ray

        map_in_ray(load, shards, runtime, device=device, done=done)
    else:
        make = load(device)
        for shard in shards:
            try:
                make(shard)
            except MacrecError as error:
                raise type(error)(f"{shard}: {error}") from error
            done(shard)


@dataclass(frozen=True)
class Failure:
    """What a worker says of a shard that it could not make; errors themselves may not survive the way.

    Attributes:
        kind: of an error of this package; None for a fault.
        message: its message; of a fault the traceback.
        errno: of the operating system's error behind it, by which a network or disk that hiccups is known.
    """

    kind: type[MacrecError] | None
    message: str
    errno: int | None

    def raise_for(self, shard: Shard) -> None:
        """Raise what it stands for."""
        error = (self.kind or RuntimeError)(f"{shard}: {self.message}")
        raise error from (None if self.errno is None else OSError(self.errno, self.message))


def attempted(make: Callable[[], Make], shard: Shard) -> Failure | None:
    """Make a shard in a worker, and say what went wrong if it did; what loads `make` counts as part of the first."""
    try:
        make()(shard)
    except MacrecError as error:
        return Failure(type(error), str(error), _errno(error))
    except Exception as error:
        return Failure(None, traceback.format_exc(), _errno(error))
    return None


def _errno(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        error = error.__cause__ or error.__context__
    return None
