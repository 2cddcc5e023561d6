"""Estimates for larger sizes use the recorded results, and grow with the sizes."""

import json

import numpy as np
import pytest

from benchmarks.scaling import collisions
from benchmarks.scaling.estimate import DOCUMENT, Shop, collision_table, cost_table, seconds_per_unit, stages
from benchmarks.speed.run import RESULTS

ROWS = json.loads((RESULTS / "latest.json").read_text(encoding="utf-8"))


def test_the_document_contains_the_tables() -> None:
    """If this fails, run `python -m benchmarks.scaling.estimate`."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert cost_table(ROWS) in text
    assert collision_table(json.loads(collisions.RESULTS.read_text(encoding="utf-8"))) in text


def test_doubling_the_shop_doubles_the_costs() -> None:
    """The exceptions are the quantizer, which uses a sample, and the evaluation, whose number of users is fixed."""
    rates = seconds_per_unit(ROWS)
    small, large = (stages(Shop(2e6 * size, 1e8 * size, 1e6 * size), rates) for size in (1, 2))
    for name, (seconds, _, stored) in small.items():
        fixed = name == "quantizer" or name.startswith("evaluation")
        assert large[name][0] == pytest.approx(seconds * (1 if fixed else 2))
        assert large[name][2] == pytest.approx(stored * (1 if fixed or name.startswith("recommender") else 2))


def test_only_close_items_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variants at distance zero, a third of the items, share their product's ID; distant ones have their own."""

    def rate(distance: float) -> float:
        monkeypatch.setattr(collisions, "VARIANT_DISTANCE", distance)
        latents = collisions.catalogue(600, np.random.default_rng(1))
        return collisions.measure(latents, num_levels=4, codebook_size=256)["collision_rate"]

    assert rate(0.0) == pytest.approx(1 / 3, abs=0.02)
    assert rate(1.0) < 0.02
