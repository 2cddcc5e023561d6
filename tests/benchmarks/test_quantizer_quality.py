"""Recipes of the quantizer are compared by the quality of the weights that they keep."""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.speed import quantizer_quality
from macrec_pipeline.storage import AssetStore, embedding_table

SMALL = {
    "projection_dim": 16,
    "hidden_dims": (16,),
    "latent_dim": 4,
    "codebook_size": 8,
    "learning_rate": 1e-2,
}


def test_the_kept_epoch_has_the_lowest_collision_rate() -> None:
    """The epoch with the lowest collision rate is kept, separately for each modality."""

    def row(text: tuple[float, float], image: tuple[float, float]) -> dict[str, float]:
        names = ("text_collision_rate", "text_reconstruction", "image_collision_rate", "image_reconstruction")
        return dict(zip(names, (*text, *image), strict=True))

    log = [row((0.5, 0.9), (0.2, 0.8)), row((0.1, 0.7), (0.3, 0.6)), row((0.1, 0.2), (0.4, 0.5))]
    assert quantizer_quality.kept_quality(log) == row((0.1, 0.7), (0.2, 0.8))


def test_all_metrics_must_be_reached_at_once() -> None:
    """Metrics that are reached in different epochs do not count."""
    log = [{"seconds": 1.0, "a": 0.1, "b": 0.9}, {"seconds": 2.0, "a": 0.9, "b": 0.1}]
    assert quantizer_quality.seconds_to_reach(log, {"a": 0.2, "b": 0.2}) is None
    log += [{"seconds": number, "a": 0.2, "b": 0.1} for number in (3.0, 4.0)]
    assert quantizer_quality.seconds_to_reach(log, {"a": 0.2, "b": 0.2}) == 3.0


def test_every_recipe_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes start from a store after `macrec run --until pseudo_labels`; finished ones are not trained again."""
    store, generator = AssetStore(tmp_path, "tiny"), np.random.default_rng(1)
    items = pl.DataFrame({"item_index": np.arange(60), "item_id": [f"i{number:02}" for number in range(60)]})
    clusters = generator.integers(0, 6, 60)
    for name, dim in {"text": 12, "image": 8}.items():
        vectors = (generator.normal(size=(6, dim))[clusters] + generator.normal(size=(60, dim)) / 3).astype(np.float32)
        table = embedding_table(items, vectors=vectors, imputed=np.zeros(60, dtype=np.bool_))
        store.write_table(f"{name}_embeddings", table)
    labels = items.with_columns(text_cluster=pl.Series(clusters), image_cluster=pl.Series(clusters))
    store.write_table("pseudo_labels", labels)
    recipes = {name: SMALL | {"num_epochs": epochs} for name, epochs in {"reference": 2, "longer": 20}.items()}
    monkeypatch.setattr(quantizer_quality, "RECIPES", recipes)
    out = tmp_path / "results.json"
    words = ["tiny", "--home", str(tmp_path), "--out", str(out), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["quantizer_quality.py", *words])
    quantizer_quality.main()
    found = json.loads(out.read_text())
    assert found["items"] == 60
    assert found["reference"]["ratio"] == 1.0
    first, last = (found["longer"]["log"][place] for place in (0, -1))
    assert (first["epoch"], last["epoch"]) == (5, 20)
    assert last["text_reconstruction"] < first["text_reconstruction"]
    assert last["seconds"] > first["seconds"]
    quantizer_quality.main()
    assert json.loads(out.read_text()) == found
