"""The texts of the page: names, marked values, and conclusions that claim no more than the intervals support."""

import dataclasses

import pytest

from macrec_pipeline.evaluation import Evaluation
from macrec_pipeline.evaluation.protocol import SystemComparison
from macrec_pipeline.evaluation.report.tables import conclusions, metric_name, metric_table, system_name
from macrec_pipeline.evaluation.statistics import PairedDifference


@pytest.mark.parametrize(
    ("low", "high", "outcome", "claim"),
    [
        (0.01, 0.03, "better", "is better than Popularity"),
        (-0.03, -0.01, "worse", "is worse than Popularity"),
        (-0.01, 0.01, "unclear", "is not distinguishable from Popularity"),
        (0.0, 0.02, "unclear", "is not distinguishable from Popularity"),
    ],
)
def test_conclusions_follow_the_interval(
    evaluation: Evaluation, low: float, high: float, outcome: str, claim: str
) -> None:
    """Two systems differ only if the interval does not contain zero."""
    result = PairedDifference((low + high) / 2, low, high, 0.5, 40)
    comparison = SystemComparison("macrec", "popularity", "ndcg_10", False, result)
    (conclusion,) = conclusions(dataclasses.replace(evaluation, comparisons=(comparison,)))
    assert (conclusion.outcome, conclusion.claim) == (outcome, claim)
    assert conclusion.numbers.startswith("NDCG@10 ")


def test_conclusions_about_the_baselines_come_first(evaluation: Evaluation) -> None:
    """With seen items allowed, the baselines come before the single routes."""
    names = ["Popularity", "Item-kNN", "SASRec", "its image route alone", "its text route alone"]
    claims = [conclusion.claim for conclusion in conclusions(evaluation)]
    assert len(claims) == len(names)
    assert all(claim.endswith(name) for claim, name in zip(claims, names, strict=True))


def test_tables_omit_ndcg_1_and_mark_ties() -> None:
    """NDCG@1 equals HR@1 and has no column; equal best values are both marked."""
    values = {"hr_1": 0.5, "ndcg_1": 0.5, "hr_1_ci": [0.4, 0.6], "ndcg_1_ci": [0.4, 0.6]}
    table = metric_table({"macrec": values, "popularity": values})  # type: ignore[dict-item]
    assert table.columns == ("HR@1",)
    assert [row.cells[0].best for row in table.rows] == [True, True]
    assert table.rows[0].cells[0].interval == "0.400\N{EN DASH}0.600"


def test_names_follow_the_literature() -> None:
    """Metrics and systems have the names used in papers; an unknown system keeps its own name."""
    assert [metric_name(name) for name in ("hr_10", "ndcg_5", "mrr", "coverage")] == [
        "HR@10",
        "NDCG@5",
        "MRR",
        "Coverage",
    ]
    assert [system_name(name) for name in ("macrec", "sasrec", "mine")] == ["MACRec", "SASRec", "mine"]
