"""The object through which assets and commands use MLflow."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from macrec_pipeline.tracking import loading, promotion, promotion_outcome, registry, retention, runs
from macrec_pipeline.tracking.asset_run import AssetRun
from macrec_pipeline.tracking.promotion import ChampionChange
from macrec_pipeline.tracking.promotion_outcome import PromotionOutcome, PromotionProposal
from macrec_pipeline.tracking.registry import RegisteredVersion
from macrec_pipeline.tracking.store import TrackingStore, connect

if TYPE_CHECKING:
    from macrec_pipeline.config import PipelineConfig
    from macrec_pipeline.datasets import Retention


def open_tracking(home: Path, *, create: bool = True) -> Tracker:
    """Open the MLflow store of a home folder. Several processes may do so at the same time.

    The store is `MLFLOW_TRACKING_URI` or, if that is not set, a SQLite database below the home.

    Args:
        home: the folder with all state.
        create: whether to create the database if it does not exist.

    Raises:
        TrackingError: the store cannot be reached, or belongs to another MLflow version; the message is one line.
    """
    return Tracker(connect(home, create=create))


class Tracker:
    """The runs and registered models of an MLflow store; created by `open_tracking`."""

    def __init__(self, store: TrackingStore) -> None:
        self._store = store

    @property
    def uri(self) -> str:
        """The URI of the tracking store and of the model registry."""
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
        """Open a child run for the duration of a block. Its parent, one per pipeline run, is found or created.

        The run ends as FINISHED; as FAILED, with the tag `macrec.error`, if the block raises an exception; or as KILLED
        if the block is interrupted.

        Args:
            dataset: name of the data set; the experiment is `macrec/<dataset>`.
            asset: name of the asset, stored as the tag `macrec.asset`.
            dagster_run_id: id of the pipeline run, stored as the tag `dagster.run_id`.
            config: the resolved settings, stored as parameters `section.field` and in full as `config.json`.
            input_digests: asset -> digest of the version that is read, stored as parameters `input.<asset>`.
            tags: additional tags.

        Raises:
            TrackingError: the store rejects a request.
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
        """Close the parent run of a pipeline run, if it has one. Raise `TrackingError`."""
        runs.finish_parent(self._store, dataset=dataset, dagster_run_id=dagster_run_id, status=status)

    def close_interrupted_runs(self, dataset: str, dagster_run_id: str | None = None) -> int:
        """Close, as KILLED, the child runs that are RUNNING although their process is dead.

        Args:
            dataset: name of the data set.
            dagster_run_id: close only child runs of this pipeline run; its parent stays open because the pipeline run
                may be resumed. None: close child runs of all pipeline runs, and the parents without a living child.

        Returns:
            The number of child runs that were closed.

        Raises:
            TrackingError: the store rejects a request.
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
        evaluated_folder: Path | None = None,
        as_challenger: bool = True,
    ) -> RegisteredVersion:
        """Register a recommender bundle as the next version of the model `macrec-<dataset>`.

        The version becomes `@challenger`, and also `@champion` if the model has no champion.

        Args:
            bundle_folder: the result of `RecommenderBundle.write`. It must serve an example request first.
            dataset: name of the data set.
            metrics: stored as tags `metric.<name>` of the version, and as metrics of the logged model.
            dagster_run_id: stored as the tag `dagster.run_id` of the version.
            run_id: the child run that registers the bundle.
            tags: additional tags of the version.
            evaluated_folder: the bundle that the metrics belong to, if `bundle_folder` is its refit. Those of its files
                that differ are stored in the version, for `bundle(..., evaluated=True)`.
            as_challenger: false leaves all aliases as they are, for `promote_refit`.

        Raises:
            StorageError: the parts of the bundle do not belong together.
            TrackingError: the bundle cannot recommend, or the store rejects a request.
        """
        return registry.register(
            self._store,
            bundle_folder,
            dataset=dataset,
            metrics=metrics,
            dagster_run_id=dagster_run_id,
            run_id=run_id,
            tags=tags or {},
            evaluated_folder=evaluated_folder,
            as_challenger=as_challenger,
        )

    def champion(self, dataset: str) -> int | None:
        """Return the version of a data set's model that is `@champion`, or None. Raise `TrackingError`."""
        return loading.champion_version(self._store, dataset)

    def bundle(self, dataset: str, version: int, *, evaluated: bool = False) -> AbstractContextManager[Path]:
        """Provide a copy of the bundle of a version for the duration of the block.

        Args:
            dataset: name of the data set.
            version: number of the version.
            evaluated: provide the bundle that the version's metrics belong to. It differs from the served one if that
                is a refit, which has learned the test targets.

        Raises:
            TrackingError: the version does not exist, or its bundle is missing or differs from the registered one.
        """
        return loading.version_bundle(self._store, dataset, version, evaluated=evaluated)

    def decide_promotion(
        self, version: RegisteredVersion, dataset: str, proposal: PromotionProposal
    ) -> PromotionOutcome:
        """Promote a version that was just registered if its comparison allows it, and record the decision.

        The decision, its reason and its figures become tags and the description of the version.

        Args:
            version: the result of `register`.
            dataset: name of the data set.
            proposal: the result of the comparison with the champion.

        Raises:
            TrackingError: the store rejects a request.
        """
        return promotion_outcome.decide_promotion(self._store, version, dataset, proposal)

    def promote(
        self, dataset: str, *, version: int | None = None, reason: str = "", over: int | None = None
    ) -> ChampionChange:
        """Make a version of a data set's model `@champion`. If it is the champion already, nothing changes.

        Args:
            dataset: name of the data set.
            version: number of the version; None: the challenger.
            reason: recorded on the version, in the tag `macrec.decision`.
            over: promote only if this version is the champion now; None: whichever version is.

        Raises:
            ChampionMovedError: another version than `over` is the champion.
            TrackingError: the model or version does not exist, or the store rejects a request.
        """
        return promotion.promote(self._store, dataset, version=version, reason=reason, over=over)

    def promote_refit(
        self, version: RegisteredVersion, dataset: str, *, over: int, card: str, reason: str
    ) -> ChampionChange:
        """Make a new refit of the champion's evaluated model `@champion`. The challenger keeps its alias.

        Of the earlier versions of the same evaluated model, a rollback goes back to the last one only, so that weekly
        refits do not displace the other models that it can go back to.

        Args:
            version: the result of `register(..., as_challenger=False)`.
            dataset: name of the data set.
            over: the champion that was refitted.
            card: Markdown, which becomes the description of the version; the decision is appended to it.
            reason: recorded on the version, in the tag `macrec.decision`.

        Raises:
            ChampionMovedError: another version than `over` is the champion by now.
            TrackingError: the store rejects a request.
        """
        return promotion_outcome.promote_refit(self._store, version, dataset, over=over, card=card, reason=reason)

    def version_tags(self, dataset: str, version: int) -> dict[str, str]:
        """Return the tags of a version of a data set's model. Raise `TrackingError`."""
        return loading.version_tags(self._store, dataset, version)

    def rollback(self, dataset: str, *, reason: str = "") -> ChampionChange:
        """Restore the previous `@champion`. Repeated rollbacks go further back.

        Args:
            dataset: name of the data set.
            reason: recorded on the restored version, in the tag `macrec.decision`.

        Raises:
            TrackingError: there is no such model or no previous champion, or the store rejects a request.
        """
        return promotion.rollback(self._store, dataset, reason=reason)

    @contextmanager
    def retention_plan(
        self, dataset: str, limits: Retention, *, pinned: Collection[int] = ()
    ) -> Iterator[retention.MlflowPlan]:
        """List what a data set no longer needs. During the block no version can be promoted, so the plan stays valid.

        Args:
            dataset: name of the data set.
            limits: the data set's settings.
            pinned: versions that settings name, which are kept.

        Raises:
            TrackingError: the store rejects a request.
        """
        with self._store.lock("aliases"):
            yield retention.plan_mlflow(self._store, dataset, limits, pinned=pinned)

    def compact(self) -> int:
        """Give free pages of the home's database back to the file system; return the number of bytes."""
        return retention.compact_mlflow(self._store)
