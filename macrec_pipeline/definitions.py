"""Dagster's entry point: the definitions, assembled. No logic here, and nothing heavy is imported."""

import dagster as dg

from macrec_pipeline.defs.assets import (
    embeddings,
    evaluation,
    interactions,
    recommendations,
    recommender,
    registry,
    sasrec,
    semantic_ids,
)
from macrec_pipeline.defs.checks import CHECKS
from macrec_pipeline.defs.jobs import EXECUTOR, JOBS
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.sensors import SENSORS

defs = dg.Definitions(
    assets=dg.load_assets_from_modules(
        [interactions, embeddings, sasrec, semantic_ids, recommender, evaluation, registry, recommendations]
    ),
    asset_checks=CHECKS,
    jobs=JOBS,
    sensors=SENSORS,
    resources={"settings": Settings()},
    executor=EXECUTOR,
)
