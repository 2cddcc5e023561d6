"""`Settings`, the one resource: where an asset finds its data set, its settings, its tables and its tracker.

Values come from the run config (the launchpad or the command line), and otherwise from the environment when the run
starts.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
from pydantic import Field

from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.datasets import DatasetSpec, dataset_names, load_dataset
from macrec_pipeline.home import Home, home_of
from macrec_pipeline.presets import parse_overrides
from macrec_pipeline.storage import AssetStore
from macrec_pipeline.tracking import Tracker, open_tracking

# Every YAML file in `datasets/` is a partition of every asset. A new file appears when the code location is reloaded.
DATASETS = dg.StaticPartitionsDefinition(dataset_names())

# Assets that fill the GPU, or all cores where there is none, share this pool, which runs one of them at a time.
GPU_POOL = "gpu"


class Settings(dg.ConfigurableResource):  # type: ignore[type-arg]  # it yields itself, as every plain resource does
    """Folders and overrides of a run. A folder that is not set is read from the environment when the run starts."""

    home: str | None = Field(
        default=None,
        description="Folder that holds all state, or the URL where tables and models are published. "
        "If not set: the environment variable MACREC_HOME, or else ./.macrec.",
    )
    data: str | None = Field(
        default=None,
        description="Folder that the paths in data set files are relative to. "
        "If not set: the environment variable MACREC_DATA, or else ./data.",
    )
    overrides: list[str] = Field(
        default_factory=list,
        description="Settings that replace those of the data set, each as section.field=value. The last one wins.",
    )

    def with_job_overrides(self, overrides: Sequence[str]) -> "Settings":
        """Return the same settings with the overrides of a job below the ones given here."""
        return Settings(home=self.home, data=self.data, overrides=[*overrides, *self.overrides])

    def home_folder(self) -> Path:
        """Return the absolute folder of the state on this machine. Raise `ConfigError`."""
        return self._home().folder

    def data_folder(self) -> Path:
        """Return the absolute folder that the paths in data set files are relative to."""
        return Path(self.data or os.environ.get("MACREC_DATA") or "data").absolute()

    def spec(self, dataset: str) -> DatasetSpec:
        """Load and validate the data set's file. Raise `ConfigError`."""
        return load_dataset(dataset)

    def config(self, dataset: str) -> PipelineConfig:
        """Resolve the settings for a data set: preset, then data set file, then overrides. Raise `ConfigError`."""
        return self.spec(dataset).config(parse_overrides(self.overrides))

    def store(self, dataset: str) -> AssetStore:
        """Return the tables and folders of a data set. Raise `ConfigError`."""
        home = self._home()
        return AssetStore(home.folder, dataset, url=home.url)

    def tracker(self) -> Tracker:
        """Open the MLflow store of this home. Raise `TrackingError`."""
        return open_tracking(self.home_folder())

    def _home(self) -> Home:
        return home_of(self.home or os.environ.get("MACREC_HOME") or ".macrec")
