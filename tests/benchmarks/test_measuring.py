"""Metrics, spreads, paired differences and tables of a study, computed by hand."""

from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy.measuring import Run, measure
from benchmarks.accuracy.rendering import instruments_table, table
from macrec_pipeline.config import EvaluationConfig

# Four users; the test item of user u is u, the validation item 10 + u.
HISTORIES = [np.array([20, 21, 10 + user, user]) for user in range(4)]
CONFIG = EvaluationConfig(bootstrap_samples=200)


def _lists(ranks: list[int], targets: list[int]) -> np.ndarray:
    """Create lists of ten with the target at a 1-based rank, or without it for 0."""
    lists = np.tile(np.arange(30, 40), (len(ranks), 1))
    for row, rank, target in zip(lists, ranks, targets, strict=True):
        if rank:
            row[rank - 1] = target
    return lists


def _run(system: str, seed: int | None, ranks: list[int], *, routes: tuple[str, ...] = ("fused",)) -> Run:
    lists = {}
    for route in routes:
        for setting in ("seen_allowed", "seen_excluded"):
            lists[f"test/{route}/{setting}"] = _lists(ranks, [0, 1, 2, 3])
            lists[f"validation/{route}/{setting}"] = _lists([1, 0, 0, 0], [10, 11, 12, 13])
    return Run(system, seed, lists, {"seconds": {"recommender": 1.0}})


def _document(runs: list[Run], *, targets: tuple[str, ...] = ("validation", "test")) -> dict[str, Any]:
    return {
        "command": "python benchmarks/accuracy/ablations.py demo --seeds 1 2",
        "target": targets[-1],
        "num_users": 4,
        "num_items": 40,
        "seeds": [1, 2],
        "confidence": 0.95,
        "machine": {"device": "cpu", "threads": 2},
        **measure(runs, HISTORIES, targets=targets, config=CONFIG, seed=1),
    }


def _two_systems() -> list[Run]:
    return [
        _run("full", 1, [1, 1, 3, 0]),
        _run("full", 2, [1, 1, 1, 7]),
        _run("popularity", None, [0, 0, 0, 1], routes=("list",)),
    ]


def test_means_and_spreads_over_seeds() -> None:
    """HR@1 is 2/4 and 3/4 with the two seeds: mean .625, standard deviation .25 / sqrt 2; one run has no spread."""
    systems = _document(_two_systems())["systems"]
    hit = systems["full/fused"]["test"]["seen_allowed"]["hr_1"]
    assert hit == {"mean": pytest.approx(0.625), "sd": pytest.approx(0.25 / 2**0.5)}
    gains = (1 + 1 + 0.5) / 4, (3 + 1 / 3) / 4  # ranks 3 and 7 have gains of 1 / log2(4) and 1 / log2(8)
    assert systems["full/fused"]["test"]["seen_allowed"]["ndcg_10"]["mean"] == pytest.approx(sum(gains) / 2)
    assert systems["popularity"]["test"]["seen_allowed"]["hr_1"] == {"mean": 0.25, "sd": None}


def test_a_difference_is_positive_if_the_full_method_is_better() -> None:
    """Each user's metric is averaged over seeds first: HR@10 of full is (1 + 1 + 1 + .5) / 4, of popularity 1 / 4."""
    rows = _document(_two_systems())["comparisons"]
    row = next(row for row in rows if (row["metric"], row["setting"]) == ("hr_10", "seen_allowed"))
    assert (row["system"], row["against"]) == ("full/fused", "popularity")
    assert row["difference"] == pytest.approx(0.875 - 0.25)
    assert row["low"] <= row["difference"] <= row["high"]


def test_the_explicit_tasks_are_compared_separately() -> None:
    """no_explicit also lacks the implicit alignment, so it is compared with no_implicit as well."""
    runs = [_run("full", 1, [1, 1, 1, 1]), _run("no_implicit", 1, [1, 1, 1, 1]), _run("no_explicit", 1, [0, 0, 0, 1])]
    document = _document(runs)
    pairs = {(row["system"], row["against"]): row["difference"] for row in document["comparisons"]}
    assert pairs["no_implicit/fused", "no_explicit/fused"] == pytest.approx(0.75)
    assert "- no implicit, fused minus no explicit, fused, NDCG@10, seen items allowed: +.7500 [" in table(document)


def test_the_table_by_hand() -> None:
    """Rows, values, spreads and empty cells are as expected."""
    lines = table(_document(_two_systems())).splitlines()
    assert lines[0].startswith("`python benchmarks/accuracy/ablations.py demo --seeds 1 2`: Test targets of 4 users")
    head = "| system | HR@1 | HR@5 | HR@10 | NDCG@5 | NDCG@10 | validation NDCG@10 | full minus this, NDCG@10 |"
    assert lines.count(head) == 2
    full = "| full, fused | .6250 ± .1768 | .7500 ± .0000 | .8750 ± .1768 | "
    assert next(line for line in lines if line.startswith(full)).endswith(" | .2500 ± .0000 | |")
    popular = next(line for line in lines if line.startswith("| popularity |"))
    assert popular.startswith("| popularity | .2500 | .2500 | .2500 | .2500 | .2500 | .2500 | +")


def test_a_validation_table_has_no_second_validation_column() -> None:
    """Without test targets, all columns are validation metrics."""
    text = table(_document(_two_systems(), targets=("validation",)))
    assert "Validation targets of 4 users" in text
    assert "validation NDCG@10" not in text


def test_a_variant_with_one_route_is_shown_by_that_route() -> None:
    """Only the full method shows its single routes; those of other variants stay in the results file."""
    runs = [
        _run("full", 1, [1, 1, 1, 1], routes=("fused", "text", "image")),
        _run("no_implicit", 1, [1, 1, 1, 1], routes=("fused", "text", "image")),
        _run("text_only", 1, [1, 1, 1, 1], routes=("text",)),
    ]
    rows = [line.split(" | ")[0] for line in table(_document(runs)).splitlines() if line.startswith("| ")]
    shown = ["| full, fused", "| full, text", "| full, image", "| no implicit, fused", "| text only, text"]
    assert [row for row in rows if row not in ("| system", "| ---")] == 2 * shown


def test_the_instruments_table_shows_all_results() -> None:
    """Runs can have several seeds and further routes, and a published system can lack metrics."""
    metrics = {"hr_1": 0.1, "hr_5": 0.2, "hr_10": 0.3, "ndcg_5": 0.15, "ndcg_10": 0.2}
    runs = [
        {"seed": 1, "test_beam_20": {"fused": metrics}, "validation": {"fused": metrics}, "users_per_second": 3.0},
        {"seed": 2, "test_beam_20": {"fused": metrics | {"hr_1": 0.2}, "three_routes": metrics}},
    ]
    published = {"systems": [{"name": "Other", "source": "somewhere", "hr_10": 1.0}]}
    lines = instruments_table([{"variant": "shallow", "runs": runs}], published).splitlines()
    assert lines[2].startswith("| shallow, fused, beam 20 | 1, 2 | .1500 ± .0707 | .2000 ± .0000 |")
    assert lines[2].endswith("| .2000 |")
    assert lines[3].startswith("| shallow, three routes, beam 20 | 2 | .1000 | .2000 |")
    assert lines[4] == "| Other (somewhere) | | | | 1.0000 | | | |"
