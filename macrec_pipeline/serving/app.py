"""The HTTP interface of the champion: recommendations, health, readiness and metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import Body, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.serving.batching import Answered, Batcher, QueueFullError
from macrec_pipeline.serving.champion import Champion
from macrec_pipeline.serving.docs_page import CONTENT_POLICY, docs_page
from macrec_pipeline.serving.metrics import ServiceMetrics
from macrec_pipeline.serving.model_process import INVOCATIONS, RECOMMEND, SIMILAR, Message
from macrec_pipeline.serving.settings import ServiceSettings

access_log = logging.getLogger("macrec_pipeline.access")
"""One entry per request: method, path, status, milliseconds, and of an answer the version, the batch and the users."""
_RETRY_AFTER_SECONDS = "1"
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ENDPOINTS = ("/recommend", "/similar", "/invocations", "/health", "/ready", "/metrics")


class RecommendRequest(BaseModel):
    """A request for the recommendations of one user."""

    model_config = ConfigDict(extra="forbid")

    history: list[str] | None = Field(
        None, description="Item IDs, oldest first. Empty or null for a user without a history."
    )
    k: int | None = Field(None, ge=1, description="Number of items; 10 if left out.")
    route: str | None = Field(None, description="Retrieval route: fused (all combined), text, image or collaborative.")
    exclude_seen: bool | None = Field(None, description="Leave out the items of the history.")
    allowed: list[str] | None = Field(None, description="Recommend only these item IDs.")
    excluded: list[str] | None = Field(None, description="Recommend none of these item IDs.")
    allowed_categories: list[str] | None = Field(None, description="Recommend only items in one of these categories.")
    excluded_categories: list[str] | None = Field(None, description="Recommend no item in these categories.")
    diversity: float | None = Field(
        None, ge=0, le=1, description="0 for the highest scores, up to 1 for the least similar items."
    )
    max_per_category: int | None = Field(None, ge=0, description="Most items of one category; 0 for no limit.")
    max_per_prefix: int | None = Field(
        None, ge=0, description="Most items whose semantic IDs start with the same codes; 0 for no limit."
    )
    prefix_length: int | None = Field(None, ge=1, description="How many of these codes `max_per_prefix` compares.")
    explain: bool | None = Field(None, description="Say for each item why it is recommended. The items do not change.")


class SharedCodes(BaseModel):
    """An item of the history, and the codes with which its semantic ID and that of the recommended item start."""

    item_id: str
    codes: list[int]


class Explanation(BaseModel):
    """Why one item is recommended."""

    route: str = Field(
        description='The route that carried the item: text, image, collaborative, or "popular" for a fallback.'
    )
    scores: dict[str, float] = Field(description="The item's score by each route alone; empty for a fallback.")
    shared_codes: dict[str, SharedCodes] = Field(
        description="For text and image, the item of the history that shares the most leading codes. A modality is "
        "absent if not even the first code is shared."
    )


class RecommendResponse(BaseModel):
    """The recommendations for one user."""

    item_ids: list[str] = Field(description="Item IDs, best first.")
    scores: list[float] = Field(description="One score per item, comparable within this response only.")
    fallback: str = Field(description='"none", or "popularity" if the model knows no item of the history.')
    explanations: list[Explanation] | None = Field(None, description="One per item; absent without `explain`.")


class SimilarRequest(BaseModel):
    """A request for the items that are similar to one item."""

    model_config = ConfigDict(extra="forbid")

    item_id: str = Field(description="The item to compare with.")
    k: int | None = Field(None, ge=1, description="Number of items; 10 if left out.")
    method: Literal["latent", "embedding", "prefix"] | None = Field(
        None,
        description="How items are compared: by their quantized latents, by their embeddings, or by the codes with "
        "which their semantic IDs start. Null for the first of these that the model supports.",
    )
    modality: Literal["text", "image"] | None = Field(
        None, description="Compare the texts or the images alone; null for both."
    )
    allowed: list[str] | None = Field(None, description="Return only these item IDs.")
    excluded: list[str] | None = Field(None, description="Return none of these item IDs.")
    allowed_categories: list[str] | None = Field(None, description="Return only items in one of these categories.")
    excluded_categories: list[str] | None = Field(None, description="Return no item in these categories.")


class SimilarResponse(BaseModel):
    """The items that are similar to one item, most similar first."""

    item_ids: list[str] = Field(description="Item IDs; never the item itself, and only items that may be recommended.")
    scores: list[float] = Field(description="Similarity, at most 1; comparable within one method and modality.")
    method: str = Field(description="The method that was used.")


_SIMILAR_EXAMPLES = {
    "default": {"summary": "Five similar items", "value": {"item_id": "P0001", "k": 5}},
    "images": {"summary": "Items that look alike", "value": {"item_id": "P0001", "k": 5, "modality": "image"}},
    "prefix": {"summary": "Items with the same first codes", "value": {"item_id": "P0001", "method": "prefix"}},
}
_EXAMPLES = {
    "history": {"summary": "Three items for a history", "value": {"history": ["P0001", "P0042"], "k": 3}},
    "stock": {
        "summary": "Only items in stock, none that the user has",
        "value": {"history": ["P0001"], "k": 2, "exclude_seen": True, "allowed": ["P0001", "P0003", "P0004"]},
    },
    "explained": {"summary": "Why each item is recommended", "value": {"history": ["P0001"], "k": 3, "explain": True}},
    "new user": {"summary": "A user without a history", "value": {"history": [], "k": 3}},
}

_INVOCATIONS_EXAMPLES = {
    "two users": {
        "summary": "Two users, and an item that no user gets",
        "value": {
            "dataframe_records": [{"history": ["P0001", "P0042"]}, {"history": None}],
            "params": {"k": 3, "rules": {"excluded": ["P0005"]}},
        },
    }
}
_INVOCATIONS_BODY = {"requestBody": {"content": {"application/json": {"examples": _INVOCATIONS_EXAMPLES}}}}


def create_app(champion: Champion, settings: ServiceSettings) -> FastAPI:
    """Build the application.

    Args:
        champion: the version in service; the application follows its alias.
        settings: of batches and limits.
    """
    metrics = ServiceMetrics()
    batcher = Batcher(
        champion,
        window_seconds=settings.batch_window_ms / 1000,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        on_batch=metrics.count_batch,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(batcher.run()), asyncio.create_task(_follow(champion, settings.poll_seconds))]
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.to_thread(champion.close)

    app = FastAPI(
        title="macrec_pipeline",
        summary="Recommendations of the champion.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from a public server
        redoc_url=None,
    )

    @app.middleware("http")
    async def observe(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        """Count and log a request, without anything that names a user or an item."""
        begin = time.perf_counter()
        length = request.headers.get("content-length")
        if length is not None and length.isdigit() and int(length) > settings.max_body_bytes:
            response: Response = _too_large(settings.max_body_bytes)
        else:
            response = await proceed(request)
        seconds = time.perf_counter() - begin
        path = request.url.path if request.url.path in _ENDPOINTS else "other"
        metrics.count_request(path, response.status_code, seconds)
        answered: Answered | None = getattr(request.state, "answered", None)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {
            "time": now,
            "method": request.method,
            "path": path,
            "status": response.status_code,
            "ms": round(seconds * 1000, 2),
        }
        if answered is not None:
            head = answered.response.head
            entry |= {"version": answered.version, "batch": answered.batch_size, "rows": head.get("rows", 0)}
        access_log.info(json.dumps(entry))
        return response

    async def answer(request: Request, kind: str, body: bytes) -> Response:
        if len(body) > settings.max_body_bytes:
            return _too_large(settings.max_body_bytes)
        head = {"kind": kind, "content_type": request.headers.get("content-type")}
        try:
            answered = await batcher.answer(Message(head, body))
        except QueueFullError:
            return _unavailable(f"{settings.max_queue} requests wait already. Try again later.")
        except TrackingError as error:
            return _unavailable(str(error))
        metrics.count_answer(answered)
        request.state.answered = answered
        response = answered.response
        headers = {"X-Model-Version": str(answered.version)}
        return Response(response.body, response.head["status"], headers, response.head["content_type"])

    @app.post("/invocations", openapi_extra=_INVOCATIONS_BODY)
    async def invocations(request: Request) -> Response:
        """Answer a request in one of MLflow's forms, as `mlflow models serve` does."""
        return await answer(request, INVOCATIONS, await request.body())

    @app.post("/recommend", response_model=RecommendResponse)
    async def recommend(
        request: Request, wanted: Annotated[RecommendRequest, Body(openapi_examples=_EXAMPLES)]
    ) -> Response:
        """Recommend items for one user."""
        return await answer(request, RECOMMEND, wanted.model_dump_json(exclude_none=True).encode())

    @app.post(
        "/similar",
        response_model=SimilarResponse,
        responses={404: {"description": "The catalogue has no such item; `detail` suggests similar IDs."}},
    )
    async def similar(
        request: Request, wanted: Annotated[SimilarRequest, Body(openapi_examples=_SIMILAR_EXAMPLES)]
    ) -> Response:
        """Find the items that are most similar to one item."""
        return await answer(request, SIMILAR, wanted.model_dump_json(exclude_none=True).encode())

    @app.get("/health")
    @app.get("/ping")
    async def health() -> JSONResponse:
        """Tell that the process of the service is alive."""
        return JSONResponse({"status": "alive"})

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Tell whether a version is in service, and why a newer one is not."""
        current, failure = champion.current, champion.failure
        body = {
            "ready": current is not None and current.is_running(),
            "version": None if current is None else current.facts.version,
            "routes": [] if current is None else list(current.facts.routes),
            "num_items": 0 if current is None else current.facts.num_items,
            "failure": None if failure is None else {"version": failure.version, "reason": failure.reason},
        }
        return JSONResponse(body, 200 if body["ready"] else 503)

    @app.get("/metrics")
    async def read_metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(metrics.text(champion, num_waiting=batcher.num_waiting), media_type=_METRICS_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        """Return the page that describes the API."""
        page = docs_page(app.openapi(), base_url=str(request.base_url))
        return HTMLResponse(page, headers={"Content-Security-Policy": CONTENT_POLICY})

    return app


async def _follow(champion: Champion, poll_seconds: float) -> None:
    while True:
        await asyncio.to_thread(champion.follow)
        await asyncio.sleep(poll_seconds)


def _unavailable(message: str) -> JSONResponse:
    return JSONResponse({"detail": message}, 503, {"Retry-After": _RETRY_AFTER_SECONDS})


def _too_large(max_bytes: int) -> JSONResponse:
    return JSONResponse(
        {"detail": f"The body is larger than the service accepts: {max_bytes:,} bytes (`max_body_bytes`)."}, 413
    )
