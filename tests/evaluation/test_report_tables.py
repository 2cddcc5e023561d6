"""What the page prints: names, marked values, and sentences that say no more than the intervals do."""

import dataclasses

import pytest

from macrec_pipeline.evaluation import Evaluation
from macrec_pipeline.evaluation.protocol import Comparison
from macrec_pipeline.evaluation.report.tables import metric_name, metric_table, system_name, verdicts
from macrec_pipeline.evaluation.statistics import PairedDifference


@pytest.mark.parametrize(
    ("low", "high", "outcome", "claim"),
    [
        (0.01, 0.03, "better", "is better than Popularity"),
        (-0.03, -0.01, "worse", "is worse than Popularity"),
        (-0.01, 0.01, "unclear", "cannot be told apart from Popularity"),
        (0.0, 0.02, "unclear", "cannot be told apart from Popularity"),
    ],
)
def test_verdicts_follow_the_interval(
    evaluation: Evaluation, low: float, high: float, outcome: str, claim: str
) -> None:
    """Only an interval that leaves out zero tells two systems apart."""
    result = PairedDifference((low + high) / 2, low, high, 0.5, 40)
    comparison = Comparison("macrec", "popularity", "ndcg_10", False, result)
    (verdict,) = verdicts(dataclasses.replace(evaluation, comparisons=(comparison,)))
    assert (verdict.outcome, verdict.claim) == (outcome, claim)
    assert verdict.numbers.startswith("NDCG@10 ")


def test_verdicts_name_the_baselines_first(evaluation: Evaluation) -> None:
    """Seen items allowed, the baselines before the single routes."""
    assert [verdict.claim.split()[-1] for verdict in verdicts(evaluation)] == [
        "Popularity",
        "Item-kNN",
        "SASRec",
        "route",
        "route",
    ]


def test_tables_leave_out_what_is_said_twice() -> None:
    """NDCG@1 is HR@1 and has no column; equal values are both marked as best."""
    values = {"hr_1": 0.5, "ndcg_1": 0.5, "hr_1_ci": [0.4, 0.6], "ndcg_1_ci": [0.4, 0.6]}
    table = metric_table({"macrec": values, "popularity": values})  # type: ignore[dict-item]
    assert table.columns == ("HR@1",)
    assert [row.cells[0].best for row in table.rows] == [True, True]
    assert table.rows[0].cells[0].interval == "0.400\N{EN DASH}0.600"


def test_names_are_those_of_the_field() -> None:
    """Metrics and systems are called as in the papers; an unknown system keeps its name."""
    assert [metric_name(name) for name in ("hr_10", "ndcg_5", "mrr", "coverage")] == [
        "HR@10",
        "NDCG@5",
        "MRR",
        "Coverage",
    ]
    assert [system_name(name) for name in ("macrec", "sasrec", "mine")] == ["MACRec", "SASRec", "mine"]
