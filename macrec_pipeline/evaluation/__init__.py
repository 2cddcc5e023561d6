"""Stage `evaluation`: measure the recommendations of every test user, and render one HTML page with the results.

`protocol` measures the recommender's systems and the baselines, with confidence intervals and slices. `report` renders
the results. `promotion` compares a new model with the champion, the registered version that services load.
"""

from macrec_pipeline.evaluation.protocol import Evaluation, evaluate, metrics_document
from macrec_pipeline.evaluation.report.page import (
    LostCellCount,
    QuarantineCount,
    ReportInput,
    quarantine_counts,
    render_report,
)
from macrec_pipeline.evaluation.report.sample_users import SampleItem, SampleUser, choose_sample_users, sample_users

__all__ = [
    "Evaluation",
    "LostCellCount",
    "QuarantineCount",
    "ReportInput",
    "SampleItem",
    "SampleUser",
    "choose_sample_users",
    "evaluate",
    "metrics_document",
    "quarantine_counts",
    "render_report",
    "sample_users",
]
