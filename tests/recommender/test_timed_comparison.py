"""Bundles recommend in turns: in which order, for which batches, and which time is counted."""

from collections.abc import Sequence

import pytest

from macrec_pipeline.recommender import Recommendation, recommend_in_turns
from macrec_pipeline.recommender.bundle import timed_comparison


class Clock:
    """A clock that advances only when a test says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class FakeBundle:
    """Recommends its own name and the history, logs its calls, and takes a given time."""

    num_items = 3

    def __init__(self, name: str, calls: list[tuple[str, int, int]], clock: Clock, *, seconds: float = 0.0) -> None:
        self.name, self.calls, self.clock, self.seconds = name, calls, clock, seconds

    def recommend_ids(self, histories: Sequence[Sequence[str]], *, k: int) -> list[Recommendation]:
        self.calls.append((self.name, len(histories), k))
        self.clock.now += self.seconds
        return [Recommendation([self.name, *history], [1.0] * (1 + len(history)), "none") for history in histories]


def test_recommendations_keep_the_order_of_the_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches have similar lengths, every bundle gets each batch, and which of them goes first alternates."""
    monkeypatch.setattr(timed_comparison, "BATCH_SIZE", 2)
    calls: list[tuple[str, int, int]] = []
    histories = [["x"] * length for length in (5, 1, 4, 2, 3)]
    progress: list[int] = []
    results = recommend_in_turns(
        [FakeBundle("a", calls, Clock()), FakeBundle("b", calls, Clock())],  # type: ignore[list-item]
        histories,
        k=10,
        progress=lambda stage, num_done, total, metrics=None: progress.append(num_done),
    )
    for name, of_bundle in zip("ab", results, strict=True):
        assert of_bundle.lists == [[name, *history] for history in histories]
    warm_up, turns = calls[:2], calls[2:]
    assert warm_up == [("a", 5, 3), ("b", 5, 3)]  # k is limited to the size of the catalogue
    assert [(name, size) for name, size, _ in turns] == [("a", 2), ("b", 2), ("b", 2), ("a", 2), ("a", 1), ("b", 1)]
    assert progress == [2, 4, 5]


def test_each_bundle_is_charged_only_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 ms for two histories are 20 ms per history; other bundles, warming up and one slow turn do not count."""
    clock = Clock()
    monkeypatch.setattr(timed_comparison, "BATCH_SIZE", 2)
    monkeypatch.setattr(timed_comparison, "time", clock)
    bundles = [FakeBundle("a", [], clock, seconds=0.01), FakeBundle("b", [], clock, seconds=0.04)]

    def slow_down_once(_stage: str, num_done: int, _total: int, _metrics: object = None) -> None:
        bundles[0].seconds = 5.0 if num_done == 2 else 0.01

    fast, slow = recommend_in_turns(bundles, [["x"]] * 6, k=1, progress=slow_down_once)  # type: ignore[arg-type]
    assert (fast.milliseconds, slow.milliseconds) == (pytest.approx(5), pytest.approx(20))
