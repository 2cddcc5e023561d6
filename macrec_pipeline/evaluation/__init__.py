"""Stage `evaluation`: recommendations of every test user -> metrics with intervals, slices and one HTML page.

`protocol` runs the leave-one-out evaluation beside the baselines of `baselines`; `report` renders what it found.
"""

from macrec_pipeline.evaluation.protocol import Evaluation, evaluate, metrics_document
from macrec_pipeline.evaluation.report.page import QuarantineCount, ReportInput, quarantine_counts, render_report
from macrec_pipeline.evaluation.report.sample_users import SampleItem, SampleUser, choose_sample_users, sample_users

__all__ = [
    "Evaluation",
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
