"""Models that have learned the catalogue of `cyclic_catalogue`, and helpers for tests of retrieval and bundles."""

from pathlib import Path

import numpy as np
import torch

from macrec_pipeline.config import DecodingConfig, RecommenderConfig, SasrecConfig
from macrec_pipeline.recommender import (
    FittedRecommender,
    FittedSasrec,
    RecommenderBundle,
    fit_recommender,
    fit_sasrec,
)
from macrec_pipeline.recommender.model.history_encoding import ItemCodes
from macrec_pipeline.recommender.retrieval.fusion import CalibratedFusion
from macrec_pipeline.recommender.retrieval.fusion_fitting import save_fusion
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever
from tests.recommender.cyclic_catalogue import CPU, NUM_ITEMS, SMALL, codes, cyclic_histories

ROUTES = ["text", "image", "collaborative"]
TRUE_CODES = {"text": codes(1), "image": codes(2)}
DECODING = DecodingConfig(beam_width=5, top_k=5, batch_size=16, fusion="calibrated")


def fit(**settings: object) -> FittedRecommender:
    config = RecommenderConfig.model_validate(SMALL | settings)
    return fit_recommender(cyclic_histories(), codes(1), codes(2), codebook_size=4, config=config, seed=5, device=CPU)


def fit_trained_model() -> FittedRecommender:
    """Train a model that predicts the next item by both routes."""
    return fit(num_epochs=25, d_model=32, d_ff=64, learning_rate=5e-3, dropout=0.0)


def fit_trained_sasrec() -> FittedSasrec:
    """Train a SASRec that predicts the next item."""
    config = SasrecConfig(
        d_model=16, max_length=20, batch_size=64, max_epochs=40, patience=40, dropout=0, learning_rate=1e-2
    )
    return fit_sasrec(cyclic_histories(), num_items=NUM_ITEMS, config=config, seed=5)


def with_shuffled_route(route: str) -> dict[str, np.ndarray]:
    """Give one route's semantic IDs to other items than in training, which makes its recommendations noise."""
    return TRUE_CODES | {route: np.random.default_rng(0).permutation(TRUE_CODES[route])}


def retriever_of(
    fitted: FittedRecommender,
    codes_of: dict[str, np.ndarray],
    fusion: CalibratedFusion | None,
    sasrec: FittedSasrec | None = None,
) -> MultiRouteRetriever:
    items = ItemCodes({modality: torch.from_numpy(values) for modality, values in codes_of.items()})
    return MultiRouteRetriever(fitted.model, items, fusion=fusion, sasrec=sasrec.model if sasrec else None)


def validation_ndcg(retriever: MultiRouteRetriever, histories: list[np.ndarray]) -> float:
    """Compute NDCG@10 of the fused routes by a plain loop over users and ranks."""
    ranked = retriever.rank(
        [history[:-2] for history in histories], routes=["fused"], top_k=10, beam_width=5, batch_size=7
    )["fused"]
    gain = 0.0
    for of_user, history in zip(ranked, histories, strict=True):
        for rank, item in enumerate(of_user.item_indices.tolist()):
            gain += (item == history[-2]) / np.log2(rank + 2)
    return gain / len(histories)


def write_fused_bundle(
    fitted: FittedRecommender,
    folder: Path,
    *,
    fusion: CalibratedFusion | None,
    fusion_setting: str,
    sasrec: FittedSasrec | None = None,
) -> Path:
    """Write a bundle whose item ids are the item indices; a SASRec becomes its collaborative route."""
    for name in ("weights", "bundle", "sasrec"):
        (folder / name).mkdir(parents=True)
    fitted.save(folder / "weights")
    if sasrec is not None:
        sasrec.save(folder / "sasrec")
    if fusion is not None:
        save_fusion(fusion, folder / "weights")
    RecommenderBundle.write(
        folder / "bundle",
        recommender_folder=folder / "weights",
        sasrec_folder=folder / "sasrec" if sasrec is not None else None,
        item_ids=[str(index) for index in range(NUM_ITEMS)],
        popularity=np.ones(NUM_ITEMS, dtype=np.int64),
        text_codes=codes(1),
        image_codes=codes(2),
        codebook_size=4,
        decoding=DECODING.model_dump() | {"fusion": fusion_setting, "collaborative_route": sasrec is not None},
        catalogue=[{"title": "", "image_path": None}] * NUM_ITEMS,
        provenance={},
    )
    return folder / "bundle"


def write_cyclic_bundle(folder: Path, weights_folder: Path, quantizer: bytes | None = b"{}") -> None:
    """Write a bundle with ids that need care in JSON and URLs, with categories and, unless None, a quantizer."""
    files = [] if quantizer is None else [weights_folder / "quantizer.json", weights_folder / "text.safetensors"]
    for file in files:
        file.write_bytes(quantizer or b"")
    RecommenderBundle.write(
        folder,
        recommender_folder=weights_folder,
        quantizer_files=files,
        item_ids=[f"item/{index} ü" for index in range(NUM_ITEMS)],
        popularity=np.arange(NUM_ITEMS)[::-1].copy(),
        text_codes=codes(1),
        image_codes=codes(2),
        codebook_size=4,
        decoding=DecodingConfig(beam_width=5).model_dump(),
        catalogue=[
            {"title": f"Item {index}", "image_path": None, "categories": None if index % 3 else ["Third", "All thirds"]}
            for index in range(NUM_ITEMS)
        ],
        provenance={"dataset": "cycle"},
    )
