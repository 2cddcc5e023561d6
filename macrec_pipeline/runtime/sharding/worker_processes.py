"""Runs shards in worker processes on this machine (multiprocessing, spawned).

Each worker loads the task once, then computes one shard at a time, always the next one that is waiting. Only the task
loader, shards and failures travel between processes. A worker that dies is replaced, and its shard is computed again.
Workers end with their parent, whether it finishes, is interrupted or is killed.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from macrec_pipeline.errors import WorkerError
from macrec_pipeline.runtime.devices import prepare_device
from macrec_pipeline.runtime.sharding.shards import (
    MAX_ATTEMPTS,
    Shard,
    ShardFailure,
    ShardTask,
    TaskLoader,
    run_in_worker,
)

if TYPE_CHECKING:
    from macrec_pipeline.config import RuntimeConfig

_log = logging.getLogger(__name__)
# A forked process would share the state of a GPU, and inherit locks held by threads that it does not have.
_SPAWN = multiprocessing.get_context("spawn")
_SHUTDOWN_SECONDS = 10.0


def map_in_processes(
    load: TaskLoader, shards: Sequence[Shard], runtime: RuntimeConfig, *, on_finished: Callable[[Shard], None]
) -> None:
    """Compute every shard in worker processes; see `drivers.map_shards`."""
    waiting, deaths, workers = deque(shards), Counter[int](), list[_Worker]()
    try:
        while waiting and len(workers) < runtime.workers:
            workers.append(_Worker(load, runtime))
            workers[-1].start(waiting.popleft())
        while busy := [worker for worker in workers if worker.shard is not None]:
            ready = wait([worker.connection for worker in busy])
            for worker in (candidate for candidate in busy if candidate.connection in ready):
                shard = worker.receive_finished()
                if shard is None:
                    workers[workers.index(worker)] = _replace_dead_worker(worker, deaths, load, runtime)
                    continue
                on_finished(shard)
                if waiting:
                    worker.start(waiting.popleft())
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A worker process as its parent sees it.

    Attributes:
        shard: the shard that the worker is computing; None while it is idle.
        connection: the parent's end of the pipe to the worker.
    """

    def __init__(self, load: TaskLoader, runtime: RuntimeConfig) -> None:
        self.connection, worker_end = _SPAWN.Pipe()
        self.shard: Shard | None = None
        self.process = _SPAWN.Process(target=_run_worker, args=(worker_end, load, runtime), daemon=True)
        self.process.start()
        worker_end.close()

    def start(self, shard: Shard) -> None:
        """Send the worker a shard. If the worker has died, `receive_finished` reports it."""
        self.shard = shard
        try:
            self.connection.send(shard)
        except OSError:
            _log.debug("The worker for %s has already ended.", shard)

    def receive_finished(self) -> Shard | None:
        """Return the shard that the worker has finished, or None if the worker has died.

        Raises:
            Exception: the error that the worker reported.
        """
        shard = self.shard
        assert shard is not None, "only a busy worker has something to report"
        try:
            failure: ShardFailure | None = self.connection.recv()
        except (EOFError, OSError):
            return None
        self.shard = None
        if failure is not None:
            failure.raise_for(shard)
        return shard

    def stop(self) -> None:
        """End the worker, if necessary in the middle of a shard: a task writes a shard completely or not at all."""
        self.connection.close()
        if self.shard is None:  # an idle worker notices the closed connection and exits cleanly
            self.process.join(_SHUTDOWN_SECONDS)
        self.process.kill()
        self.process.join()


def _replace_dead_worker(worker: _Worker, deaths: Counter[int], load: TaskLoader, runtime: RuntimeConfig) -> _Worker:
    """Start a new worker on the shard of one that died."""
    shard = worker.shard
    assert shard is not None, "the parent waits only for busy workers"
    worker.stop()
    deaths[shard.number] += 1
    description = f"A worker process died over {shard} (exit code {worker.process.exitcode})"
    if deaths[shard.number] >= MAX_ATTEMPTS:
        raise WorkerError(
            f"{description}. It was attempt {MAX_ATTEMPTS} of {MAX_ATTEMPTS}. Exit code -9 usually means that the "
            "kernel ran out of memory: lower runtime.workers or the batch size. The next run reuses the shards that "
            "are finished."
        )
    _log.warning("%s. Another worker computes the shard again.", description)
    replacement = _Worker(load, runtime)
    replacement.start(shard)
    return replacement


def _run_worker(connection: Connection, load: TaskLoader, runtime: RuntimeConfig) -> None:
    """Compute shards until the parent closes the connection; runs in the worker process."""
    # Ctrl-C reaches every process in the terminal. The parent handles it and then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    @cache
    def task() -> ShardTask:
        return load(prepare_device(runtime))

    with suppress(EOFError):  # the parent has closed the connection
        while True:
            connection.send(run_in_worker(task, connection.recv()))


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker process has a parent"
    parent.join()
    os._exit(1)
