"""Bundles asked in turns: who answers what when, and whose time is counted."""

from collections.abc import Sequence

import pytest

from macrec_pipeline.recommender import Recommendation, recommend_side_by_side
from macrec_pipeline.recommender.bundle.bundle import side_by_side


class Clock:
    """A clock that stands still unless somebody works."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Diary:
    """Stands in for a bundle: answers with its name and the history, writes down what it was asked, and takes time."""

    num_items = 3

    def __init__(self, name: str, asked: list[tuple[str, int, int]], clock: Clock, *, seconds: float = 0.0) -> None:
        self.name, self.asked, self.clock, self.seconds = name, asked, clock, seconds

    def recommend_ids(self, histories: Sequence[Sequence[str]], *, k: int) -> list[Recommendation]:
        self.asked.append((self.name, len(histories), k))
        self.clock.now += self.seconds
        return [Recommendation([self.name, *history], [1.0] * (1 + len(history)), "none") for history in histories]


def test_answers_come_in_the_order_of_the_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever order they are asked in: batches of like lengths, each asked of both, the first to be asked changing."""
    monkeypatch.setattr(side_by_side, "BATCH", 2)
    asked: list[tuple[str, int, int]] = []
    histories = [["x"] * length for length in (5, 1, 4, 2, 3)]
    done: list[int] = []
    said = recommend_side_by_side(
        [Diary("a", asked, Clock()), Diary("b", asked, Clock())],  # type: ignore[list-item]
        histories,
        k=10,
        progress=lambda stage, done_now, total, metrics=None: done.append(done_now),
    )
    for name, one in zip("ab", said, strict=True):
        assert one.lists == [[name, *history] for history in histories]
    warm_up, turns = asked[:2], asked[2:]
    assert warm_up == [("a", 5, 3), ("b", 5, 3)]  # no more is asked for than the catalogue has
    assert [(name, size) for name, size, _ in turns] == [("a", 2), ("b", 2), ("b", 2), ("a", 2), ("a", 1), ("b", 1)]
    assert done == [2, 4, 5]


def test_each_pays_for_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 ms for two histories are 20 each; the other's time, warming up and a turn that was held up do not count."""
    clock = Clock()
    monkeypatch.setattr(side_by_side, "BATCH", 2)
    monkeypatch.setattr(side_by_side, "time", clock)
    bundles = [Diary("a", [], clock, seconds=0.01), Diary("b", [], clock, seconds=0.04)]

    def hold_up(_stage: str, done: int, _total: int, _metrics: object = None) -> None:
        bundles[0].seconds = 5.0 if done == 2 else 0.01

    quick, slow = recommend_side_by_side(bundles, [["x"]] * 6, k=1, progress=hold_up)  # type: ignore[arg-type]
    assert (quick.milliseconds, slow.milliseconds) == (pytest.approx(5), pytest.approx(20))
