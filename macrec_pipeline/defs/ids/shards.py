"""Quantizes a whole catalogue in shards: in this process, in worker processes, or with Ray.

The result has the same bytes as that of `semantic_ids.quantize`. Only the nearest codes are computed in shards;
collisions are resolved in one place, because who gets an ID depends on every item that competes for it.

Shapes (docs/notation.md): N items, D width of the quantizer's input, L levels, H width of its latent vectors.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from macrec_pipeline.defs.asset_context import AssetContext
from macrec_pipeline.defs.sharded_tasks import QuantizationTask, nearest_codes
from macrec_pipeline.defs.table_conversion import codes_matrix
from macrec_pipeline.schemas import NEAREST_CODES
from macrec_pipeline.storage import write_shards
from macrec_pipeline.storage.table_files import read_table_file, write_vector_file
from macrec_pipeline.storage.table_shards import RowsLoader

if TYPE_CHECKING:
    import torch

    from macrec_pipeline.semantic_ids import FittedQuantizer
    from macrec_pipeline.semantic_ids.assignment import QuantizeModality

# A multiple of the batch that a quantizer computes at once, so that sharding does not change the result.
ITEMS_PER_SHARD = 65_536


def sharded_quantize(
    asset: AssetContext, quantizer: "FittedQuantizer", scratch: Path, device: "torch.device"
) -> "QuantizeModality":
    """Return the function that `assign_semantic_ids` and `append_semantic_ids` take as `quantize_modality`.

    Args:
        asset: an asset that is made from the quantizer and the embeddings.
        quantizer: the stored quantizer.
        scratch: the folder where shards are kept.
        device: the device of this process.
    """
    import torch

    runtime = asset.config.runtime.for_shards()

    def task_for(modality: str, inputs: np.ndarray) -> RowsLoader:
        if runtime.driver == "in_process":  # the vectors are in memory, so they need not go through a file
            module = quantizer.modules[modality]
            return lambda _: lambda first, count: nearest_codes(module, inputs[first : first + count], device=device)
        path = scratch / f"{modality}.parquet"
        scratch.mkdir(parents=True, exist_ok=True)
        write_vector_file(path, pl.DataFrame({"inputs": _vector_column(inputs)}))
        return QuantizationTask(asset.folder("quantizer"), modality, path)

    def quantize_modality(modality: str, inputs: np.ndarray) -> "tuple[np.ndarray, torch.Tensor]":
        shards = write_shards(
            scratch / modality,
            NEAREST_CODES,
            task_for(modality, inputs),
            num_rows=len(inputs),
            rows_per_shard=ITEMS_PER_SHARD,
            depends_on={"modality": modality, "inputs": asset.input_digests},
            runtime=runtime,
            device=device,
            progress=asset.progress,
        )
        table = pl.concat([read_table_file(shard, NEAREST_CODES) for shard in shards])
        residuals = torch.from_numpy(table["entering"].to_numpy(writable=True))
        return codes_matrix(table, "codes"), residuals.reshape(len(table), 2, -1)  # [N, L], [N, 2, H]

    return quantize_modality


def _vector_column(matrix: np.ndarray) -> pl.Series:
    return pl.Series(np.ascontiguousarray(matrix), dtype=pl.Array(pl.Float32, matrix.shape[1]))
