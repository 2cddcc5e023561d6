"""A data set of a few rows as real files, the settings that point to it, and an empty Dagster instance."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from macrec_pipeline.datasets import dataset_names
from macrec_pipeline.defs.resources import Settings

NUM_ITEMS, NUM_USERS, LENGTH = 12, 10, 6
SPEC = """
name: {name}
title: A few lines
preset: demo
k_core: 2
source:
  reader: tables
  interactions: {{file: log.csv, user_id: user, item_id: item, timestamp: time}}
  items: {{file: items.csv, item_id: item, title: title}}
"""


@pytest.fixture(scope="session")
def partition() -> str:
    """The name of a data set that the definitions know. The test's own folder has another file of that name."""
    return dataset_names()[0]


@pytest.fixture
def settings(tmp_path: Path, partition: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with a home, a data folder and a folder of data set files that only this test uses."""
    for name in ("MLFLOW_TRACKING_URI", "MACREC_HOME", "MACREC_DATA", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    data, datasets = tmp_path / "data", tmp_path / "datasets"
    data.mkdir()
    datasets.mkdir()
    items = [f"i{item:02d},Item {item}" for item in range(NUM_ITEMS)]
    log = [
        f"u{user},i{(user + 2 * step) % NUM_ITEMS:02d},{1_600_000_000 + 1000 * user + step}"
        for user in range(NUM_USERS)
        for step in range(LENGTH)
    ]
    (data / "items.csv").write_text("\n".join(["item,title", *items]) + "\n", encoding="utf-8")
    (data / "log.csv").write_text("\n".join(["user,item,time", *log]) + "\n", encoding="utf-8")
    (datasets / f"{partition}.yaml").write_text(SPEC.format(name=partition), encoding="utf-8")
    monkeypatch.setenv("MACREC_DATASETS", str(datasets))
    return Settings(home=str(tmp_path / "home"), data=str(data))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A Dagster instance in memory."""
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def add_run(
    instance: dg.DagsterInstance,
    *,
    run_id: str | None = None,
    job: str = "full_pipeline",
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED,
    tags: dict[str, str] | None = None,
) -> dg.DagsterRun:
    """Record a run without executing anything."""
    return instance.add_run(dg.DagsterRun(job, run_id=run_id, status=status, tags=tags))
