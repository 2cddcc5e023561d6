"""Dagster's entry point: assembles the definitions. It has no logic of its own and imports nothing heavy."""

import dagster as dg

from macrec_pipeline.defs.assets import (
    champion,
    champion_refit,
    embeddings,
    evaluation,
    interactions,
    recommendations,
    recommender,
    refit,
    registry,
    sasrec,
    semantic_ids,
)
from macrec_pipeline.defs.automation import CHANGE_SENSOR, NEW_DATA_SENSORS, ON_CHANGE, PRUNE_SCHEDULES, SCHEDULES
from macrec_pipeline.defs.checks import CHECKS
from macrec_pipeline.defs.jobs import EXECUTOR, JOBS, prune_job
from macrec_pipeline.defs.launchpad import settings_resource
from macrec_pipeline.defs.runs.run_sensors import SENSORS
from macrec_pipeline.home import use_private_umask
from macrec_pipeline.runtime.openmp import spin_briefly

use_private_umask()  # the same processes write the files of the home
spin_briefly()  # every process of a run imports this module before torch

defs = dg.Definitions(
    assets=dg.load_assets_from_modules(
        [
            interactions,
            embeddings,
            sasrec,
            semantic_ids,
            recommender,
            evaluation,
            champion,
            champion_refit,
            refit,
            registry,
            recommendations,
        ],
        automation_condition=ON_CHANGE,
    ),
    asset_checks=CHECKS,
    jobs=[*JOBS, prune_job],
    schedules=[*SCHEDULES, *PRUNE_SCHEDULES],
    sensors=[*SENSORS, *NEW_DATA_SENSORS, CHANGE_SENSOR],
    resources={"settings": settings_resource},
    executor=EXECUTOR,
)
