"""The pipeline runs on a catalogue without images and on one without texts, and reports the missing route.

The catalogue without images is also refreshed a week later, and its items keep their IDs. Each run is a separate
process of the `macrec` command, with its state and data in the test's folder.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from macrec_pipeline.recommender import RecommenderBundle
from macrec_pipeline.storage import AssetStore

NUM_ITEMS, NUM_USERS, LENGTH = 40, 30, 7
DATASET = """
name: tiny
title: A tiny shop
preset: demo
k_core: 2
source:
  reader: tables
  interactions: {file: log.csv, user_id: user, item_id: item, timestamp: time}
  items: {file: items.csv, item_id: item, title: title, image: "pictures/{item_id}.png"}
overrides:
  pseudo_labels: {num_clusters: 8}
  sasrec: {d_model: 16, max_epochs: 1}
  quantizer: {codebook_size: 8, projection_dim: 16, hidden_dims: [16], latent_dim: 8, num_epochs: 10, batch_size: 64}
  recommender: {d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_epochs: 2, batch_size: 256}
  decoding: {beam_width: 10}
  evaluation: {bootstrap_samples: 50, num_sample_users: 2}
"""
OTHER = {"text": "image", "image": "text"}
LEFT_OUT = {
    "image": "image_embeddings    skipped, no item has an image: one route, text",
    "text": "text_embeddings     skipped, no item has a text: one route, image",
}


def write_shop(folder: Path, *, route: str) -> None:
    """Write a log in which every user walks through the items, and a catalogue that has only titles or only images."""
    (folder / "pictures").mkdir(parents=True)
    titles = [
        f"Item {item} of {'red' if item % 2 else 'blue'} wood" if route == "text" else "" for item in range(NUM_ITEMS)
    ]
    items = [f"i{item:02d},{title}" for item, title in enumerate(titles)]
    log = [
        f"u{user},i{(user + 2 * step) % NUM_ITEMS:02d},{1_600_000_000 + 1000 * user + step}"
        for user in range(NUM_USERS)
        for step in range(LENGTH)
    ]
    (folder / "items.csv").write_text("\n".join(["item,title", *items]) + "\n", encoding="utf-8")
    (folder / "log.csv").write_text("\n".join(["user,item,time", *log]) + "\n", encoding="utf-8")
    (folder / "tiny.yaml").write_text(DATASET, encoding="utf-8")
    if route == "image":
        pixels = np.random.default_rng(1).integers(0, 256, size=(NUM_ITEMS, 16, 16, 3), dtype=np.uint8)
        for item, image in enumerate(pixels):
            Image.fromarray(image).save(folder / "pictures" / f"i{item:02d}.png")
        (folder / "pictures" / "i07.png").write_bytes(b"")


def macrec(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command on the shop, in a separate process."""
    settings = {"MACREC_HOME": str(folder / "home"), "MACREC_DATA": str(folder / "data")}
    settings |= {"MACREC_DATASETS": str(folder / "data"), "HF_HUB_OFFLINE": "1"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER_HOME", "MLFLOW_"))}
    arguments = [sys.executable, "-m", "macrec_pipeline.cli", command, "tiny"]
    completed = subprocess.run(arguments, env=inherited | settings, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr[-3000:]
    return completed


@pytest.mark.slow
@pytest.mark.parametrize("route", ["text", "image"])
def test_a_catalogue_with_one_modality_uses_one_route(route: str, tmp_path: Path) -> None:
    """All assets are computed without the other modality, and the terminal, the tables and the report say so."""
    write_shop(tmp_path / "data", route=route)
    completed = macrec("run", tmp_path)
    absent = OTHER[route]
    assert LEFT_OUT[absent] in completed.stderr
    assert "route" not in completed.stdout, "a single route must not be listed beside the fused one"

    store = AssetStore(tmp_path / "home", "tiny")
    assert store.read_table(f"{absent}_embeddings").height == 0
    assert store.read_table("pseudo_labels")[f"{absent}_cluster"].null_count() == NUM_ITEMS
    assert not (store.folder("quantizer") / f"{absent}.safetensors").exists()
    ids = store.read_table("semantic_ids")
    assert ids[f"{absent}_codes"].null_count() == ids[f"{absent}_moved"].null_count() == NUM_ITEMS
    assert ids[f"{route}_codes"].n_unique() == NUM_ITEMS

    bundle = RecommenderBundle.load(store.folder("recommender") / "bundle")
    assert bundle.routes == [route]
    assert bundle.description["recommender"]["tasks"] == [f"{route}_to_{route}"]
    fused, single = (bundle.recommend_ids([["i00", "i02"]], k=5, route=name)[0] for name in ("fused", route))
    assert fused == single
    assert len(fused.item_ids) == 5
    assert set(store.read_table("predictions")["system"]) == {"macrec", "sasrec"}
    metrics = json.loads((store.folder("evaluation_report") / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["collision_rate"].keys() == {route}
    page = (store.folder("evaluation_report") / "report.html").read_text(encoding="utf-8")
    assert f"no <b>{absent}</b> route: no item has a" in page
    assert ("unreadable_picture" in page) == (route == "image")
    if route == "text":
        _check_that_a_refresh_keeps_the_ids(store, tmp_path)


def _check_that_a_refresh_keeps_the_ids(store: AssetStore, folder: Path) -> None:
    """A week later, one item is new and one has left. All known items keep their IDs, and the one that left is never
    recommended."""
    before, quantizer = codes_of_items(store), store.manifest("quantizer").files
    items, log = folder / "data" / "items.csv", folder / "data" / "log.csv"
    lines = [line for line in items.read_text(encoding="utf-8").splitlines() if not line.startswith("i39,")]
    items.write_text("\n".join([*lines, "i40,Item 40 of green wood"]) + "\n", encoding="utf-8")
    newest = "".join(f"u{user},i40,1700000000\n" for user in range(3))
    log.write_text(log.read_text(encoding="utf-8") + newest, encoding="utf-8")
    macrec("refresh", folder)
    after = codes_of_items(store)
    assert after.keys() == before.keys() | {"i40"}
    assert {item: after[item] for item in before} == before
    assert store.manifest("quantizer").files == quantizer
    assert store.read_beside("items", "unlisted_items")["item_id"].to_list() == ["i39"]
    assert store.read_beside("semantic_ids", "retired_ids").height == 0
    items_by_index = store.read_table("items")["item_id"]
    recommended = items_by_index.gather(store.read_table("predictions")["item_indices"].explode())
    assert "i39" not in recommended.to_list()
    report = store.manifest("semantic_ids").details["quality"]
    assert (report["known_items"], report["moved_share"]) == (NUM_ITEMS, 0.0)
    assert "image" not in report
    comparison = json.loads((store.folder("champion_comparison") / "comparison.json").read_text(encoding="utf-8"))
    assert (comparison["champion"], comparison["figures"]["moved_ids"]) == (1, 0.0)


@pytest.mark.slow
def test_given_ids_of_texts_use_one_route(tmp_path: Path) -> None:
    """Files in the form of LETTER (no id lists, text IDs only) run to the end with the text route alone."""
    data = tmp_path / "data"
    (data / "x").mkdir(parents=True)
    sequences = {str(user): [(user + 2 * step) % NUM_ITEMS for step in range(LENGTH)] for user in range(NUM_USERS)}
    codes = {str(item): [f"<a_{item // 8}>", f"<b_{item % 8}>"] for item in range(NUM_ITEMS)}
    (data / "x" / "X.inter.json").write_text(json.dumps(sequences), encoding="utf-8")
    (data / "x" / "X.index.json").write_text(json.dumps(codes), encoding="utf-8")
    before, _, after = DATASET.partition("source:")
    _, _, overrides = after.partition("overrides:")
    source = "source: {reader: indexed, folder: x, prefix: X, text_index: index.json}\noverrides:"
    (data / "tiny.yaml").write_text(before + source + overrides, encoding="utf-8")
    completed = macrec("run", tmp_path)
    assert "image_embeddings    skipped, the data set has no image semantic IDs: one route, text" in completed.stderr
    store = AssetStore(tmp_path / "home", "tiny")
    ids = store.read_table("semantic_ids")
    assert ids["image_codes"].null_count() == ids.height
    published = dict(zip(ids["item_id"], ids["text_codes"].to_list(), strict=True))
    assert published == {item: [int(item) // 8, int(item) % 8] for item in published}
    assert RecommenderBundle.load(store.folder("recommender") / "bundle").routes == ["text"]


def codes_of_items(store: AssetStore) -> dict[str, list[int]]:
    """Return the text ID of each item."""
    return dict(store.read_table("semantic_ids").select("item_id", "text_codes").iter_rows())
