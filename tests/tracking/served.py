"""A real but tiny bundle that trains in about a second."""

from pathlib import Path

import numpy as np
import torch

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.recommender import RecommenderBundle, fit_recommender

NUM_ITEMS, NUM_LEVELS, NUM_CODES = 12, 2, 4
CODES = np.array([[index // NUM_CODES, index % NUM_CODES] for index in range(NUM_ITEMS)], dtype=np.int64)
IMAGE_CODES = CODES[::-1].copy()
ITEM_IDS = [f"item-{index}" for index in range(NUM_ITEMS)]


TINY = RecommenderConfig(
    d_model=16,
    d_ff=32,
    d_kv=8,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    history_length=5,
    encoding="item_causal",
    num_epochs=1,
    batch_size=64,
)


def write_trained_bundle(folder: Path) -> Path:
    """Train a bundle and write it to a subfolder of `folder`, which must not exist yet; return the subfolder."""
    histories = [np.array([(user + step) % NUM_ITEMS for step in range(6)], dtype=np.int64) for user in range(20)]
    fitted = fit_recommender(
        histories, CODES, IMAGE_CODES, codebook_size=NUM_CODES, config=TINY, seed=1, device=torch.device("cpu")
    )
    weights, bundle = folder / "recommender", folder / "bundle"
    for subfolder in (weights, bundle):
        subfolder.mkdir(parents=True)
    fitted.save(weights)
    (weights / "quantizer.json").write_text("{}")  # serving does not read it
    RecommenderBundle.write(
        bundle,
        recommender_folder=weights,
        quantizer_files=[weights / "quantizer.json"],
        item_ids=ITEM_IDS,
        popularity=np.arange(NUM_ITEMS, dtype=np.int64),
        text_codes=CODES,
        image_codes=IMAGE_CODES,
        codebook_size=NUM_CODES,
        decoding=resolve_config("demo").decoding.model_dump(),
        catalogue=[{"title": f"Item {index}", "image_path": None} for index in range(NUM_ITEMS)],
        provenance={"dataset": "demo"},
    )
    return bundle
