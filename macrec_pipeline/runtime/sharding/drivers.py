"""Runs a task on every shard of a table with the driver that the settings choose.

`runtime.driver` is `in_process` (this process), `processes` (worker processes on this machine) or `ray` (this machine
or a cluster). The driver affects only the speed: every driver writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from macrec_pipeline.errors import MacrecError
from macrec_pipeline.runtime.sharding.shards import Shard, TaskLoader

if TYPE_CHECKING:
    import torch

    from macrec_pipeline.config import RuntimeConfig


def map_shards(
    load: TaskLoader,
    shards: Sequence[Shard],
    runtime: RuntimeConfig,
    *,
    device: torch.device,
    on_finished: Callable[[Shard], None] = lambda _: None,
) -> None:
    """Compute every shard.

    Args:
        load: loads the task; see `TaskLoader`. With the driver `in_process` any function works.
        shards: the shards to compute.
        runtime: the driver, the number of workers, and the threads and device of each worker.
        device: device of this process.
        on_finished: called in this process after each shard, in the order in which shards finish.

    Raises:
        MacrecError: computing a shard failed. The error has its original type, and its message starts with the shard.
        WorkerError: `MAX_ATTEMPTS` workers died on the same shard.
    """
    if not shards:
        return
    # These two modules import torch, which takes seconds to load, so they are imported only when there is work.
    if runtime.driver == "processes":
        from macrec_pipeline.runtime.sharding.worker_processes import map_in_processes

        map_in_processes(load, shards, runtime, on_finished=on_finished)
    elif runtime.driver == "ray":
        from macrec_pipeline.runtime.sharding.ray_tasks import map_with_ray

        map_with_ray(load, shards, runtime, device=device, on_finished=on_finished)
    else:
        _map_in_this_process(load, shards, device=device, on_finished=on_finished)


def _map_in_this_process(
    load: TaskLoader, shards: Sequence[Shard], *, device: torch.device, on_finished: Callable[[Shard], None]
) -> None:
    task = load(device)
    for shard in shards:
        try:
            task(shard)
        except MacrecError as error:
            raise type(error)(f"{shard}: {error}") from error
        on_finished(shard)
