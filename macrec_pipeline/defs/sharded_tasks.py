"""The tasks that worker processes do for assets: load a model once, then compute the rows of one shard after another.

A task holds only paths and plain values, because it is sent to the workers; the paths must be the same on every
machine. Every worker imports this module, so it must not import dagster.

Shapes (docs/notation.md): N items, D width of an embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        histories: a Parquet table with `user_id` and `item_ids`, and a column per rule if users have rules.
        catalogue: a Parquet table with the `item_id` of each item that may be recommended.
        model, as_of: the columns of these names.
        top_k, exclude_seen: see `RecommendationsConfig`.
    """

    bundle: Path
    histories: Path
    catalogue: Path
    model: str
    as_of: int
    top_k: int
    exclude_seen: bool

    def __call__(self, device: "torch.device") -> ComputeRows:
        """Load the bundle and return the function that computes rows with it."""
        from macrec_pipeline.recommender import RecommenderBundle
        from macrec_pipeline.recommender.retrieval.eligible_items import Rules

        bundle = RecommenderBundle.load(self.bundle, device=device)
        listed = set(pl.read_parquet(self.catalogue, glob=False, columns=["item_id"])["item_id"])
        # Without an item to leave out there is no rule, and no cost of one.
        rules = None if listed.issuperset(bundle.item_ids) else Rules(allowed=listed)

        def recommend(first: int, count: int) -> pl.DataFrame:
            users = pl.scan_parquet(self.histories, glob=False).slice(first, count).collect()
            rules_of_users = map(_without_nulls, users.drop("user_id", "item_ids").iter_rows(named=True))
            answers = bundle.recommend_ids(
                users["item_ids"].to_list(),
                k=self.top_k,
                exclude_seen=self.exclude_seen,
                rules=rules,
                rules_of_rows=[Rules(**given) if given else None for given in rules_of_users],
            )
            columns = {
                name: [getattr(answer, name) for answer in answers] for name in ("item_ids", "scores", "fallback")
            }
            constants = {name: pl.repeat(getattr(self, name), count, eager=True) for name in ("model", "as_of")}
            return pl.DataFrame(
                {"user_id": users["user_id"], **columns, **{n: v.head(users.height) for n, v in constants.items()}},
                schema=RECOMMENDATIONS.columns,
            )

        return recommend


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: cell for name, cell in row.items() if cell is not None}


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
