"""Requests that wait in a bounded queue, and are answered in batches by the version in service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.serving.champion import Champion
from macrec_pipeline.serving.model_process import Message


class QueueFullError(Exception):
    """As many requests wait as may."""


@dataclass(frozen=True)
class Answered:
    """A response, and how it came about.

    Attributes:
        response: of the model.
        version: the version of the model that answered.
        batch_size: the number of requests that were answered together.
    """

    response: Message
    version: int
    batch_size: int


@dataclass(frozen=True)
class _Waiting:
    request: Message
    answered: asyncio.Future[Answered]


class Batcher:
    """Collects requests for a moment and answers them together.

    A batch is answered by one version from beginning to end, so a new champion takes over between two batches.

    Args:
        champion: the version in service.
        window_seconds: how long a request waits for others.
        max_batch: most requests of a batch.
        max_queue: most requests that wait.
        on_batch: called with the number of requests of each batch.
    """

    def __init__(
        self,
        champion: Champion,
        *,
        window_seconds: float,
        max_batch: int,
        max_queue: int,
        on_batch: Callable[[int], None],
    ) -> None:
        self._champion, self._window, self._max_batch, self._on_batch = champion, window_seconds, max_batch, on_batch
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(max_queue)

    @property
    def num_waiting(self) -> int:
        """The number of requests in the queue."""
        return self._queue.qsize()

    async def answer(self, request: Message) -> Answered:
        """Queue a request and return its response.

        Raises:
            QueueFullError: too many requests wait.
            TrackingError: no version is in service, or its process ended twice.
        """
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        try:
            self._queue.put_nowait(waiting)
        except asyncio.QueueFull:
            raise QueueFullError from None
        return await waiting.answered

    async def run(self) -> None:
        """Answer batches until the task is cancelled."""
        while True:
            batch = await self._next_batch()
            self._on_batch(len(batch))
            try:
                answers = await asyncio.to_thread(self._answer, [waiting.request for waiting in batch])
            except TrackingError as error:
                for waiting in batch:
                    if not waiting.answered.done():
                        waiting.answered.set_exception(error)
                continue
            for waiting, answer in zip(batch, answers, strict=True):
                if not waiting.answered.done():  # the client may have gone
                    waiting.answered.set_result(answer)

    async def _next_batch(self) -> list[_Waiting]:
        batch = [await self._queue.get()]
        end = asyncio.get_running_loop().time() + self._window
        while len(batch) < self._max_batch:
            remaining = end - asyncio.get_running_loop().time()
            if remaining <= 0:
                with contextlib.suppress(asyncio.QueueEmpty):
                    while len(batch) < self._max_batch:
                        batch.append(self._queue.get_nowait())
                break
            with contextlib.suppress(TimeoutError):
                batch.append(await asyncio.wait_for(self._queue.get(), remaining))
        return batch

    def _answer(self, requests: Sequence[Message]) -> list[Answered]:
        version = self._champion.require()
        try:
            responses = version.answer(requests)
        except TrackingError:
            # It was replaced between two lines, or its process ended: the version that is in service now answers.
            self._champion.follow()
            version = self._champion.require()
            responses = version.answer(requests)
        return [Answered(response, version.facts.version, len(requests)) for response in responses]
