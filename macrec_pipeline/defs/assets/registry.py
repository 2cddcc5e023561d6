"""The registry: one version of a model that a service can load without knowing anything of this pipeline."""

import dataclasses
import json
from typing import Any

import dagster as dg

from macrec_pipeline.defs.automation import FRESHNESS
from macrec_pipeline.defs.resources import DATASETS, Settings
from macrec_pipeline.defs.tracked import stage


@dg.asset(
    deps=["recommender", "evaluation_report"],
    partitions_def=DATASETS,
    group_name="registry",
    kinds={"mlflow"},
    code_version="1",
    freshness_policy=FRESHNESS,
    description="The bundle as a version of macrec-<dataset> in MLflow: @challenger, and @champion if there is none.",
)
def registered_model(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Bundle and metrics -> a model version, and a folder with `registration.json` that says which."""
    with stage(context, settings, "registered_model") as work:
        metrics = json.loads((work.folder("evaluation_report") / "metrics.json").read_text(encoding="utf-8"))
        headline = {name: value for name, value in metrics["systems"]["macrec"].items() if isinstance(value, float)}
        version = settings.tracker().register(
            work.folder("recommender") / "bundle",
            dataset=work.dataset,
            metrics=headline,
            dagster_run_id=context.run.run_id,
            run_id=work.run.run_id,
        )
        registration = dataclasses.asdict(version)
        with work.new_folder() as folder:
            text = json.dumps(registration, indent=1, sort_keys=True)
            (folder / "registration.json").write_text(text + "\n", encoding="utf-8")
        return work.report(
            summary=f"{version.uri}, now {' and '.join('@' + alias for alias in version.aliases)}",
            model=version.uri,
            aliases=list(version.aliases),
            bundle_digest=version.bundle_digest,
            model_in_mlflow=dg.MetadataValue.url(version.url),
            **headline,
        )
