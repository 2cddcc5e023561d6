"""The one object that an asset holds to speak to MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from macrec_pipeline.tracking import loading, promotion, promotion_outcome, registry, runs
from macrec_pipeline.tracking.asset_run import AssetRun
from macrec_pipeline.tracking.promotion import Decision
from macrec_pipeline.tracking.promotion_outcome import PromotionOutcome, Proposal
from macrec_pipeline.tracking.registry import RegisteredVersion
from macrec_pipeline.tracking.store import TrackingStore, connect

if TYPE_CHECKING:
    from macrec_pipeline.config import PipelineConfig


def open_tracking(home: Path, *, create: bool = True) -> Tracker:
    """Open the MLflow store of a home folder.

    The store is `MLFLOW_TRACKING_URI`, else a sqlite database below the home. Safe to call from several processes.

    Args:
        home: the folder of all state.
        create: make the database if it is not there yet.

    Raises:
        TrackingError: the store cannot be reached or is of another MLflow version; one line that says which.
    """
    return Tracker(connect(home, create=create))


class Tracker:
    """Runs and registered models of one MLflow store; made by `open_tracking`."""

    def __init__(self, store: TrackingStore) -> None:
        self._store = store

    @property
    def uri(self) -> str:
        """The tracking URI, which is also the registry's."""
        return self._store.uri

    def asset_run(
        self,
        *,
        dataset: str,
        asset: str,
        dagster_run_id: str,
        config: PipelineConfig,
        input_digests: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> AbstractContextManager[AssetRun]:
        """A child run around a block; its parent, one a pipeline run, is found or made.

        The run ends as FINISHED; as FAILED, with the tag `macrec.error`, if the block raises; as KILLED if it is
        interrupted.

        Args:
            dataset: the data set's name; the experiment is `macrec/<dataset>`.
            asset: the asset's name, kept as the tag `macrec.asset`.
            dagster_run_id: the pipeline run's id, kept as the tag `dagster.run_id`.
            config: the resolved settings, kept as parameters `section.field` and, whole, as `config.json`.
            input_digests: asset -> digest of what is read, kept as parameters `input.<asset>`.
            tags: further tags.

        Raises:
            TrackingError: the store refuses.
        """
        return runs.asset_run(
            self._store,
            dataset=dataset,
            asset=asset,
            dagster_run_id=dagster_run_id,
            config=config,
            input_digests=input_digests or {},
            tags=tags or {},
        )

    def finish_pipeline(self, dataset: str, dagster_run_id: str, status: runs.Status) -> None:
        """Close the parent run of a pipeline run; nothing happens if it never got one. Raises `TrackingError`."""
        runs.finish_parent(self._store, dataset=dataset, dagster_run_id=dagster_run_id, status=status)

    def close_interrupted_runs(self, dataset: str, dagster_run_id: str | None = None) -> int:
        """Close, as KILLED, the child runs that are still RUNNING though their process is dead.

        Args:
            dataset: the data set's name.
            dagster_run_id: only this pipeline run's; its parent stays open, since the run may go on. None: those of
                every pipeline run, and the parents without a living child too.

        Returns:
            How many child runs were closed.

        Raises:
            TrackingError: the store refuses.
        """
        return runs.close_interrupted(self._store, dataset=dataset, dagster_run_id=dagster_run_id)

    def register(
        self,
        bundle_folder: Path,
        *,
        dataset: str,
        metrics: Mapping[str, float],
        dagster_run_id: str,
        run_id: str,
        tags: Mapping[str, str] | None = None,
    ) -> RegisteredVersion:
        """Register a recommender bundle as the next version of the model `macrec-<dataset>`.

        The version becomes `@challenger`, and `@champion` if there is none.

        Args:
            bundle_folder: what `RecommenderBundle.write` made; it is loaded and asked once before it is registered.
            dataset: the data set's name.
            metrics: kept as tags `metric.<name>` of the version, and as metrics of the logged model.
            dagster_run_id: kept as the tag `dagster.run_id` of the version.
            run_id: the child run that registers.
            tags: further tags of the version.

        Raises:
            StorageError: the bundle's parts do not belong together.
            TrackingError: the bundle does not answer, or the store refuses.
        """
        return registry.register(
            self._store,
            bundle_folder,
            dataset=dataset,
            metrics=metrics,
            dagster_run_id=dagster_run_id,
            run_id=run_id,
            tags=tags or {},
        )

    def champion(self, dataset: str) -> int | None:
        """The version of a data set's model that is `@champion`; None if there is none. Raises `TrackingError`."""
        return loading.champion_version(self._store, dataset)

    def bundle(self, dataset: str, version: int) -> AbstractContextManager[Path]:
        """A copy of the bundle that a version was registered with, for as long as the block lasts.

        Raises:
            TrackingError: there is no such version, or its bundle is gone or not the one that was registered.
        """
        return loading.version_bundle(self._store, dataset, version)

    def settle(self, version: RegisteredVersion, dataset: str, proposal: Proposal) -> PromotionOutcome:
        """Promote a version that was just registered if its comparison says so, and write down what was decided.

        The decision, its reason and its figures become tags and the description of the version.

        Args:
            version: what `register` returned.
            dataset: the data set's name.
            proposal: what a comparison with the champion says.

        Raises:
            TrackingError: the store refuses.
        """
        return promotion_outcome.settle(self._store, version, dataset, proposal)

    def promote(
        self, dataset: str, *, version: int | None = None, reason: str = "", over: int | None = None
    ) -> Decision:
        """Make a version of a data set's model `@champion`; nothing happens if it is.

        Args:
            dataset: the data set's name.
            version: its number; None for the challenger.
            reason: kept on the version, in the tag `macrec.decision`.
            over: only if this version is champion now; None: whoever is.

        Raises:
            ChampionMovedError: another version than `over` is champion.
            TrackingError: there is no such model or version, or the store refuses.
        """
        return promotion.promote(self._store, dataset, version=version, reason=reason, over=over)

    def rollback(self, dataset: str, *, reason: str = "") -> Decision:
        """Make the champion before the present one `@champion` again; once more goes to the one before that.

        Args:
            dataset: the data set's name.
            reason: kept on the version that returns, in the tag `macrec.decision`.

        Raises:
            TrackingError: there is no such model or no champion before, or the store refuses.
        """
        return promotion.rollback(self._store, dataset, reason=reason)
