"""The asset graph as a contract: names, dependencies, groups, checks; and that loading it is quick and quiet."""

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
    "semantic_ids": ("semantic_ids", {"items", "histories", "text_embeddings", "image_embeddings", "quantizer"}),
    "recommender": ("recommender", {"histories", "items", "semantic_ids", "sasrec"}),
    "predictions": ("recommender", {"histories", "recommender", "sasrec"}),
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
    "registered_model": ("registry", {"recommender", "evaluation_report"}),
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
    """Names, groups and dependencies are what others build on; a change of them is a change of the contract."""
    found = {
        name: (spec.group_name, {dep.asset_key.to_user_string() for dep in spec.deps}) for name, spec in specs.items()
    }
    assert found == GRAPH


def test_every_asset_tells_a_person_what_it_is(specs: dict[str, dg.AssetSpec]) -> None:
    """Each asset has a description, kinds and a code version, and a table shows its columns before it is made."""
    for name, spec in specs.items():
        assert len(spec.description or "") > 40, name
        assert spec.kinds, name
        assert spec.code_version, name
        if name in TABLES:
            schema = spec.metadata["dagster/column_schema"]
            assert [column.name for column in schema.columns] == list(TABLES[name].columns), name


def test_every_asset_is_partitioned_by_data_set(specs: dict[str, dg.AssetSpec]) -> None:
    """Each YAML file is a partition of every asset, so that data sets never mix."""
    for name, spec in specs.items():
        assert isinstance(spec.partitions_def, dg.StaticPartitionsDefinition), name
        assert list(spec.partitions_def.get_partition_keys()) == dataset_names(), name


def test_bad_data_is_stopped_by_blocking_checks() -> None:
    """Where bad data would poison what follows, a check blocks; the comparison with popularity only warns."""
    found = {}
    for checks in defs.asset_checks or []:
        for spec in checks.check_specs:
            found[spec.asset_key.to_user_string(), spec.name] = spec.blocking
            assert spec.partitions_def is not None
            assert len(spec.description or "") > 30
    assert {check for check, blocking in found.items() if blocking} == BLOCKING_CHECKS
    assert set(found) - BLOCKING_CHECKS == {("evaluation_report", "macrec_beats_popularity")}


def test_one_training_at_a_time() -> None:
    """All trainings fill the machine, so they share a pool that the instance limits to one."""
    pools = {asset.op.name: asset.op.pool for asset in defs.assets or [] if isinstance(asset, dg.AssetsDefinition)}
    assert {name for name, pool in pools.items() if pool == "training"} == {"sasrec", "quantizer", "recommender"}


def test_jobs_and_sensors_are_there() -> None:
    """The full job holds every asset; the sensors that close MLflow runs run without anybody's doing."""
    job = defs.resolve_job_def("full_pipeline")
    assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == set(GRAPH)
    sensors = list(defs.sensors or [])
    assert len(sensors) == 3
    for sensor in sensors:
        assert isinstance(sensor, dg.SensorDefinition)
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING


def test_dagster_is_imported_in_defs_only() -> None:
    """Everything but `defs/` and the entry point must run where Dagster is not installed."""
    for path in sorted((ROOT / "macrec_pipeline").rglob("*.py")):
        inside = "defs" in path.relative_to(ROOT).parts or path.name == "definitions.py"
        lines = path.read_text(encoding="utf-8").splitlines()
        imports = [line for line in lines if line.strip().startswith(("import dagster", "from dagster"))]
        assert inside or not imports, f"{path}: {imports}"


def test_loading_the_definitions_is_quick_and_quiet() -> None:
    """Dagster loads them in every process that it starts: no torch, no MLflow, no warning, under three seconds."""
    code = (
        "import sys, time\nbegun = time.process_time()\nimport macrec_pipeline.definitions\n"
        "seconds = time.process_time() - begun\n"
        "heavy = {'torch', 'mlflow', 'transformers', 'matplotlib', 'faiss'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else f'took {seconds:.1f} s' if seconds >= 3 else 0)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
