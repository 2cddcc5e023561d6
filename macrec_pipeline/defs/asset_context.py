"""The frame around every asset: an MLflow child run, progress, and what a person sees of it in Dagster.

In: Dagster's context and the settings. Out: an `AssetContext` that an asset's body works with, and the
`MaterializeResult` with the manifest's digest as data version.
"""

import base64
import logging
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
from macrec_pipeline.defs.presentation import VisibleProgress, markdown
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.retries import tried_again
from macrec_pipeline.errors import StorageError
from macrec_pipeline.runtime.progress import Progress
from macrec_pipeline.storage import AssetStore, Manifest
from macrec_pipeline.tracking import AssetRun, metric_progress

logger = logging.getLogger(__name__)

LAUNCHED_BY = "macrec/launched_by"
COMMAND_LINE = "command line"
SETTINGS_TAG = "macrec/settings"
"""On a run: what its job lays over the data set's settings, as section.field=value with spaces between. A tag of the
job reaches its runs from everywhere, also where a person has replaced the run's config; that config comes after it."""
GIVEN = "semantic IDs are given"
SKIPPED = "skipped"
"""In a manifest's details: why the table has no rows."""
CATALOGUE = "catalogue"
"""In a manifest's details: the digest of the item order that the asset's `item_index` counts by."""
MAY_BE_UNTOUCHED = "may_be_untouched"
"""In the details of `items`: whether items without interactions were kept on purpose."""
INPUTS = "inputs"
"""In a manifest's details: asset -> digest of what the asset was made from."""


class AssetContext:
    """What an asset's body has in hand while its MLflow run is open.

    Attributes:
        store: the data set's tables and folders.
        config: the resolved settings.
        spec, data: the data set's file, and the folder that its paths are relative to.
        progress: to be handed to long core calls.
        run: the MLflow run.
        catalogue: the digest of the item order that everything upstream belongs to; None where that is no matter yet.
        inputs: asset -> digest of what this one is made from; kept in its manifest.
    """

    def __init__(
        self,
        asset: str,
        *,
        settings: Settings,
        dataset: str,
        run: AssetRun,
        progress: Progress,
        catalogue: str | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        self.asset = asset
        self.inputs = dict(inputs or {})
        self.catalogue = catalogue
        self.dataset = dataset
        self.store: AssetStore = settings.store(dataset)
        self.spec: DatasetSpec = settings.spec(dataset)
        self.config: PipelineConfig = settings.config(dataset)
        self.data: Path = settings.data_folder()
        self.run = run
        self.progress = progress
        self._started = time.monotonic()

    def table(self, asset: str) -> pl.DataFrame:
        """Read an upstream table, verified."""
        return self.store.read_table(asset)

    def scan(self, asset: str) -> pl.LazyFrame:
        """An upstream table that may be too large to be read as a whole, verified."""
        return self.store.scan_table(asset)

    def folder(self, asset: str) -> Path:
        """The folder of an upstream asset, verified."""
        return self.store.folder(asset)

    def save(
        self,
        table: pl.DataFrame,
        *,
        details: Mapping[str, Any] | None = None,
        beside: Mapping[str, pl.DataFrame] | None = None,
        **metadata: Any,
    ) -> dg.MaterializeResult[Any]:
        """Write the table of this asset, with `details` in its manifest, and report it; see `report`."""
        self.store.write_table(self.asset, table, details=self._details(details), beside=beside)
        return self.report(summary=f"{table.height:,} rows", **{"dagster/row_count": table.height}, **metadata)

    def save_slices(self, slices: Iterable[pl.DataFrame], *, rows: int, **metadata: Any) -> dg.MaterializeResult[Any]:
        """Write the table of this asset from its parts, `rows` together, and report it; see `report`."""
        self.write_slices(slices)
        return self.report(summary=f"{rows:,} rows", **{"dagster/row_count": rows}, **metadata)

    def write_slices(self, slices: Iterable[pl.DataFrame]) -> None:
        """Write the table of this asset from its parts, for an asset that can only be described once it is there."""
        self.store.write_slices(self.asset, slices, details=self._details())

    def skip(self, empty: pl.DataFrame, reason: str = GIVEN) -> dg.MaterializeResult[Any]:
        """Write a table without rows, with the reason in its manifest: nothing after this asset needs it."""
        self.store.write_table(self.asset, empty, details=self._details({SKIPPED: reason}))
        return self.report(summary=f"skipped, {reason}", skipped=reason)

    @contextmanager
    def new_folder(self, *, details: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """A folder to be filled; it becomes this asset, with `details`, when the block ends without an error."""
        with self.store.new_folder(self.asset, details=self._details(details)) as folder:
            yield folder

    def _details(self, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
        catalogue = {} if self.catalogue is None else {CATALOGUE: self.catalogue}
        return {INPUTS: self.inputs, **catalogue, **(details or {})}

    def plot(self, name: str, png: bytes) -> dg.MetadataValue[Any]:
        """A picture for Dagster's catalogue; MLflow keeps it as `plots/<name>.png`."""
        self.run.log_bytes(f"plots/{name}.png", png)
        return markdown(f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})")

    def report(self, *, summary: str, **metadata: Any) -> dg.MaterializeResult[Any]:
        """Log what was made to MLflow and hand it to Dagster; the manifest's digest becomes the data version.

        Args:
            summary: a few words for the terminal.
            metadata: shown in Dagster in this order; finite numbers become MLflow metrics as well.
        """
        manifest = self.store.manifest(self.asset)
        seconds = time.monotonic() - self._started
        numbers = {_metric_name(name): float(value) for name, value in metadata.items() if _is_number(value)}
        self.run.log_metrics({**numbers, "seconds": seconds})
        self.run.set_tags({"macrec.digest": manifest.digest})
        logger.info("%-19s %s (%.1f s)", self.asset, summary, seconds)
        links: dict[str, Any] = {
            "path": dg.MetadataValue.path(self.store.address(self.asset)),
            "digest": manifest.digest,
            "mlflow_run": dg.MetadataValue.url(self.run.url),
            "seconds": round(seconds, 2),
        }
        return dg.MaterializeResult(
            asset_key=self.asset, metadata={**metadata, **links}, data_version=dg.DataVersion(manifest.digest)
        )


@contextmanager
def stage(context: dg.AssetExecutionContext, settings: Settings, asset: str) -> Iterator[AssetContext]:
    """Open the MLflow run of one asset of one data set; close it as FINISHED, FAILED or KILLED.

    Raises:
        StorageError: something that the asset is made from is not there yet, or parts of it belong to different
            catalogues.
    """
    with tried_again(context, asset):
        dataset = context.partition_key
        settings = settings.over(context.run.tags.get(SETTINGS_TAG, "").split())
        upstream = sorted(key.to_user_string() for key in context.assets_def.asset_deps[dg.AssetKey(asset)])
        store = settings.store(dataset)
        manifests = {name: store.manifest(name) for name in upstream}
        digests = {name: manifest.digest for name, manifest in manifests.items()}
        catalogue = _catalogue(asset, dataset, manifests)
        config = settings.config(dataset)
        with settings.tracker().asset_run(
            dataset=dataset, asset=asset, dagster_run_id=context.run.run_id, config=config, input_digests=digests
        ) as run:
            visible = VisibleProgress(context.log, interactive=sys.stderr.isatty())
            progress = metric_progress(run, visible)
            try:
                yield AssetContext(
                    asset,
                    settings=settings,
                    dataset=dataset,
                    run=run,
                    progress=progress,
                    catalogue=catalogue,
                    inputs=digests,
                )
            except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
                _mark_as_cancelled(context)
                raise
            finally:
                visible.close()


def _catalogue(asset: str, dataset: str, manifests: Mapping[str, Manifest]) -> str | None:
    """The one that all manifests which name one agree on: rows of two would be paired by number, and never fit."""
    members: dict[str, list[str]] = {}
    for name, manifest in manifests.items():
        if CATALOGUE in manifest.details:
            members.setdefault(manifest.details[CATALOGUE], []).append(name)
    if len(members) > 1:
        found = "; ".join(f"catalogue {digest[:12]}: {', '.join(names)}" for digest, names in members.items())
        raise StorageError(
            f"{asset} of {dataset} cannot be made of different catalogues ({found}). Items have come, gone or moved in "
            f"between: materialize the older ones again, or all of it: `macrec run {dataset}`."
        )
    return next(iter(members), None)


def semantic_ids_are_given(spec: DatasetSpec) -> bool:
    """Whether the data set brings its semantic IDs, so that nothing before them has to be computed."""
    return isinstance(spec.source, IndexedSource) and spec.source.text_index is not None


def _mark_as_cancelled(context: dg.AssetExecutionContext) -> None:
    # Dagster calls an interrupted run failed unless someone asked it to end; on the command line Ctrl-C is that.
    run = context.instance.get_run_by_id(context.run.run_id)
    if run is not None and run.tags.get(LAUNCHED_BY) == COMMAND_LINE and run.status == dg.DagsterRunStatus.STARTED:
        context.instance.report_run_canceling(run, "Interrupted on the command line.")


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) != float("inf")
    )


def _metric_name(name: str) -> str:
    return name.removeprefix("dagster/")
