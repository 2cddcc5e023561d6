"""Shards made by worker processes of this machine (multiprocessing, spawned).

Each worker loads once and makes one shard at a time, whichever is next. Only the words of `load`, shards and failures
pass between the processes. A worker that dies is replaced and its shard made again; one whose parent dies goes with it,
whether that ends, is interrupted or killed.
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
from macrec_pipeline.runtime.sharding.shards import MAX_ATTEMPTS, Failure, Load, Make, Shard, attempted

if TYPE_CHECKING:
    from macrec_pipeline.config import RuntimeConfig

_log = logging.getLogger(__name__)
# A forked process would share a GPU's state and locks with threads that it does not have.
_SPAWN = multiprocessing.get_context("spawn")
_SECONDS_TO_LEAVE = 10.0


def map_in_processes(
    load: Load, shards: Sequence[Shard], runtime: RuntimeConfig, *, done: Callable[[Shard], None]
) -> None:
    """See `map_shards`."""
    waiting, deaths, workers = deque(shards), Counter[int](), list[_Worker]()
    try:
        while waiting and len(workers) < runtime.workers:
            workers.append(_Worker(load, runtime))
            workers[-1].begin(waiting.popleft())
        while busy := [worker for worker in workers if worker.shard is not None]:
            answered = wait([worker.pipe for worker in busy])
            for worker in (each for each in busy if each.pipe in answered):
                shard = worker.finished()
                if shard is None:
                    workers[workers.index(worker)] = _replaced(worker, deaths, load, runtime)
                    continue
                done(shard)
                if waiting:
                    worker.begin(waiting.popleft())
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """One process, seen from its parent; `shard` is what it has in hand."""

    def __init__(self, load: Load, runtime: RuntimeConfig) -> None:
        self.pipe, own = _SPAWN.Pipe()
        self.shard: Shard | None = None
        self.process = _SPAWN.Process(target=_work, args=(own, load, runtime), daemon=True)
        self.process.start()
        own.close()

    def begin(self, shard: Shard) -> None:
        """Give it a shard; whether it is alive shows when it answers."""
        self.shard = shard
        try:
            self.pipe.send(shard)
        except OSError:
            _log.debug("The worker is gone already.")

    def finished(self) -> Shard | None:
        """The shard that it has made; None if it has died. Raises what the worker met."""
        shard = self.shard
        assert shard is not None, "only those that have a shard are asked"
        try:
            failure: Failure | None = self.pipe.recv()
        except (EOFError, OSError):
            return None
        self.shard = None
        if failure is not None:
            failure.raise_for(shard)
        return shard

    def stop(self) -> None:
        """End it, in the middle of a shard if need be: what it has written is whole or not there."""
        self.pipe.close()
        if self.shard is None:  # it leaves by itself, and tidies up
            self.process.join(_SECONDS_TO_LEAVE)
        self.process.kill()
        self.process.join()


def _replaced(worker: _Worker, deaths: Counter[int], load: Load, runtime: RuntimeConfig) -> _Worker:
    """A new worker with the shard of one that died."""
    shard = worker.shard
    assert shard is not None, "a worker without a shard is not waited for"
    worker.stop()
    deaths[shard.number] += 1
    how = f"A worker process died over {shard} (exit code {worker.process.exitcode})"
    if deaths[shard.number] >= MAX_ATTEMPTS:
        raise WorkerError(
            f"{how}, as {MAX_ATTEMPTS - 1} did before it. Exit code -9 is the kernel short of memory, as a rule: lower "
            "runtime.workers or the batch size. The shards that are finished are kept for the next run."
        )
    _log.warning("%s. The shard is made again.", how)
    new = _Worker(load, runtime)
    new.begin(shard)
    return new


def _work(pipe: Connection, load: Load, runtime: RuntimeConfig) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()

    @cache
    def make() -> Make:
        return load(prepare_device(runtime))

    with suppress(EOFError):  # there is no more to do
        while True:
            pipe.send(attempted(make, pipe.recv()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has been started by somebody"
    parent.join()
    os._exit(1)
