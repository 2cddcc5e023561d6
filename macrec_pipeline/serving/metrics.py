"""The service's metrics, in Prometheus' text format."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from macrec_pipeline.serving.batching import Answered
from macrec_pipeline.serving.champion import Champion

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServiceMetrics:
    """Counts requests and answers. Gauges of the model are set when the metrics are read."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "macrec_requests", "Requests by endpoint and status.", ["endpoint", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "macrec_request_seconds",
            "Seconds from the arrival of a request to its response.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batch = Histogram(
            "macrec_batch_requests", "Requests that were answered together.", buckets=_SIZES, registry=self.registry
        )
        self._rows = Counter("macrec_rows", "Users that got recommendations.", registry=self.registry)
        self._fallbacks = Counter(
            "macrec_fallback_rows", "Users that got the most popular items.", registry=self.registry
        )
        self._unknown = Counter(
            "macrec_unknown_items", "Items of histories that the model does not know.", registry=self.registry
        )
        self._queue = Gauge("macrec_queue_requests", "Requests that wait.", registry=self.registry)
        self._version = Gauge("macrec_model_version", "Version in service; 0 for none.", registry=self.registry)
        self._age = Gauge("macrec_model_age_seconds", "Seconds since the version took over.", registry=self.registry)
        self._swaps = Gauge("macrec_model_swaps_total", "Versions that took over from another.", registry=self.registry)
        self._failures = Gauge(
            "macrec_model_failures_total", "Failed attempts to load a version.", registry=self.registry
        )

    def count_request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a response."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def count_batch(self, num_requests: int) -> None:
        """Count a batch of requests."""
        self._batch.observe(num_requests)

    def count_answer(self, answered: Answered) -> None:
        """Count the users of a response."""
        head = answered.response.head
        self._rows.inc(head.get("rows", 0))
        self._fallbacks.inc(head.get("fallbacks", 0))
        self._unknown.inc(head.get("unknown_items", 0))

    def text(self, champion: Champion, *, num_waiting: int) -> bytes:
        """Return all metrics in Prometheus' text format."""
        current = champion.current
        self._queue.set(num_waiting)
        self._version.set(0 if current is None else current.facts.version)
        self._age.set(0 if current is None else time.time() - champion.loaded_at)
        self._swaps.set(champion.num_swaps)
        self._failures.set(champion.num_failures)
        return generate_latest(self.registry)
