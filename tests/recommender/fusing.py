"""Models of the certain world, and what tests of fusion do with them: scramble, decode, measure, bundle."""

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
from macrec_pipeline.recommender.retrieval.fusion import CalibratedFusion
from macrec_pipeline.recommender.retrieval.fusion_fitting import save_fusion
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever
from macrec_pipeline.recommender.training.losses import ItemCodes
from tests.recommender.cycle import CPU, NUM_ITEMS, SMALL, codes, cyclic_histories

ROUTES = ["text", "image", "collaborative"]
TRUE_CODES = {"text": codes(1), "image": codes(2)}
DECODING = DecodingConfig(beam_width=5, top_k=5, batch_size=16, fusion="calibrated")


def trained(**changes: object) -> FittedRecommender:
    config = RecommenderConfig.model_validate(SMALL | {"dropout": 0.0} | changes)
    return fit_recommender(cyclic_histories(), codes(1), codes(2), codebook_size=4, config=config, seed=5, device=CPU)


def knowing_model() -> FittedRecommender:
    """Knows the cycle by both routes."""
    return trained(num_epochs=25, d_model=32, d_ff=64, learning_rate=5e-3)


def knowing_sasrec() -> FittedSasrec:
    """Knows the cycle."""
    config = SasrecConfig(
        d_model=16, max_length=20, batch_size=64, max_epochs=40, patience=40, dropout=0, learning_rate=1e-2
    )
    return fit_sasrec(cyclic_histories(), num_items=NUM_ITEMS, config=config, seed=5)


def scrambled(route: str) -> dict[str, np.ndarray]:
    """The IDs that the model was trained on, but one route's belong to other items: what it recommends is noise."""
    return TRUE_CODES | {route: np.random.default_rng(0).permutation(TRUE_CODES[route])}


def decoder_of(
    fitted: FittedRecommender,
    ids: dict[str, np.ndarray],
    fusion: CalibratedFusion | None,
    sasrec: FittedSasrec | None = None,
) -> MultiRouteRetriever:
    items = ItemCodes({name: torch.from_numpy(value) for name, value in ids.items()})
    return MultiRouteRetriever(fitted.model, items, fusion=fusion, collaborative=sasrec.model if sasrec else None)


def validation_ndcg(decoder: MultiRouteRetriever, histories: list[np.ndarray]) -> float:
    """NDCG@10 of the fused routes, by a plain loop over users and places."""
    ranked = decoder.rank(
        [history[:-2] for history in histories], routes=["fused"], top_k=10, beam_width=5, batch_size=7
    )["fused"]
    gain = 0.0
    for found, history in zip(ranked, histories, strict=True):
        for place, item in enumerate(found.item_indices.tolist()):
            gain += (item == history[-2]) / np.log2(place + 2)
    return gain / len(histories)


def write_bundle(
    fitted: FittedRecommender,
    folder: Path,
    *,
    fusion: CalibratedFusion | None,
    config: str,
    sasrec: FittedSasrec | None = None,
) -> Path:
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
        decoding=DECODING.model_dump() | {"fusion": config, "collaborative_route": sasrec is not None},
        catalogue=[{"title": "", "image_path": None}] * NUM_ITEMS,
        provenance={},
    )
    return folder / "bundle"
