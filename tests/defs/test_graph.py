"""The asset graph as a contract: names, dependencies, groups and checks. Loading it is quick and silent."""

import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from macrec_pipeline.datasets import dataset_names
from macrec_pipeline.definitions import defs
from macrec_pipeline.schemas import TABLES

ROOT = Path(__file__).resolve().parents[2]

GRAPH = {
    "raw_interactions": ("ingestion", set()),
    "raw_items": ("ingestion", set()),
    "interactions": ("ingestion", {"raw_interactions", "raw_items"}),
    "items": ("ingestion", {"raw_interactions", "raw_items"}),
    "quarantine": ("ingestion", {"raw_interactions", "raw_items"}),
    "histories": ("ingestion", {"interactions", "items"}),
    "text_embeddings": ("embeddings", {"items"}),
    "image_embeddings": ("embeddings", {"items"}),
    "sasrec": ("collaborative", {"histories", "items"}),
    "pseudo_labels": ("semantic_ids", {"text_embeddings", "image_embeddings"}),
    "quantizer": ("semantic_ids", {"items", "text_embeddings", "image_embeddings", "pseudo_labels", "sasrec"}),
    "semantic_ids": (
        "semantic_ids",
        {"items", "histories", "text_embeddings", "image_embeddings", "quantizer", "sasrec"},
    ),
    "recommender": ("recommender", {"histories", "items", "quantizer", "semantic_ids", "sasrec"}),
    "predictions": ("recommender", {"histories", "items", "recommender", "sasrec"}),
    "evaluation_report": (
        "evaluation",
        {
            "interactions",
            "items",
            "quarantine",
            "histories",
            "text_embeddings",
            "image_embeddings",
            "semantic_ids",
            "quantizer",
            "recommender",
            "predictions",
        },
    ),
    "champion_comparison": ("evaluation", {"histories", "items", "recommender"}),
    "champion_evaluation": ("monitoring", {"histories", "items"}),
    "refitted_recommender": (
        "recommender",
        {
            "interactions",
            "histories",
            "items",
            "quantizer",
            "semantic_ids",
            "sasrec",
            "recommender",
            "evaluation_report",
        },
    ),
    "champion_refit": (
        "recommender",
        {
            "interactions",
            "items",
            "histories",
            "text_embeddings",
            "image_embeddings",
            "sasrec",
            "semantic_ids",
            "champion_comparison",
        },
    ),
    "registered_model": (
        "registry",
        {"recommender", "refitted_recommender", "evaluation_report", "champion_comparison", "champion_refit"},
    ),
    "recommendations": ("recommendations", {"registered_model"}),
}
BLOCKING_CHECKS = {
    ("interactions", "interactions_are_sound"),
    ("items", "items_are_sound"),
    ("histories", "no_leakage"),
    ("text_embeddings", "text_embeddings_are_sound"),
    ("image_embeddings", "image_embeddings_are_sound"),
    ("semantic_ids", "semantic_ids_are_unique"),
    ("semantic_ids", "quality_is_within_limits"),
}


@pytest.fixture(scope="module")
def specs() -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


def test_the_assets_and_their_dependencies_are_the_contract(specs: dict[str, dg.AssetSpec]) -> None:
    """Others build on the names, groups and dependencies, so changing one is changing the contract."""
    found = {
        name: (spec.group_name, {dep.asset_key.to_user_string() for dep in spec.deps}) for name, spec in specs.items()
    }
    assert found == GRAPH


def test_every_asset_describes_itself(specs: dict[str, dg.AssetSpec]) -> None:
    """Each asset has a description, kinds and a code version. A table shows its columns before it exists."""
    for name, spec in specs.items():
        assert len(spec.description or "") > 40, name
        assert spec.kinds, name
        assert spec.code_version, name
        if name in TABLES:
            schema = spec.metadata["dagster/column_schema"]
            assert [column.name for column in schema.columns] == list(TABLES[name].columns), name


def test_every_asset_is_partitioned_by_data_set(specs: dict[str, dg.AssetSpec]) -> None:
    """Each YAML file is a partition of every asset, so that data sets are never mixed."""
    for name, spec in specs.items():
        assert isinstance(spec.partitions_def, dg.StaticPartitionsDefinition), name
        assert list(spec.partitions_def.get_partition_keys()) == dataset_names(), name


def test_bad_data_is_stopped_by_blocking_checks() -> None:
    """A check blocks if bad data would spoil the assets downstream. The comparison with popularity only warns."""
    found = {}
    for checks in defs.asset_checks or []:
        for spec in checks.check_specs:
            found[spec.asset_key.to_user_string(), spec.name] = spec.blocking
            assert spec.partitions_def is not None
            assert len(spec.description or "") > 30
    assert {check for check, blocking in found.items() if blocking} == BLOCKING_CHECKS
    assert set(found) - BLOCKING_CHECKS == {
        ("evaluation_report", "macrec_beats_popularity"),
        ("evaluation_report", "new_items_are_recommended"),
        ("champion_evaluation", "champion_beats_popularity"),
    }


def test_assets_that_fill_the_machine_share_a_pool() -> None:
    """Each of these assets fills the GPU or all cores, so they share a pool that the instance limits to one."""
    pools = {asset.op.name: asset.op.pool for asset in defs.assets or [] if isinstance(asset, dg.AssetsDefinition)}
    trained = {"sasrec", "quantizer", "recommender", "refitted_recommender", "champion_refit"}
    decoded = {"text_embeddings", "image_embeddings", "predictions", "recommendations"}
    decoded |= {"champion_comparison", "champion_evaluation"}
    assert {name for name, pool in pools.items() if pool == "gpu"} == trained | decoded


def test_jobs_and_sensors_exist() -> None:
    """One job builds a model and another evaluates the champion. Sensors that close MLflow runs are on by default."""

    def assets(job: str) -> set[str]:
        return {key.to_user_string() for key in defs.resolve_job_def(job).asset_layer.executable_asset_keys}

    assert assets("full_pipeline") == set(GRAPH) - {"champion_evaluation", "recommendations"}
    ingestion = {name for name, (group, _) in GRAPH.items() if group == "ingestion"}
    assert assets("evaluate_champion") == ingestion | {"champion_evaluation"}
    status = {sensor.name: sensor.default_status for sensor in defs.sensors or []}
    closing = ("finish_mlflow_runs", "fail_mlflow_runs", "kill_mlflow_runs")
    assert {name: status.pop(name) for name in closing} == dict.fromkeys(closing, dg.DefaultSensorStatus.RUNNING)
    assert status.pop("tell_of_failures") == dg.DefaultSensorStatus.RUNNING
    assert status == {"make_again_what_changed": dg.DefaultSensorStatus.STOPPED}


def test_dagster_is_imported_in_defs_only() -> None:
    """Everything except `defs/` and the entry point must run where Dagster is not installed."""
    for path in sorted((ROOT / "macrec_pipeline").rglob("*.py")):
        inside = "defs" in path.relative_to(ROOT).parts or path.name == "definitions.py"
        lines = path.read_text(encoding="utf-8").splitlines()
        # `dagster_pipes` is a separate package, for processes without Dagster
        imports = [line for line in lines if re.match(r"\s*(import|from) dagster\b", line)]
        assert inside or not imports, f"{path}: {imports}"


def test_loading_the_definitions_is_quick_and_silent() -> None:
    """Every process of Dagster loads them: without torch, MLflow or a warning, and in less than three seconds."""
    code = (
        "import sys, time\nbegun = time.process_time()\nimport macrec_pipeline.definitions\n"
        "seconds = time.process_time() - begun\n"
        "heavy = {'torch', 'mlflow', 'transformers', 'matplotlib', 'faiss'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else f'took {seconds:.1f} s' if seconds >= 3 else 0)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
