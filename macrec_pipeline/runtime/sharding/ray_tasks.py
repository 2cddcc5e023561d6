"""Runs shards as Ray tasks, on this machine or on a cluster whose machines see the same files under the same paths.

`RAY_ADDRESS` names a running cluster. Without it, a local Ray is started for the duration of the work and listens on
the loopback interface only. Ray computes a shard again if its worker or machine dies.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from macrec_pipeline.errors import ConfigError, WorkerError
from macrec_pipeline.runtime.devices import prepare_device
from macrec_pipeline.runtime.sharding.shards import (
    MAX_ATTEMPTS,
    Shard,
    ShardFailure,
    ShardTask,
    TaskLoader,
    run_in_worker,
)
from macrec_pipeline.runtime.text_sanitizing import one_line_error

if TYPE_CHECKING:
    import torch

    from macrec_pipeline.config import RuntimeConfig

_ADDRESS_VARIABLE = "RAY_ADDRESS"
# Environment variables that Ray reads when it is imported. The first turns off usage reports to Ray's makers. The
# others keep a local Ray off the network: it would otherwise listen on all interfaces and run code for anyone who
# connects. It binds to the loopback interface where it believes that it cannot form a cluster
# (docs/decisions/023-drivers.md).
_NO_USAGE_REPORTS = {"RAY_USAGE_STATS_ENABLED": "0"}
_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
# The smallest object store that Ray accepts; only shards and failures pass through it.
_OBJECT_STORE_BYTES = 80 * 2**20


def map_with_ray(
    load: TaskLoader,
    shards: Sequence[Shard],
    runtime: RuntimeConfig,
    *,
    device: torch.device,
    on_finished: Callable[[Shard], None],
) -> None:
    """Compute every shard as a Ray task, at most `runtime.workers` at a time; see `drivers.map_shards`."""
    ray = _import_ray()
    waiting, running = deque(shards), dict[Any, Shard]()
    with _ray_connection(ray, runtime):
        compute_remotely = ray.remote(_compute_shard).options(
            num_cpus=runtime.num_threads, num_gpus=int(device.type == "cuda"), max_retries=MAX_ATTEMPTS - 1
        )
        try:
            while waiting or running:
                while waiting and len(running) < runtime.workers:
                    shard = waiting.popleft()
                    running[compute_remotely.remote(load, shard, runtime)] = shard
                (reference,), _ = ray.wait(list(running), num_returns=1)
                shard = running.pop(reference)
                failure = _fetch_result(ray, reference, shard)
                if failure is not None:
                    failure.raise_for(shard)
                on_finished(shard)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _fetch_result(ray: Any, reference: Any, shard: Shard) -> ShardFailure | None:
    try:
        failure: ShardFailure | None = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise WorkerError(
            f"Ray could not compute {shard} in up to {MAX_ATTEMPTS} attempts: {one_line_error(error)} If the machine "
            "ran out of memory, lower runtime.workers or the batch size. The next run reuses the shards that are "
            "finished."
        ) from error
    return failure


def _compute_shard(load: TaskLoader, shard: Shard, runtime: RuntimeConfig) -> ShardFailure | None:
    """The body of a Ray task."""
    return run_in_worker(lambda: _load_task(load, runtime), shard)


@lru_cache(maxsize=1)  # Ray reuses a worker, so its next task finds what this one loaded
def _load_task(load: TaskLoader, runtime: RuntimeConfig) -> ShardTask:
    return load(prepare_device(runtime))


def _import_ray() -> Any:
    defaults = _NO_USAGE_REPORTS if _ADDRESS_VARIABLE in os.environ else _NO_USAGE_REPORTS | _LOOPBACK_ONLY
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "runtime.driver is 'ray', but Ray is not installed. Install the extra: pip install -c constraints.txt "
            "'macrec_pipeline[ray]'; or set runtime.driver=processes."
        ) from None
    return ray


@contextmanager
def _ray_connection(ray: Any, runtime: RuntimeConfig) -> Iterator[None]:
    """Connect to the cluster that `RAY_ADDRESS` names, or start a local Ray and end it with the block.

    If this process is already connected to a Ray, that one is used and stays.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": os.environ.get(_ADDRESS_VARIABLE, "local"), "logging_level": logging.WARNING}
    if _ADDRESS_VARIABLE not in os.environ:
        cpus = runtime.workers * runtime.num_threads
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    with _sigterm_handler_restored():
        ray.init(**options)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _sigterm_handler_restored() -> Iterator[None]:
    """Put back this process's SIGTERM handler, which Ray replaces. Only the main thread may set one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
