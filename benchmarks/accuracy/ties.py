"""How the order of a user's interactions at the same time (`cleaning.ties`) changes the metrics.

    python benchmarks/accuracy/ties.py movielens-100k --data ../shared/data --seeds 1 2 3
    python benchmarks/accuracy/ties.py noise --seeds 1 2 3

`noise` is made up: each of 500 users takes 8 of 120 items at random, all on one day. Nothing can be learned from it, so
every system should be at chance. The data are prepared with each rule and each seed; item-kNN, popularity and SASRec
are fitted as in the pipeline. The seed also draws the order by hash, and with it the test targets, so the spread over
seeds includes the choice of targets. The command writes `results/ties-<data set>.json` and prints its table;
`tables.py` copies it into docs/results.md. Finished results are cached in the work folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this file's folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import polars as pl

from benchmarks.accuracy.baselines import ROUTE, baseline_lists
from benchmarks.accuracy.preparation import Prepared
from benchmarks.accuracy.rendering import ties_table
from benchmarks.accuracy.trained import SETTINGS
from benchmarks.accuracy.variants import ITEM_KNN, POPULARITY, SASREC
from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items
from macrec_pipeline.data.ties import count_tied_in_histories
from macrec_pipeline.datasets import load_dataset
from macrec_pipeline.evaluation.metrics import hit_rate, ndcg, target_ranks
from macrec_pipeline.presets import parse_overrides
from macrec_pipeline.runtime.progress import quiet_progress
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

RULES = ("item_id", "position", "hash")
SYSTEMS = (SASREC, ITEM_KNN, POPULARITY)
NOISE = "noise"
NUM_USERS, NUM_TAKEN, NUM_ITEMS = 500, 8, 120
_DAY_MS = 1_700_006_400_000
_CUTOFF = 10
_RESULTS = Path(__file__).resolve().parent / "results"


def noise_tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return `RAW_INTERACTIONS` and `RAW_ITEMS` of a log in which nothing can be learned; its lines are shuffled."""
    draw = np.random.default_rng(1)
    rows = [
        (f"u{user:03d}", f"i{item:03d}", None, _DAY_MS)
        for user in range(NUM_USERS)
        for item in draw.choice(NUM_ITEMS, NUM_TAKEN, replace=False)
    ]
    lines = [rows[place] for place in draw.permutation(len(rows))]
    log = [(*line, "log.csv", number, None) for number, line in enumerate(lines, start=1)]
    items = [
        (f"i{item:03d}", f"Item {item}", None, None, None, None, "items.csv", item + 1, None)
        for item in range(NUM_ITEMS)
    ]
    return (
        pl.DataFrame(log, schema=RAW_INTERACTIONS.columns, orient="row"),
        pl.DataFrame(items, schema=RAW_ITEMS.columns, orient="row"),
    )


def measure_rule(
    raw: tuple[pl.DataFrame, pl.DataFrame], config: PipelineConfig, *, work: Path
) -> tuple[dict[str, Any], dict[str, dict[str, dict[str, float]]]]:
    """Prepare a log with the settings' rule, and measure each system.

    Returns:
        Facts about the data, and the metrics by system, setting and name. Names that end in `_determined` are means
        over the users whose test target the data determine; they are absent if there are none.
    """
    tables = clean(*raw, config.cleaning, seed=config.seed)
    histories = build_histories(tables.interactions, tables.items)
    sequences = [items.to_numpy(writable=True) for items in histories["item_indices"]]
    no_vectors = np.zeros((tables.items.height, 1), dtype=np.float32)
    prepared = Prepared(sequences, no_vectors, no_vectors)
    targets = np.array([sequence[-1] for sequence in sequences])
    is_determined = (histories["num_at_target_time"] == 1).to_numpy()
    facts = {
        "users": histories.height,
        "items": tables.items.height,
        "tied_share": count_tied_in_histories(histories) / tables.interactions.height,
        "undetermined_targets": int((~is_determined).sum()),
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for system in SYSTEMS:
        lists = baseline_lists(system, prepared, config, work=work, progress=quiet_progress).arrays
        for setting in SETTINGS:
            ranks = target_ranks(lists[f"test/{ROUTE}/{setting}"], targets)
            values = {"hr_10": hit_rate(ranks, cutoff=_CUTOFF), "ndcg_10": ndcg(ranks, cutoff=_CUTOFF)}
            means = {name: float(by_user.mean()) for name, by_user in values.items()}
            if is_determined.any():
                means |= {f"{name}_determined": float(values[name][is_determined].mean()) for name in values}
            found.setdefault(system, {})[setting] = means
    return facts, found


def run(dataset: str, *, data: Path, seeds: Sequence[int], work: Path) -> dict[str, Any]:
    """Measure every rule with every seed, and return the results document."""
    spec = None if dataset == NOISE else load_dataset(dataset)
    raw = noise_tables() if spec is None else (read_raw_interactions(spec, data), read_raw_items(spec, data))
    facts: dict[str, Any] = {}
    runs: dict[tuple[str, str, str, str], list[float]] = {}
    for rule in RULES:
        for seed in seeds:
            print(f"{dataset}: {rule}, seed {seed}", file=sys.stderr, flush=True)
            changes = parse_overrides([f"cleaning.ties={rule}", f"seed={seed}", "runtime.num_threads=1"])
            config = PipelineConfig.model_validate(changes) if spec is None else spec.config(changes)
            facts, found = measure_rule(raw, config, work=work)
            for system, by_setting in found.items():
                for setting, means in by_setting.items():
                    for name, value in means.items():
                        runs.setdefault((system, rule, setting, name), []).append(value)
    where = "" if spec is None else " --data DIR"
    return {
        "dataset": dataset,
        "command": f"python benchmarks/accuracy/ties.py {dataset}{where} --seeds {' '.join(map(str, seeds))}",
        "seeds": list(seeds),
        **facts,
        "rows": [
            {
                "system": system,
                "ties": rule,
                "setting": setting,
                "metric": name,
                "mean": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            }
            for (system, rule, setting, name), values in sorted(runs.items(), key=_place)
        ],
    }


def _place(entry: tuple[tuple[str, str, str, str], list[float]]) -> tuple[int, int]:
    (system, rule, *_), _ = entry
    return SYSTEMS.index(system), RULES.index(rule)


def main(words: Sequence[str] | None = None) -> None:
    """Measure a data set, write the results file, and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", help=f"a data set, or {NOISE}")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data set's files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--work", type=Path, default=Path(".macrec/benchmarks"), help="folder of finished results")
    parser.add_argument("--out", type=Path, default=_RESULTS)
    arguments = parser.parse_args(words)
    work = arguments.work / f"ties-{arguments.dataset}"
    work.mkdir(parents=True, exist_ok=True)
    document = run(arguments.dataset, data=arguments.data, seeds=arguments.seeds, work=work)
    path = arguments.out / f"ties-{arguments.dataset}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(ties_table(document))


if __name__ == "__main__":
    main()
