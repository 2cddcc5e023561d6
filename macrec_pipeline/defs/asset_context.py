"""The frame around every asset: its MLflow run, its progress, and what it reports to Dagster.

`open_asset` takes Dagster's context and the settings and yields an `AssetContext`, which an asset's body uses to read
its inputs, save its output and report the result. Every output becomes a `MaterializeResult` whose data version is the
digest in the manifest.
"""

import base64
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.datasets import DatasetSpec, IndexedSource
from macrec_pipeline.defs.manifest_keys import CATALOGUE, GIVEN, INPUTS, SKIPPED
from macrec_pipeline.defs.presentation import AssetProgress, markdown
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.retries import retry_transient_errors
from macrec_pipeline.defs.run_tags import COMMAND_LINE, LAUNCHED_BY, SETTINGS_TAG
from macrec_pipeline.errors import StorageError
from macrec_pipeline.runtime.progress import Progress
from macrec_pipeline.storage import AssetStore, Manifest
from macrec_pipeline.tracking import AssetRun, metric_progress

logger = logging.getLogger(__name__)


class AssetContext:
    """What the body of an asset works with while its MLflow run is open.

    Attributes:
        name: the asset's name.
        dataset: the data set's name.
        store: the tables and folders of the data set.
        spec: the data set's file.
        data_folder: the folder that the paths in `spec` are relative to.
        config: the resolved settings.
        progress: to be passed to long-running core functions.
        mlflow_run: the MLflow run of this attempt.
        catalogue: the digest of the item order that all inputs agree on; None if no input has one.
        input_digests: the digest of each input, by asset name; kept in the manifest.
    """

    def __init__(
        self,
        name: str,
        *,
        settings: Settings,
        dataset: str,
        mlflow_run: AssetRun,
        progress: Progress,
        catalogue: str | None = None,
        input_digests: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.dataset = dataset
        self.store: AssetStore = settings.store(dataset)
        self.spec: DatasetSpec = settings.spec(dataset)
        self.config: PipelineConfig = settings.config(dataset)
        self.data_folder: Path = settings.data_folder()
        self.mlflow_run = mlflow_run
        self.progress = progress
        self.catalogue = catalogue
        self.input_digests = dict(input_digests or {})
        self._started = time.monotonic()

    @property
    def has_given_ids(self) -> bool:
        """Whether the data set provides its semantic IDs, so that nothing before them has to be computed."""
        source = self.spec.source
        return isinstance(source, IndexedSource) and bool(source.given_modalities)

    def read_table(self, asset: str) -> pl.DataFrame:
        """Read the table of an input. Raise `StorageError` if it is missing or damaged."""
        return self.store.read_table(asset)

    def scan_table(self, asset: str) -> pl.LazyFrame:
        """Scan the table of an input that may not fit in memory. Raise `StorageError` as `read_table` does."""
        return self.store.scan_table(asset)

    def folder(self, asset: str) -> Path:
        """Return the folder of an input. Raise `StorageError` if it is missing or damaged."""
        return self.store.folder(asset)

    def save_table(
        self,
        table: pl.DataFrame,
        *,
        details: Mapping[str, Any] | None = None,
        beside: Mapping[str, pl.DataFrame] | None = None,
        **metadata: Any,
    ) -> dg.MaterializeResult[Any]:
        """Write this asset's table and report it.

        Args:
            table: the rows of this asset.
            details: extra entries for the manifest.
            beside: further tables that are stored in the same version, by name.
            metadata: see `report`.
        """
        self.store.write_table(self.name, table, details=self._details(details), beside=beside)
        return self.report(summary=f"{table.height:,} rows", **{"dagster/row_count": table.height}, **metadata)

    def save_slices(
        self, slices: Iterable[pl.DataFrame], *, num_rows: int, **metadata: Any
    ) -> dg.MaterializeResult[Any]:
        """Write this asset's table slice by slice, `num_rows` in all, and report it; see `report`."""
        self.write_slices(slices)
        return self.report(summary=f"{num_rows:,} rows", **{"dagster/row_count": num_rows}, **metadata)

    def write_slices(self, slices: Iterable[pl.DataFrame], *, details: Mapping[str, Any] | None = None) -> None:
        """Write this asset's table slice by slice without a report, for metadata that is computed from the table.

        Args:
            slices: the slices.
            details: extra entries for the manifest. They are read after the last slice, so the slices may fill a list
                in them.
        """
        self.store.write_slices(self.name, slices, details=self._details(details))

    def skip(self, empty_table: pl.DataFrame, reason: str = GIVEN) -> dg.MaterializeResult[Any]:
        """Write a table without rows, record the reason in its manifest, and report that the asset was skipped."""
        self.store.write_table(self.name, empty_table, details=self._details({SKIPPED: reason}))
        return self.report(summary=f"skipped, {reason}", skipped=reason)

    @contextmanager
    def new_folder(self, *, details: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Yield an empty folder, which becomes this asset's new version when the block ends without an error."""
        with self.store.new_folder(self.name, details=self._details(details)) as folder:
            yield folder

    def log_plot(self, name: str, png: bytes) -> dg.MetadataValue[Any]:
        """Log a plot to MLflow as `plots/<name>.png` and return it as metadata for Dagster's catalogue."""
        self.mlflow_run.log_bytes(f"plots/{name}.png", png)
        return markdown(f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})")

    def report(self, *, summary: str, **metadata: Any) -> dg.MaterializeResult[Any]:
        """Log the stored asset to MLflow and to the terminal, and return what Dagster records about it.

        Args:
            summary: a few words for the terminal.
            metadata: what Dagster shows, in this order. Finite numbers are also logged to MLflow as metrics.
        """
        manifest = self.store.manifest(self.name)
        seconds = time.monotonic() - self._started
        metrics = {_metric_name(name): float(value) for name, value in metadata.items() if _is_finite_number(value)}
        self.mlflow_run.log_metrics({**metrics, "seconds": seconds})
        self.mlflow_run.set_tags({"macrec.digest": manifest.digest})
        logger.info("%-19s %s (%.1f s)", self.name, summary, seconds)
        standard_metadata: dict[str, Any] = {
            "path": dg.MetadataValue.path(self.store.address(self.name)),
            "digest": manifest.digest,
            "mlflow_run": dg.MetadataValue.url(self.mlflow_run.url),
            "seconds": round(seconds, 2),
        }
        return dg.MaterializeResult(
            asset_key=self.name,
            metadata={**metadata, **standard_metadata},
            data_version=dg.DataVersion(manifest.digest),
        )

    def _details(self, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
        catalogue = {} if self.catalogue is None else {CATALOGUE: self.catalogue}
        return {INPUTS: self.input_digests, **catalogue, **(details or {})}


@contextmanager
def open_asset(context: dg.AssetExecutionContext, settings: Settings, name: str) -> Iterator[AssetContext]:
    """Open the MLflow run of one asset of one data set, and close it as FINISHED, FAILED or KILLED.

    Args:
        context: Dagster's context of the step.
        settings: the run's settings; the overrides of its job are applied below them.
        name: the asset's name.

    Raises:
        StorageError: an input does not exist yet, or the inputs belong to different catalogues.
    """
    with retry_transient_errors(context, name):
        dataset = context.partition_key
        settings = settings.with_job_overrides(context.run.tags.get(SETTINGS_TAG, "").split())
        inputs = sorted(key.to_user_string() for key in context.assets_def.asset_deps[dg.AssetKey(name)])
        store = settings.store(dataset)
        manifests = {asset: store.manifest(asset) for asset in inputs}
        digests = {asset: manifest.digest for asset, manifest in manifests.items()}
        catalogue = _common_catalogue(name, dataset, manifests)
        config = settings.config(dataset)
        with settings.tracker().asset_run(
            dataset=dataset, asset=name, dagster_run_id=context.run.run_id, config=config, input_digests=digests
        ) as mlflow_run:
            asset_progress = AssetProgress(context.log, interactive=sys.stderr.isatty())
            try:
                yield AssetContext(
                    name,
                    settings=settings,
                    dataset=dataset,
                    mlflow_run=mlflow_run,
                    progress=metric_progress(mlflow_run, asset_progress),
                    catalogue=catalogue,
                    input_digests=digests,
                )
            except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
                _mark_as_canceling(context)
                raise
            finally:
                asset_progress.close()


def _common_catalogue(name: str, dataset: str, manifests: Mapping[str, Manifest]) -> str | None:
    """Return the item order that the inputs agree on; rows of different catalogues must not be matched by index."""
    assets_by_catalogue: dict[str, list[str]] = {}
    for asset, manifest in manifests.items():
        if CATALOGUE in manifest.details:
            assets_by_catalogue.setdefault(manifest.details[CATALOGUE], []).append(asset)
    if len(assets_by_catalogue) > 1:
        found = "; ".join(
            f"catalogue {digest[:12]}: {', '.join(assets)}" for digest, assets in assets_by_catalogue.items()
        )
        raise StorageError(
            f"{name} of {dataset} has inputs from different catalogues ({found}): items were added, removed or "
            f"reordered between them. Materialize the older inputs again, or everything with `macrec run {dataset}`."
        )
    return next(iter(assets_by_catalogue), None)


def _mark_as_canceling(context: dg.AssetExecutionContext) -> None:
    # Dagster records an interrupted run as failed unless someone requested its end. On the command line, Ctrl-C is
    # that request.
    run = context.instance.get_run_by_id(context.run.run_id)
    if run is not None and run.tags.get(LAUNCHED_BY) == COMMAND_LINE and run.status == dg.DagsterRunStatus.STARTED:
        context.instance.report_run_canceling(run, "Interrupted on the command line.")


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _metric_name(name: str) -> str:
    return name.removeprefix("dagster/")
