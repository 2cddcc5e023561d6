"""What workers do for the assets: a model is loaded, and some rows after others are read, computed and handed back.

In: paths and a few words, which are all that travels. Out: rows of a shard. Every worker imports this module, so it
imports no dagster; the paths must be the same on every machine.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from macrec_pipeline.schemas import RECOMMENDATIONS
from macrec_pipeline.storage.shards import MakeRows

if TYPE_CHECKING:
    import torch

    from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer


@dataclass(frozen=True)
class Recommending:
    """`RECOMMENDATIONS` of some users.

    Attributes:
        bundle: a folder for `RecommenderBundle.load`.
        items: the `items` table.
        histories: a parquet table of `user_id` and `item_indices`.
        top_k, exclude_seen: see `RecommendationsConfig`.
    """

    bundle: Path
    items: Path
    histories: Path
    top_k: int
    exclude_seen: bool

    def __call__(self, device: "torch.device") -> MakeRows:
        """Load the bundle."""
        from macrec_pipeline.recommender import RecommenderBundle

        bundle = RecommenderBundle.load(self.bundle, device=device)
        item_ids = np.array(pl.read_parquet(self.items, columns=["item_id"])["item_id"].to_list(), dtype=object)

        def recommend(first: int, count: int) -> pl.DataFrame:
            some = pl.scan_parquet(self.histories).slice(first, count).collect()
            histories = [item_ids[history.to_numpy()].tolist() for history in some["item_indices"]]
            answers = bundle.recommend_ids(histories, k=self.top_k, exclude_seen=self.exclude_seen)
            columns = {
                name: [getattr(answer, name) for answer in answers] for name in ("item_ids", "scores", "fallback")
            }
            return pl.DataFrame({"user_id": some["user_id"], **columns}, schema=RECOMMENDATIONS.columns)

        return recommend


def nearest_codes(module: "ModalityQuantizer", inputs: np.ndarray, *, device: "torch.device") -> pl.DataFrame:
    """`NEAREST_CODES` of float32 [N, D]."""
    from macrec_pipeline.semantic_ids.modality_quantizer import quantize

    codes, residuals = quantize(module, inputs, device=device)
    entering = residuals.flatten(1).numpy()
    return pl.DataFrame(
        {
            "codes": pl.Series(codes.tolist(), dtype=pl.List(pl.Int64)),
            "entering": pl.Series(entering, dtype=pl.Array(pl.Float32, entering.shape[1])),
        }
    )


@dataclass(frozen=True)
class Quantizing:
    """`NEAREST_CODES` of some items in one modality.

    Attributes:
        quantizer: a folder for `FittedQuantizer.load`.
        modality: "text" or "image".
        inputs: a parquet table of one column of vectors, what the quantizer takes.
    """

    quantizer: Path
    modality: str
    inputs: Path

    def __call__(self, device: "torch.device") -> MakeRows:
        """Load the quantizer."""
        from macrec_pipeline.semantic_ids import FittedQuantizer

        module = FittedQuantizer.load(self.quantizer, device=device).modules[self.modality]

        def nearest(first: int, count: int) -> pl.DataFrame:
            column = pl.scan_parquet(self.inputs).slice(first, count).collect().to_series()
            return nearest_codes(module, column.to_numpy(), device=device)

        return nearest
