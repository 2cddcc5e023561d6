"""Shards made by Ray tasks: on this machine, or on a cluster whose machines see the same files under the same paths.

`RAY_ADDRESS` names a running cluster; without it Ray is started here for as long as the work lasts, on the loopback
interface. Ray makes a shard again whose worker, or machine, has died.
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
from macrec_pipeline.runtime.sharding.shards import MAX_ATTEMPTS, Failure, Load, Make, Shard, attempted

if TYPE_CHECKING:
    import torch

    from macrec_pipeline.config import RuntimeConfig

_ADDRESS = "RAY_ADDRESS"
# Read when Ray is imported. It would report to its makers; and a Ray of this machine alone would listen on all networks
# if it did not take the machine for one where it makes no clusters, and let whoever reaches it run what they like.
_SILENT = {"RAY_USAGE_STATS_ENABLED": "0"}
_LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
# Nothing but words travels through Ray's store, and this is the least that it takes.
_OBJECT_STORE_BYTES = 80 * 2**20


def map_in_ray(
    load: Load,
    shards: Sequence[Shard],
    runtime: RuntimeConfig,
    *,
    device: torch.device,
    done: Callable[[Shard], None],
) -> None:
    """See `map_shards`; no more than `runtime.workers` tasks are at work at a time."""
    ray = _imported()
    waiting, running = deque(shards), dict[Any, Shard]()
    with _connected(ray, runtime):
        task = ray.remote(_made).options(
            num_cpus=runtime.num_threads, num_gpus=int(device.type == "cuda"), max_retries=MAX_ATTEMPTS - 1
        )
        try:
            while waiting or running:
                while waiting and len(running) < runtime.workers:
                    shard = waiting.popleft()
                    running[task.remote(load, shard, runtime)] = shard
                (answer,), _ = ray.wait(list(running), num_returns=1)
                shard = running.pop(answer)
                failure = _answer(ray, answer, shard)
                if failure is not None:
                    failure.raise_for(shard)
                done(shard)
        finally:
            for answer in running:
                ray.cancel(answer, force=True)


def _answer(ray: Any, answer: Any, shard: Shard) -> Failure | None:
    try:
        failure: Failure | None = ray.get(answer)
    except ray.exceptions.RayError as error:
        raise WorkerError(
            f"Ray could not make {shard}, tried up to {MAX_ATTEMPTS} times: {' '.join(str(error).split())} "
            "If memory was short, lower runtime.workers or the batch size. The shards that are finished are kept."
        ) from error
    return failure


def _made(load: Load, shard: Shard, runtime: RuntimeConfig) -> Failure | None:
    return attempted(lambda: _loaded(load, runtime), shard)


@lru_cache(maxsize=1)  # the next task in this worker finds what this one has loaded
def _loaded(load: Load, runtime: RuntimeConfig) -> Make:
    return load(prepare_device(runtime))


def _imported() -> Any:
    for name, value in (_SILENT if _ADDRESS in os.environ else _SILENT | _LOCAL).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "runtime.driver is 'ray', but Ray is not installed. Install the extra: pip install -c constraints.txt "
            "'macrec_pipeline[ray]'; or use runtime.driver=processes."
        ) from None
    return ray


@contextmanager
def _connected(ray: Any, runtime: RuntimeConfig) -> Iterator[None]:
    """Join the cluster of `RAY_ADDRESS`, or start one that ends with the block; one that is there already stays."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": os.environ.get(_ADDRESS, "local"), "logging_level": logging.WARNING}
    if _ADDRESS not in os.environ:
        cpus = runtime.workers * runtime.num_threads
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    with _own_sigterm():
        ray.init(**options)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Put back what this process does at SIGTERM, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
