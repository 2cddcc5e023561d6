"""Track runs and registered models in MLflow.

This is the only package that imports mlflow, and it does so only when something is tracked.
"""

from macrec_pipeline.tracking.asset_run import AssetRun, metric_progress
from macrec_pipeline.tracking.loading import RegisteredBundle, load_model, model_uri, registered_bundle
from macrec_pipeline.tracking.promotion import ChampionChange, VersionSummary
from macrec_pipeline.tracking.promotion_outcome import PromotionOutcome, PromotionProposal
from macrec_pipeline.tracking.registry import RegisteredVersion
from macrec_pipeline.tracking.retention import PlannedRemoval, Removal
from macrec_pipeline.tracking.server import server_command, training_run_links
from macrec_pipeline.tracking.store import DEFAULT_UI_PORT
from macrec_pipeline.tracking.tracker import Tracker, open_tracking

__all__ = [
    "DEFAULT_UI_PORT",
    "AssetRun",
    "ChampionChange",
    "PlannedRemoval",
    "PromotionOutcome",
    "PromotionProposal",
    "RegisteredBundle",
    "RegisteredVersion",
    "Removal",
    "Tracker",
    "VersionSummary",
    "load_model",
    "metric_progress",
    "model_uri",
    "open_tracking",
    "registered_bundle",
    "server_command",
    "training_run_links",
]
