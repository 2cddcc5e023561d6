"""`Settings`, the one resource: where an asset finds its data set, its settings, its tables and its tracker.

Values come from the run config (the launchpad or the command line), and otherwise from the environment when the run
starts.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.datasets import DatasetSpec, dataset_names, load_dataset
from macrec_pipeline.errors import ConfigError
from macrec_pipeline.home import Home, home_of
from macrec_pipeline.presets import common_settings, merge_layers, parse_overrides
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
        description="Settings that replace those of the data set, each as section.field=value. The last one wins. The "
        "command line uses them; in the Launchpad, the sections beside this list are checked earlier.",
    )
    # Annotated as anything, because Dagster accepts no null as a value of a mapping.
    sections: Any = Field(
        default_factory=dict,
        description="Settings that replace those of the data set, as {section: {setting: value}}.",
    )
    job_overrides: list[str] = Field(
        default_factory=list,
        description="Settings that come with the run's job, each as section.field=value. Every other setting of the "
        "run wins over them.",
    )

    @classmethod
    def from_run_config(cls, config: Mapping[str, Any]) -> "Settings":
        """Return the settings that a run's config has at `resources.settings.config`."""
        own = {name: config[name] for name in ("home", "data", "overrides") if config.get(name) is not None}
        return cls(**own, sections={name: value for name, value in config.items() if name not in cls.model_fields})

    def with_job_overrides(self, overrides: Sequence[str]) -> "Settings":
        """Return the same settings with the overrides of a job below the ones given here."""
        return Settings(
            home=self.home,
            data=self.data,
            overrides=self.overrides,
            sections=self.sections,
            job_overrides=[*overrides, *self.job_overrides],
        )

    def run_values(self) -> dict[str, Any]:
        """Return the settings of the run itself, from `overrides` and `sections`, as {section: {setting: value}}.

        Raises:
            ConfigError: a string does not set anything, or a setting has a value in both places.
        """
        strings = parse_overrides(self.overrides)
        twice = common_settings(strings, self.sections)
        if twice:
            names = ", ".join(f"`{name}`" for name in twice)
            raise ConfigError(
                f"Both the list `overrides` and the sections of the run config set {names}. Keep one of the two values."
            )
        return merge_layers(strings, self.sections)

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
        return self.spec(dataset).config(merge_layers(parse_overrides(self.job_overrides), self.run_values()))

    def store(self, dataset: str) -> AssetStore:
        """Return the tables and folders of a data set. Raise `ConfigError`."""
        home = self._home()
        return AssetStore(home.folder, dataset, url=home.url)

    def tracker(self) -> Tracker:
        """Open the MLflow store of this home. Raise `TrackingError`."""
        return open_tracking(self.home_folder())

    def _home(self) -> Home:
        return home_of(self.home or os.environ.get("MACREC_HOME") or ".macrec")
