"""The tasks that worker processes do for assets: load a model once, then compute the rows of one shard after another.

A task holds only paths and plain values, because it is sent to the workers; the paths must be the same on every
machine. Every worker imports this module, so it must not import dagster.

Shapes (docs/notation.md): N items, D width of an embedding.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from macrec_pipeline.schemas import RECOMMENDATIONS
from macrec_pipeline.storage.table_shards import ComputeRows

if TYPE_CHECKING:
    import torch

    from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer


@dataclass(frozen=True)
class RecommendationTask:
    """Computes `RECOMMENDATIONS` for a range of users.

    Attributes:
        bundle: a folder for `RecommenderBundle.load`.
        items: the `items` table.
        histories: a Parquet table with `user_id` and `item_indices`.
        top_k, exclude_seen: see `RecommendationsConfig`.
    """

    bundle: Path
    items: Path
    histories: Path
    top_k: int
    exclude_seen: bool

    def __call__(self, device: "torch.device") -> ComputeRows:
        """Load the bundle and return the function that computes rows with it."""
        from macrec_pipeline.recommender import RecommenderBundle

        bundle = RecommenderBundle.load(self.bundle, device=device)
        items = pl.read_parquet(self.items, glob=False, columns=["item_id"])
        item_ids = np.array(items["item_id"].to_list(), dtype=object)

        def recommend(first: int, count: int) -> pl.DataFrame:
            users = pl.scan_parquet(self.histories, glob=False).slice(first, count).collect()
            histories = [item_ids[history.to_numpy()].tolist() for history in users["item_indices"]]
            answers = bundle.recommend_ids(histories, k=self.top_k, exclude_seen=self.exclude_seen)
            columns = {
                name: [getattr(answer, name) for answer in answers] for name in ("item_ids", "scores", "fallback")
            }
            return pl.DataFrame({"user_id": users["user_id"], **columns}, schema=RECOMMENDATIONS.columns)

        return recommend


@dataclass(frozen=True)
class QuantizationTask:
    """Computes `NEAREST_CODES` for a range of items in one modality.

    Attributes:
        quantizer: a folder for `FittedQuantizer.load`.
        modality: "text" or "image".
        inputs: a Parquet table with one column of vectors, the quantizer's input.
    """

    quantizer: Path
    modality: str
    inputs: Path

    def __call__(self, device: "torch.device") -> ComputeRows:
        """Load the quantizer and return the function that computes rows with it."""
        from macrec_pipeline.semantic_ids import FittedQuantizer

        module = FittedQuantizer.load(self.quantizer, device=device).modules[self.modality]

        def quantize_rows(first: int, count: int) -> pl.DataFrame:
            vectors = pl.scan_parquet(self.inputs, glob=False).slice(first, count).collect().to_series()
            return nearest_codes(module, vectors.to_numpy(), device=device)

        return quantize_rows


def nearest_codes(module: "ModalityQuantizer", inputs: np.ndarray, *, device: "torch.device") -> pl.DataFrame:
    """Quantize vectors to `NEAREST_CODES`.

    Args:
        module: the quantizer of one modality.
        inputs: float32 [N, D].
        device: where to compute.
    """
    from macrec_pipeline.semantic_ids.modality_quantizer import quantize

    codes, residuals = quantize(module, inputs, device=device)
    flat_residuals = residuals.flatten(1).numpy()
    return pl.DataFrame(
        {
            "codes": pl.Series(codes.tolist(), dtype=pl.List(pl.Int64)),
            "entering": pl.Series(flat_residuals, dtype=pl.Array(pl.Float32, flat_residuals.shape[1])),
        }
    )
