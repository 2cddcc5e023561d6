"""Where an asset finds its data set, its settings, its tables and its tracker.

In: the environment at run time, and what the launchpad or the command line says. Out: `Settings`, the one resource.
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

# Every YAML file in `datasets/` is a partition of every asset; a new file shows up when the code location is reloaded.
DATASETS = dg.StaticPartitionsDefinition(dataset_names())

# All that fills the GPU, or the cores where there is none, shares it: the instance lets one of them run at a time.
GPU_POOL = "gpu"


class Settings(dg.ConfigurableResource):  # type: ignore[type-arg]  # it yields itself, as every plain resource does
    """Folders and overrides of a run. An unset folder is read from the environment when the run starts."""

    home: str | None = Field(
        default=None, description="folder of all state, or URL of tables and models; unset: MACREC_HOME, else ./.macrec"
    )
    data: str | None = Field(
        default=None, description="folder that data set files are relative to; unset: MACREC_DATA, else ./data"
    )
    overrides: list[str] = Field(
        default_factory=list, description="settings laid over the data set's own, each section.field=value"
    )

    def over(self, overrides: Sequence[str]) -> "Settings":
        """The same, with its own overrides laid over these."""
        return Settings(home=self.home, data=self.data, overrides=[*overrides, *self.overrides])

    def home_folder(self) -> Path:
        """The absolute folder of the state on this machine. Raises `ConfigError`."""
        return self._home().folder

    def data_folder(self) -> Path:
        """The absolute folder that the paths in data set files are relative to."""
        return Path(self.data or os.environ.get("MACREC_DATA") or "data").absolute()

    def spec(self, dataset: str) -> DatasetSpec:
        """The data set's file, checked. Raises `ConfigError`."""
        return load_dataset(dataset)

    def config(self, dataset: str) -> PipelineConfig:
        """The settings of a run on this data set: preset, data set file, overrides. Raises `ConfigError`."""
        return self.spec(dataset).config(parse_overrides(self.overrides))

    def store(self, dataset: str) -> AssetStore:
        """The tables and folders of this data set. Raises `ConfigError`."""
        home = self._home()
        return AssetStore(home.folder, dataset, url=home.url)

    def tracker(self) -> Tracker:
        """The MLflow store of this home. Raises `TrackingError`."""
        return open_tracking(self.home_folder())

    def _home(self) -> Home:
        return home_of(self.home or os.environ.get("MACREC_HOME") or ".macrec")
