"""Runs and registered models in MLflow. The only folder that imports mlflow, and only when something is tracked."""

from macrec_pipeline.tracking.asset_run import AssetRun, metric_progress
from macrec_pipeline.tracking.loading import RegisteredBundle, load_model, model_uri, registered_bundle
from macrec_pipeline.tracking.promotion import Contender, Decision
from macrec_pipeline.tracking.promotion_outcome import PromotionOutcome, Proposal
from macrec_pipeline.tracking.registry import RegisteredVersion
from macrec_pipeline.tracking.server import server_command
from macrec_pipeline.tracking.store import DEFAULT_UI_PORT
from macrec_pipeline.tracking.tracker import Tracker, open_tracking

__all__ = [
    "DEFAULT_UI_PORT",
    "AssetRun",
    "Contender",
    "Decision",
    "PromotionOutcome",
    "Proposal",
    "RegisteredBundle",
    "RegisteredVersion",
    "Tracker",
    "load_model",
    "metric_progress",
    "model_uri",
    "open_tracking",
    "registered_bundle",
    "server_command",
]
