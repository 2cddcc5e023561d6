"""Compare the evaluated model with its refit on the period after the log, at several moments of a log.

    python -m benchmarks.accuracy.refit DATASET [--home HOME] [--data DATA] [--shares 0.7 0.8 0.9] [--methods METHOD]
        [--set NAME=VALUE]

At each moment the log is cut, as if the moment were the present. The evaluated model is trained on that log without
each user's last two items, and refitted on all of it in both ways. Then every user with an interaction in the next
period is recommended to from the whole history before the moment; the target is the user's first item in that period.
No model has seen it. Differences are paired over users, with 95% bootstrap intervals, and seconds are those of the
processor.

With `--home`, a finished run of the data set provides the semantic IDs, which were assigned on the whole log. They are
the same for all models, so the differences are not affected unless the IDs were made from SASRec's vectors. Without a
home, SASRec alone is trained and measured. Results go to `benchmarks/accuracy/results/refit-DATASET.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items
from macrec_pipeline.datasets import DatasetSpec, load_dataset
from macrec_pipeline.defs.table_conversion import codes_by_modality
from macrec_pipeline.evaluation.metrics import MISSED, hit_rate, ndcg
from macrec_pipeline.evaluation.statistics import paired_differences
from macrec_pipeline.presets import parse_overrides
from macrec_pipeline.recommender import (
    FittedRecommender,
    FittedSasrec,
    fit_recommender,
    fit_sasrec,
    plan_recommender_refit,
    plan_sasrec_refit,
)
from macrec_pipeline.recommender.model.history_encoding import ItemCodes
from macrec_pipeline.recommender.retrieval.fusion import CalibratedFusion
from macrec_pipeline.recommender.retrieval.fusion_fitting import fit_fusion
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever, rank_catalogue
from macrec_pipeline.runtime.seeds import numpy_generator
from macrec_pipeline.storage import AssetStore

RESULTS = Path(__file__).with_name("results")
METHODS = ("from_scratch", "continue")
MIN_HISTORY, CUTOFF, CPU = 3, 10, torch.device("cpu")
Recommend = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True)
class Moment:
    """A log as it was at a moment, and what came next.

    Attributes:
        share: of the log that lies before the moment.
        histories: of every user with at least three interactions before the moment, oldest first.
        users: positions in `histories` of the users with an interaction in the next period.
        targets: the first item of each of these users in that period.
    """

    share: float
    histories: list[np.ndarray]
    users: list[int]
    targets: np.ndarray


def moments(interactions: pl.DataFrame, shares: Sequence[float], period: float) -> list[Moment]:
    """Cut a log with `user_id`, `item_index` and `timestamp` at shares of its rows; a period is a share of them too."""
    times = np.sort(interactions["timestamp"].to_numpy())
    times = np.append(times, times[-1] + 1)
    found = []
    for share in shares:
        begin, end = (int(times[int(round(part * (len(times) - 1), 6))]) for part in (share, share + period))
        before = interactions.filter(pl.col("timestamp") < begin)
        past = before.group_by("user_id", maintain_order=True).agg("item_index")
        past = past.filter(pl.col("item_index").list.len() >= MIN_HISTORY)
        later = interactions.filter(pl.col("timestamp").is_between(begin, end, closed="left"))
        first = later.group_by("user_id", maintain_order=True).agg(target=pl.col("item_index").first())
        joined = past.join(first, on="user_id", how="left", maintain_order="left")
        users = np.flatnonzero(joined["target"].is_not_null().to_numpy())
        targets = joined["target"].drop_nulls().to_numpy()
        histories = [items.to_numpy(writable=True) for items in past["item_index"]]
        found.append(Moment(share, histories, users.tolist(), targets))
    return found


def read_log(
    spec: DatasetSpec, config: PipelineConfig, *, data: Path, home: Path | None
) -> tuple[pl.DataFrame, int, dict[str, np.ndarray]]:
    """Return the clean log, the number of items, and the semantic IDs: none without a home."""
    codes: dict[str, np.ndarray] = {}
    if home is None:
        tables = clean(read_raw_interactions(spec, data), read_raw_items(spec, data), config.cleaning)
        interactions, items = tables.interactions, tables.items
    else:
        store = AssetStore(home, spec.name)
        interactions, items = store.read_table("interactions"), store.read_table("items")
        codes = codes_by_modality(store.read_table("semantic_ids"))
    log = interactions.join(items.select("item_id", "item_index"), on="item_id", maintain_order="left")
    return log.select("user_id", "item_index", "timestamp"), items.height, codes


def measure(
    moment: Moment,
    num_items: int,
    codes: Mapping[str, np.ndarray],
    config: PipelineConfig,
    methods: Sequence[str] = METHODS,
) -> dict[str, Any]:
    """Train, refit the recommender and SASRec in each way, and compare on the next period."""
    seconds: dict[str, float] = {}
    epochs: dict[str, Any] = {}
    lengths = np.array([len(history) for history in moment.histories])
    blinded = [np.append(history[:-1], 0) for history in moment.histories]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.process_time()
        sasrec = _sasrec(blinded, num_items, config) if _needs_sasrec(codes, config) else None
        model = _recommender(blinded, codes, config) if codes else None
        seconds["training"] = time.process_time() - started
        for part, fitted in (("sasrec", sasrec), ("recommender", model)):
            if fitted is not None:
                (folder / part).mkdir()
                fitted.save(folder / part)
        fusion = None
        if model is not None and config.decoding.fusion == "calibrated":
            fusion = fit_fusion(
                model.model, blinded, codes, config=config.decoding, sasrec=sasrec.model if sasrec else None
            )
        systems = {"evaluated": _recommend(model, sasrec, codes, fusion, config)}
        for method in methods:
            started = time.process_time()
            refit = config.refit.model_copy(update={"method": method, "sasrec_method": method})
            new_sasrec = new_model = None
            if sasrec is not None:
                plan = plan_sasrec_refit(folder / "sasrec", config.sasrec, refit, warm_started=False)
                new_sasrec = _sasrec(
                    moment.histories,
                    num_items,
                    config.model_copy(update={"sasrec": plan.config}),
                    refit_start=plan.start,
                    refit_epochs=plan.num_epochs,
                )
                epochs[f"sasrec, {method}"] = plan.num_epochs
            if model is not None:
                planned = plan_recommender_refit(folder / "recommender", config.recommender, refit, warm_started=False)
                new_model = _recommender(
                    moment.histories,
                    codes,
                    config.model_copy(update={"recommender": planned.config}),
                    start=planned.start,
                    refit_epochs=planned.num_epochs,
                    target_weights=planned.target_weights(lengths - 2, lengths),
                )
                epochs[f"recommender, {method}"] = planned.num_epochs
            seconds[method] = time.process_time() - started
            systems[method] = _recommend(new_model, new_sasrec, codes, fusion, config)
    inputs = [moment.histories[user] for user in moment.users]
    values = {system: _values(recommend(inputs), moment.targets) for system, recommend in systems.items()}
    return {
        "share": moment.share,
        "num_users": len(inputs),
        "seconds": seconds,
        "epochs": epochs,
        "systems": {
            system: {"ndcg_10": float(value[:, 0].mean()), "hr_10": float(value[:, 1].mean())}
            for system, value in values.items()
        },
        "gains": {method: _gain(values[method], values["evaluated"], config) for method in methods},
    }


def _needs_sasrec(codes: Mapping[str, np.ndarray], config: PipelineConfig) -> bool:
    return not codes or config.decoding.collaborative_route


def _sasrec(histories: list[np.ndarray], num_items: int, config: PipelineConfig, **refit: Any) -> FittedSasrec:
    return fit_sasrec(histories, num_items=num_items, config=config.sasrec, seed=config.seed, **refit)


def _recommender(
    histories: list[np.ndarray], codes: Mapping[str, np.ndarray], config: PipelineConfig, **refit: Any
) -> FittedRecommender:
    return fit_recommender(
        histories,
        codes.get("text"),
        codes.get("image"),
        codebook_size=config.quantizer.codebook_size,
        config=config.recommender,
        seed=config.seed,
        device=CPU,
        **refit,
    )


def _recommend(
    model: FittedRecommender | None,
    sasrec: FittedSasrec | None,
    codes: Mapping[str, np.ndarray],
    fusion: CalibratedFusion | None,
    config: PipelineConfig,
) -> Recommend:
    if model is None:
        assert sasrec is not None
        network = sasrec.model
        return lambda inputs: [ranked.item_indices for ranked in rank_catalogue(network, inputs, top_k=CUTOFF)]
    items = ItemCodes({route: torch.from_numpy(values) for route, values in codes.items()})
    retriever = MultiRouteRetriever(model.model, items, fusion=fusion, sasrec=sasrec.model if sasrec else None)

    def recommend(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        decoding = config.decoding
        ranked = retriever.rank(
            inputs,
            routes=("fused",),
            top_k=CUTOFF,
            beam_width=decoding.beam_width,
            batch_size=decoding.batch_size,
        )
        return [each.item_indices for each in ranked["fused"]]

    return recommend


def _values(lists: Sequence[np.ndarray], targets: np.ndarray) -> np.ndarray:
    """NDCG@10 and HR@10 of each user: float64 [U, 2]."""
    found = [np.flatnonzero(items[:CUTOFF] == target) for items, target in zip(lists, targets, strict=True)]
    ranks = np.array([places[0] + 1 if len(places) else MISSED for places in found], dtype=np.int64)
    return np.stack([ndcg(ranks, cutoff=CUTOFF), hit_rate(ranks, cutoff=CUTOFF)], axis=1)


def _gain(refitted: np.ndarray, evaluated: np.ndarray, config: PipelineConfig) -> dict[str, Any]:
    differences = paired_differences(
        refitted,
        evaluated,
        num_samples=1000,
        confidence=0.95,
        generator=numpy_generator(config.seed, "benchmarks/refit"),
    )
    return {name: asdict(each) for name, each in zip(("ndcg_10", "hr_10"), differences, strict=True)}


def table(document: Mapping[str, Any]) -> str:
    """Return the results as a Markdown table with one row per moment and method."""
    head = [
        "| data set | log before the moment | users | refit | NDCG@10 evaluated | refit minus evaluated | time |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    rows = []
    for moment in document["moments"]:
        for method in moment["gains"]:
            gain = moment["gains"][method]["ndcg_10"]
            ratio = moment["seconds"][method] / moment["seconds"]["training"]
            rows.append(
                f"| {document['dataset']} | {moment['share']:.0%} | {moment['num_users']:,} | {method} | "
                f"{moment['systems']['evaluated']['ndcg_10']:.4f} | {gain['difference']:+.4f} "
                f"[{gain['low']:+.4f}, {gain['high']:+.4f}] | {ratio:.2f} |"
            )
    return "\n".join([*head, *rows])


def main() -> None:
    """Measure every moment; the results are written after each one, beside those of other moments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--home", type=Path, help="home with a finished run, for the semantic IDs")
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder, if there is no home")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.8, 0.9], help="of the log, per moment")
    parser.add_argument("--period", type=float, default=0.1, help="share of the log that is predicted after a moment")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="ways of refitting")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spec = load_dataset(arguments.dataset)
    config = spec.config(parse_overrides(arguments.set))
    log, num_items, codes = read_log(spec, config, data=arguments.data, home=arguments.home)
    about = {
        "dataset": spec.name,
        "systems": "recommender" if codes else "sasrec",
        "settings": arguments.set,
        "period": arguments.period,
    }
    path = arguments.output / f"refit-{spec.name}.json"
    for moment in moments(log, arguments.shares, arguments.period):
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"moments": []}
        is_same_study = {name: value for name, value in stored.items() if name != "moments"} == about
        kept = [other for other in stored["moments"] if is_same_study and other["share"] != moment.share]
        found = sorted(
            [*kept, measure(moment, num_items, codes, config, arguments.methods)], key=lambda each: each["share"]
        )
        path.write_text(json.dumps(about | {"moments": found}, indent=1) + "\n", encoding="utf-8")
        print(table(about | {"moments": found}), flush=True)


if __name__ == "__main__":
    main()
