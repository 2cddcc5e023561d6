"""The nearest codes of a whole catalogue in shards, by this process, worker processes or Ray.

In: a quantizer and what it takes. Out: what `semantic_ids.quantize` gives, to the byte. Collisions are then resolved in
one place: who gets an ID depends on all who ask for it.

Shapes: N items, D what the quantizer takes, L levels, H latent.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from macrec_pipeline.defs.asset_context import AssetContext
from macrec_pipeline.defs.sharded_tasks import Quantizing, nearest_codes
from macrec_pipeline.defs.table_conversion import codes_of
from macrec_pipeline.schemas import NEAREST_CODES
from macrec_pipeline.storage import write_shards
from macrec_pipeline.storage.shards import LoadRows
from macrec_pipeline.storage.table_files import read_table_file
from macrec_pipeline.storage.vector_files import write_vector_file

if TYPE_CHECKING:
    import torch

    from macrec_pipeline.semantic_ids import FittedQuantizer
    from macrec_pipeline.semantic_ids.assignment import Quantize

# A multiple of the items that a quantizer takes at once, so that shards change nothing.
ITEMS_PER_SHARD = 65_536


def quantizing_in_shards(
    work: AssetContext, quantizer: "FittedQuantizer", scratch: Path, device: "torch.device"
) -> "Quantize":
    """What to hand to `assign_semantic_ids` and `append_semantic_ids` as `quantize_by`.

    Args:
        work: of an asset that is made from the quantizer and the embeddings.
        quantizer: the one of the store.
        scratch: where the shards are kept.
        device: of this process.
    """
    import torch

    runtime = work.config.runtime.for_shards()

    def load_rows(modality: str, inputs: np.ndarray) -> LoadRows:
        if runtime.driver == "in_process":  # what is here need not be written down and read again
            module = quantizer.modules[modality]
            return lambda _: lambda first, count: nearest_codes(module, inputs[first : first + count], device=device)
        path = scratch / f"{modality}.parquet"
        scratch.mkdir(parents=True, exist_ok=True)
        write_vector_file(path, pl.DataFrame({"inputs": _vectors(inputs)}))
        return Quantizing(work.folder("quantizer"), modality, path)

    def quantize_by(modality: str, inputs: np.ndarray) -> "tuple[np.ndarray, torch.Tensor]":
        shards = write_shards(
            scratch / modality,
            NEAREST_CODES,
            load_rows(modality, inputs),
            num_rows=len(inputs),
            rows_per_shard=ITEMS_PER_SHARD,
            depends_on={"modality": modality, "inputs": work.inputs},
            runtime=runtime,
            device=device,
            progress=work.progress,
        )
        table = pl.concat([read_table_file(shard, NEAREST_CODES) for shard in shards])
        entering = table["entering"].to_numpy(writable=True)
        return codes_of(table, "codes"), torch.from_numpy(entering).reshape(len(table), 2, -1)

    return quantize_by


def _vectors(matrix: np.ndarray) -> pl.Series:
    return pl.Series(np.ascontiguousarray(matrix), dtype=pl.Array(pl.Float32, matrix.shape[1]))
