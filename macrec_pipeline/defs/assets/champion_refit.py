"""The refit of the champion, if the challenger is refused: its evaluated weights, trained on everything there is today.

So the champion that is served knows the newest items and interactions whoever wins (docs/decisions/031). Promotion
keeps comparing the evaluated bundle, which the version of the refit contains too.
"""

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from macrec_pipeline.defs.asset_context import AssetContext, open_asset
from macrec_pipeline.defs.assets.champion import COMPARISON
from macrec_pipeline.defs.assets.recommender import write_serving_bundle
from macrec_pipeline.defs.assets.refit import all_interactions, refit_progress, train_refit
from macrec_pipeline.defs.ids.champion import champion_codes
from macrec_pipeline.defs.manifest_keys import CHALLENGER, CHAMPION, SKIPPED
from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.defs.table_conversion import training_sequences
from macrec_pipeline.errors import SemanticIdError

if TYPE_CHECKING:
    from macrec_pipeline.recommender import ChampionRefitPlan

logger = logging.getLogger(__name__)

_SKIPPED_FILE, _REFIT_FILE = "skipped.json", "refit.json"
_LEARNED_FROM = ("interactions", "items")
"""The assets whose digests in the champion's bundle say whether it has learned all that there is today."""


@dg.asset(
    deps=[
        "interactions",
        "items",
        "histories",
        "text_embeddings",
        "image_embeddings",
        "sasrec",
        "semantic_ids",
        "champion_comparison",
    ],
    partitions_def=DATASETS,
    group_name="recommender",
    kinds={"torch", "safetensors"},
    code_version="1",
    pool=GPU_POOL,
    description="If the challenger was refused and `promotion.automatic` is on: the champion's evaluated weights, "
    "trained on all interactions. Items that the champion did not know get IDs, and all others keep theirs. "
    "`registered_model` registers it in the champion's place. Look at `skipped` or `epochs`.",
)
def champion_refit(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Refit the champion and write its bundle, or store a note that there is nothing to refit."""
    with open_asset(context, settings, "champion_refit") as asset:
        comparison = json.loads((asset.folder("champion_comparison") / COMPARISON).read_text(encoding="utf-8"))
        if reason := _why_not(asset, comparison):
            return _skip(asset, reason)
        champion, tracker = comparison["champion"], settings.tracker()
        with asset.store.scratch("champion_refit") as scratch, ExitStack() as bundles:
            scratch.mkdir(parents=True, exist_ok=True)
            served = bundles.enter_context(tracker.bundle(asset.dataset, champion))
            if _has_learned_everything(asset, served):
                return _skip(asset, f"version {champion} has learned all interactions and items of today already")
            evaluated = bundles.enter_context(tracker.bundle(asset.dataset, champion, evaluated=True))
            try:
                refit = _ChampionRefit(context, asset, scratch, served, evaluated)
            except SemanticIdError as error:
                logger.warning("The champion, version %s, is not refitted, and stays as it is. %s", champion, error)
                return _skip(asset, f"no IDs for today's items: {error}")
            details = {CHAMPION: champion, CHALLENGER: comparison["bundle_digest"]}
            with asset.new_folder(details=details) as folder:
                facts = refit.write(folder)
        return asset.report(
            summary=f"version {champion}, epochs: {facts['epochs']}, on all {facts['interactions']:,} interactions",
            champion=champion,
            **facts,
        )


def refitted_champion(asset: AssetContext, *, challenger: str) -> tuple[int, Path, dict[str, Any]] | None:
    """Return the champion that was refitted, the bundle of its refit, and what `refit.json` says about it.

    Args:
        asset: the registration.
        challenger: digest of the evaluated bundle that is registered. A refit that belongs to another one is out of
            date.

    Returns:
        None if no champion was refitted in this challenger's favour.
    """
    details = asset.store.manifest("champion_refit").details
    if SKIPPED in details or details[CHALLENGER] != challenger:
        return None
    folder = asset.folder("champion_refit")
    return details[CHAMPION], folder / "bundle", json.loads((folder / _REFIT_FILE).read_text(encoding="utf-8"))


def _why_not(asset: AssetContext, comparison: dict[str, Any]) -> str | None:
    """Return why the champion is left as it is; None if it is to be refitted."""
    config = asset.config
    if not config.refit.enabled:
        return "refit.enabled is false"
    if not config.promotion.refit_champion:
        return "promotion.refit_champion is false"
    if not config.promotion.automatic:
        return "promotion.automatic is false, so only a person changes the champion"
    if "card" not in comparison:
        return comparison["problem"] or "there is no champion yet"
    return "the challenger may replace the champion" if comparison["passed"] else None


def _has_learned_everything(asset: AssetContext, served: Path) -> bool:
    from macrec_pipeline.recommender import read_contents

    learned = read_contents(served).description["provenance"].get("inputs", {})
    return all(learned.get(name) == asset.store.manifest(name).digest for name in _LEARNED_FROM)


def _skip(asset: AssetContext, reason: str) -> dg.MaterializeResult[Any]:
    with asset.new_folder(details={SKIPPED: reason}) as folder:
        (folder / _SKIPPED_FILE).write_text(json.dumps({"skipped": reason}) + "\n", encoding="utf-8")
    return asset.report(summary=f"skipped, {reason}", skipped=reason)


class _ChampionRefit:
    """Trains a champion's models and writes the bundle of the refit.

    Args:
        context: Dagster's context of the step.
        asset: the asset.
        scratch: an existing folder for files that nothing else reads.
        served: the bundle that the champion serves.
        evaluated: the bundle that its metrics belong to.

    Raises:
        SemanticIdError: today's items cannot get IDs that the champion understands.
    """

    def __init__(
        self, context: dg.AssetExecutionContext, asset: AssetContext, scratch: Path, served: Path, evaluated: Path
    ) -> None:
        from macrec_pipeline.recommender import read_contents, unpack_models
        from macrec_pipeline.runtime.devices import prepare_device

        self._context, self._asset, self._scratch = context, asset, scratch
        self._evaluated_bundle = evaluated
        known = read_contents(served)
        self._evaluated, self._quantizer = read_contents(evaluated), known.quantizer
        self._codes = champion_codes(asset, known, prepare_device(asset.config.runtime))
        self._learned = all_interactions(asset)
        self._weights, self._sasrec = unpack_models(evaluated, self._evaluated, scratch)

    def write(self, folder: Path) -> dict[str, Any]:
        """Train, write the bundle and `refit.json`, and return what that file says."""
        from macrec_pipeline.tracking.registry import bundle_digest

        asset, description = self._asset, self._evaluated.description
        plan = self._plan()
        sasrec = self._refit_sasrec(plan)
        weights = self._refit_recommender(plan)
        facts: dict[str, Any] = {
            "method": "continue",
            "epochs": plan.recommender.num_epochs,
            "interactions": sum(map(len, self._learned)),
            "evaluated_bundle": bundle_digest(self._evaluated_bundle),
        }
        (folder / _REFIT_FILE).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        (folder / "bundle").mkdir()
        write_serving_bundle(
            asset,
            folder / "bundle",
            weights=weights,
            sasrec=sasrec,
            quantizer_files=sorted(self._quantizer.iterdir()) if self._quantizer else [],
            codebook_size=description["codebook_size"],
            learned=self._learned,
            inputs=_LEARNED_FROM,
            provenance={"refit": facts},
            codes=self._codes,
            decoding=description["decoding"],
        )
        return facts | {"changed_share": plan.changed_share}

    def _plan(self) -> "ChampionRefitPlan":
        from macrec_pipeline.recommender import plan_champion_refit

        items = self._asset.read_table("items")["item_id"].to_list()
        training = training_sequences(self._asset.read_table("histories"))
        return plan_champion_refit(
            self._evaluated.description,
            self._asset.config,
            num_learned=self._evaluated.num_learned,
            num_training=sum(len(sequence) - 2 for sequence in training),
            num_new_items=len(set(items) - set(self._evaluated.item_ids)),
            num_items=len(items),
        )

    def _refit_sasrec(self, plan: "ChampionRefitPlan") -> Path | None:
        """Train SASRec on, with the items of today, and return its folder."""
        from macrec_pipeline.recommender import SasrecStart, fit_sasrec
        from macrec_pipeline.runtime.devices import prepare_device

        if plan.sasrec is None or self._sasrec is None:
            return None
        item_ids = self._asset.read_table("items")["item_id"].to_list()
        fitted = fit_sasrec(
            self._learned,
            num_items=len(item_ids),
            config=plan.sasrec,
            seed=self._asset.config.seed,
            device=prepare_device(self._asset.config.runtime),
            progress=refit_progress(self._asset),
            checkpoint=self._scratch / "sasrec.safetensors",
            start=SasrecStart(self._sasrec, item_ids, plan.sasrec),
            refit_epochs=plan.sasrec.max_epochs,
        )
        folder = self._scratch / "refitted-sasrec"
        folder.mkdir(exist_ok=True)
        fitted.save(folder)
        return folder

    def _refit_recommender(self, plan: "ChampionRefitPlan") -> Path:
        """Train the recommender on, and return its folder with the fusion weights of the evaluated model."""
        from macrec_pipeline.recommender.retrieval.fusion_fitting import load_fusion, save_fusion

        fitted = train_refit(
            self._context,
            self._asset,
            self._scratch,
            self._learned,
            self._codes,
            codebook_size=self._evaluated.description["codebook_size"],
            config=plan.recommender,
            num_epochs=plan.recommender.num_epochs,
            start=self._weights,
        )
        folder = self._scratch / "refitted-recommender"
        folder.mkdir(exist_ok=True)
        fitted.save(folder)
        if (fusion := load_fusion(self._weights)) is not None:
            save_fusion(fusion, folder)
        return folder
