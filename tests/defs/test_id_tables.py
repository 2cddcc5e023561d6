"""Which collaborative vector an item gets when its ID is assigned."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import torch

from macrec_pipeline.config import SasrecConfig
from macrec_pipeline.defs.ids.tables import MIN_INTERACTIONS, anchor_vectors
from macrec_pipeline.recommender.sasrec.fitted import FittedSasrec, write_skipped
from macrec_pipeline.recommender.sasrec.model import Sasrec, SasrecSpec
from macrec_pipeline.semantic_ids import Anchors

NUM_OLD, WIDTH = 20, 4
ITEM_IDS = [*(f"old {item}" for item in range(NUM_OLD)), "often seen", "rarely seen"]


def _anchor_vectors(folder: Path, content: dict[str, np.ndarray]) -> np.ndarray:
    counts = [50] * NUM_OLD + [MIN_INTERACTIONS, MIN_INTERACTIONS - 1]
    asset: Any = SimpleNamespace(
        read_table={"items": pl.DataFrame({"item_id": ITEM_IDS, "num_interactions": counts})}.__getitem__,
        folder=lambda _: folder / "sasrec",
        store=SimpleNamespace(folder=lambda _: folder / "quantizer"),
    )
    quantizer: Any = SimpleNamespace(collaborative_dim=WIDTH)
    vectors = anchor_vectors(asset, quantizer, content)
    assert vectors is not None
    return vectors


def test_a_new_item_that_was_seen_often_gets_what_sasrec_learned_in_the_old_axes(tmp_path: Path) -> None:
    """SASRec's axes have turned. An item that was rarely seen, or any item without SASRec, goes by its content."""
    generator = np.random.default_rng(1)
    old = generator.normal(size=(NUM_OLD + 2, WIDTH)).astype(np.float32)
    content = {"text": generator.normal(size=(NUM_OLD + 2, 3)).astype(np.float32)}
    for name in ("quantizer", "sasrec"):
        (tmp_path / name).mkdir()
    anchors = Anchors(ITEM_IDS[:NUM_OLD], old[:NUM_OLD])
    anchors.save(tmp_path / "quantizer")
    by_content = anchors.for_items(ITEM_IDS, content)
    turned = old @ np.linalg.qr(generator.normal(size=(WIDTH, WIDTH)))[0]
    config = SasrecConfig(d_model=WIDTH)
    model = Sasrec(NUM_OLD + 2, SasrecSpec.from_settings(vars(config)))
    model.items.weight.data = torch.from_numpy(turned.astype(np.float32))
    FittedSasrec(model, vars(config), [], 0).save(tmp_path / "sasrec")
    vectors = _anchor_vectors(tmp_path, content)
    np.testing.assert_array_equal(vectors[:NUM_OLD], old[:NUM_OLD])
    np.testing.assert_allclose(vectors[NUM_OLD], old[NUM_OLD], atol=1e-4)
    np.testing.assert_array_equal(vectors[NUM_OLD + 1], by_content[NUM_OLD + 1])
    assert np.abs(by_content[NUM_OLD] - old[NUM_OLD]).max() > 0.1
    write_skipped(tmp_path / "sasrec", reason="sasrec.enabled is false")
    np.testing.assert_array_equal(_anchor_vectors(tmp_path, content), by_content)
