"""On pure noise, every system is at chance: nothing in the order of equal timestamps can be learned.

Each of 500 users takes 8 of 120 items at random, all on one day. Whatever the order, the test target is one of the 113
items that are not in the user's test input. If the order carries no information, each of them is equally likely, so a
list that contains c of them has a hit with probability c/113, independently of the other users'.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from macrec_pipeline.config import CleaningConfig, EvaluationConfig, SasrecConfig
from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items
from macrec_pipeline.data.ties import count_undetermined_targets
from macrec_pipeline.datasets import DatasetSpec, InteractionsTable, ItemsTable, TablesSource
from macrec_pipeline.evaluation.baselines import run_baselines
from macrec_pipeline.evaluation.flat_histories import flat_histories
from macrec_pipeline.recommender import fit_sasrec
from macrec_pipeline.recommender.retrieval.retriever import rank_catalogue
from macrec_pipeline.storage import AssetStore

NUM_USERS, NUM_TAKEN, NUM_ITEMS, TOP_K = 500, 8, 120, 10
SEED = 1
DATASET = """
name: noise
title: Noise
preset: demo
k_core: 2
source:
  reader: tables
  interactions: {file: log.csv, user_id: user, item_id: item, timestamp: day, timestamp_unit: iso}
  items: {file: items.csv, item_id: sku, title: name}
overrides:
  cleaning: {ties: %s}
  pseudo_labels: {num_clusters: 8}
  sasrec: {d_model: 32, max_epochs: 12, batch_size: 128}
  quantizer: {codebook_size: 16, projection_dim: 16, hidden_dims: [16], latent_dim: 8, num_epochs: 10, batch_size: 64}
  recommender: {d_model: 32, d_ff: 64, d_kv: 16, num_heads: 2, num_epochs: 6, batch_size: 64}
  decoding: {beam_width: 20, fusion: calibrated, collaborative_route: true}
  evaluation: {bootstrap_samples: 50, num_sample_users: 2}
"""


def _write_noise(folder: Path) -> DatasetSpec:
    """Write the log, sorted by user and then item as exports often are, and the catalogue."""
    draw = np.random.default_rng(4)
    lines = [
        f"u{user:03d},i{item:03d},2024-05-{1 + user % 28:02d}"
        for user in range(NUM_USERS)
        for item in sorted(draw.choice(NUM_ITEMS, NUM_TAKEN, replace=False))
    ]
    (folder / "log.csv").write_text("\n".join(["user,item,day", *lines]) + "\n", encoding="utf-8")
    items = [f"i{item:03d},Item {item}" for item in range(NUM_ITEMS)]
    (folder / "items.csv").write_text("\n".join(["sku,name", *items]) + "\n", encoding="utf-8")
    source = TablesSource(
        reader="tables",
        interactions=InteractionsTable(
            file="log.csv", user_id="user", item_id="item", timestamp="day", timestamp_unit="iso"
        ),
        items=ItemsTable(file="items.csv", item_id="sku", title="name"),
    )
    return DatasetSpec(name="noise", title="Noise", source=source)


def _deviation(lists: np.ndarray, histories: list[np.ndarray]) -> float:
    """Return how many standard deviations the number of hits is from its expectation under chance.

    Args:
        lists: int64 [U, 10], the recommendations.
        histories: int64 [8] each; the last item is the target.
    """
    num_possible = NUM_ITEMS - (NUM_TAKEN - 1)
    chances = np.array(
        [len(set(row) - set(history[:-1])) / num_possible for row, history in zip(lists, histories, strict=True)]
    )
    hits = sum(history[-1] in row for row, history in zip(lists, histories, strict=True))
    return float((hits - chances.sum()) / np.sqrt((chances * (1 - chances)).sum()))


def _lists(histories: pl.DataFrame, sequences: list[np.ndarray]) -> Mapping[tuple[str, bool], np.ndarray]:
    """Return the lists of popularity, item-kNN and SASRec, with seen items allowed and excluded."""
    flat = flat_histories(histories, num_items=NUM_ITEMS)
    found = dict(run_baselines(flat, num_items=NUM_ITEMS, top_k=TOP_K, config=EvaluationConfig()).lists)
    fitted = fit_sasrec(
        [np.append(sequence[:-1], 0) for sequence in sequences],
        num_items=NUM_ITEMS,
        config=SasrecConfig(batch_size=128, max_epochs=12),
        seed=SEED,
    )
    inputs = [sequence[:-1] for sequence in sequences]
    for exclude_seen in (False, True):
        ranked = rank_catalogue(fitted.model, inputs, top_k=TOP_K, exclude_seen=exclude_seen)
        found["sasrec", exclude_seen] = np.array([row.item_indices for row in ranked])
    return found


@pytest.mark.parametrize("ties", ["hash", "item_id", "position"])
def test_on_noise_every_system_is_at_chance_unless_the_order_can_be_learned(tmp_path: Path, ties: str) -> None:
    """With `hash`, hits are within 3.3 standard deviations of chance; sorted by item, many systems are far above.

    The file is sorted by item, so `position` has the same effect as `item_id`.
    """
    spec = _write_noise(tmp_path)
    tables = clean(
        read_raw_interactions(spec, tmp_path), read_raw_items(spec, tmp_path), CleaningConfig(ties=ties), seed=SEED
    )
    histories = build_histories(tables.interactions, tables.items)
    sequences = [items.to_numpy() for items in histories["item_indices"]]
    assert {len(sequence) for sequence in sequences} == {NUM_TAKEN}
    assert count_undetermined_targets(histories) == NUM_USERS
    deviations = {key: _deviation(lists, sequences) for key, lists in _lists(histories, sequences).items()}
    if ties == "hash":
        assert all(abs(value) < 3.3 for value in deviations.values()), deviations
    else:
        learned = [deviations[key] for key in (("sasrec", True), ("sasrec", False), ("item_knn", True))]
        assert min(learned) > 5, deviations


@pytest.mark.slow
@pytest.mark.parametrize("ties", ["hash", "item_id"])
def test_on_noise_a_whole_run_is_at_chance_unless_the_order_can_be_learned(tmp_path: Path, ties: str) -> None:
    """This holds for every system of the report: MACRec's text route, its fusion with SASRec, and SASRec."""
    _write_noise(tmp_path)
    (tmp_path / "noise.yaml").write_text(DATASET % ties, encoding="utf-8")
    settings = {"MACREC_HOME": str(tmp_path / "home"), "MACREC_DATA": str(tmp_path), "MACREC_DATASETS": str(tmp_path)}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER_HOME", "MLFLOW_"))}
    arguments = [sys.executable, "-m", "macrec_pipeline.cli", "run", "noise", "--until", "predictions"]
    completed = subprocess.run(
        arguments, env=inherited | settings | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    store = AssetStore(tmp_path / "home", "noise")
    sequences = [items.to_numpy() for items in store.read_table("histories")["item_indices"]]
    deviations = {
        key: _deviation(np.array([row[:TOP_K] for row in lists["item_indices"].to_list()]), sequences)
        for key, lists in store.read_table("predictions")
        .partition_by("system", "exclude_seen", as_dict=True, maintain_order=True)
        .items()
    }
    assert {system for system, _ in deviations} >= {"macrec", "macrec_text", "sasrec"}
    if ties == "hash":
        assert all(abs(value) < 3.3 for value in deviations.values()), deviations
    else:
        assert min(value for (system, _), value in deviations.items() if system != "macrec_text") > 5, deviations
