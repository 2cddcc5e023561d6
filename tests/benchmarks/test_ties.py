"""The benchmark of tie rules measures each system with each rule, and its table has one row for each pair."""

import json
from pathlib import Path

import pytest

from benchmarks.accuracy import ties
from benchmarks.accuracy.rendering import ties_table


@pytest.fixture
def noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The results file of the noise for the systems without training."""
    monkeypatch.setattr(ties, "SYSTEMS", (ties.ITEM_KNN, ties.POPULARITY))
    ties.main(["noise", "--seeds", "1", "2", "--work", str(tmp_path / "work"), "--out", str(tmp_path)])
    document = json.loads((tmp_path / "ties-noise.json").read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def test_each_system_is_measured_with_each_rule(noise: dict[str, object]) -> None:
    """Sorted by ID, item-kNN is above chance and popularity is below; the seed matters for the hash alone."""
    rows = {(row["system"], row["ties"], row["setting"], row["metric"]): row for row in noise["rows"]}  # type: ignore[attr-defined]
    assert len(rows) == len(noise["rows"]) == 2 * 3 * 2 * 2  # type: ignore[arg-type]
    by_rule = {rule: rows["item_knn", rule, "seen_excluded", "hr_10"] for rule in ties.RULES}
    assert by_rule["item_id"]["mean"] > 0.13 > 0.113 > by_rule["hash"]["mean"]
    assert rows["popularity", "item_id", "seen_excluded", "hr_10"]["mean"] < 0.02
    assert by_rule["item_id"]["sd"] == by_rule["position"]["sd"] == 0 < by_rule["hash"]["sd"]
    assert (noise["users"], noise["items"], noise["tied_share"], noise["undetermined_targets"]) == (500, 120, 1, 500)


def test_the_table_has_a_row_per_system_and_rule(noise: dict[str, object]) -> None:
    """Without determined targets, the table has no column for them."""
    lines = ties_table(noise).splitlines()
    assert lines[0].startswith(
        "`python benchmarks/accuracy/ties.py noise --seeds 1 2`: 500 users, 120 items; 100.0% of"
    )
    assert lines[2].count("|") == 7
    assert [line.split("|")[1:3] for line in lines[4:]] == [
        [f" {system} ", f" `{rule}` "] for system in ("item knn", "popularity") for rule in ties.RULES
    ]


def test_determined_targets_have_columns_of_their_own() -> None:
    """They are shown where the data determine some targets."""
    row = {"system": "sasrec", "ties": "hash", "sd": None}
    rows = [
        row | {"setting": setting, "metric": metric, "mean": mean}
        for setting in ("seen_allowed", "seen_excluded")
        for metric, mean in (
            ("hr_10", 0.5),
            ("ndcg_10", 0.25),
            ("hr_10_determined", 0.75),
            ("ndcg_10_determined", 0.375),
        )
    ]
    document = {"command": "c", "users": 4, "items": 9, "tied_share": 0.5, "undetermined_targets": 2, "seeds": [1]}
    lines = ties_table(document | {"rows": rows}).splitlines()
    assert lines[-1] == "| sasrec | `hash` | .5000 | .2500 | .5000 | .2500 | .3750 | .3750 |"
