"""What has no vector yet is encoded in shards, by this process, worker processes or Ray.

In: inputs by content, in the order in which they are encoded: a text's fields, or a picture's path. Out: their vectors,
the same bytes whoever makes them, since a shard's inputs and batches follow from that order alone.
Symbols: B batch.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import torch

from macrec_pipeline.config import ImageEncoderConfig, RuntimeConfig, TextEncoderConfig
from macrec_pipeline.embeddings import cache
from macrec_pipeline.embeddings.adaptive_batching import Batching
from macrec_pipeline.embeddings.cache import Encoded, VectorsByContent, write_encoded
from macrec_pipeline.errors import EncoderError, StorageError
from macrec_pipeline.runtime.sharding.shards import Make, Shard, map_shards, shards_of

Inputs = Mapping[str, Sequence[str]]
"""Content -> a text's fields, or a picture's path alone."""


class Encoding(Protocol):
    """A loaded encoder with the settings that decide a vector.

    Attributes:
        made_by: see `Embedded.made_by`.
        batching: the inputs at once.
    """

    @property
    def made_by(self) -> str: ...

    @property
    def batching(self) -> Batching: ...

    def encode(self, inputs: Inputs, done: Callable[[int], None]) -> Encoded:
        """Encode a shard; `done` is called after each batch with the inputs that are finished."""


LoadEncoding = Callable[[Any, torch.device], Encoding]
"""A function of a module: the encoder's section of the settings, and where the encoder runs."""


def encode_in_shards(
    inputs: Inputs,
    vectors: VectorsByContent,
    encoding: Encoding,
    *,
    load: LoadEncoding,
    config: TextEncoderConfig | ImageEncoderConfig,
    runtime: RuntimeConfig,
    device: torch.device,
    progress: Callable[[int, int, Mapping[str, float] | None], None],
) -> None:
    """Add the vectors of inputs, and why others have none.

    Args:
        inputs: those that are not in `vectors`.
        vectors: gets them; its folder of shards is where workers write.
        encoding: of this process.
        load, config: what gives the same in a worker.
        runtime, device: who works; see `map_shards`.
        progress: called with the inputs that are finished, those that there are, and the rate, after each batch of
            this process or each shard of a worker.

    Raises:
        EncoderError: as `encoding`; a worker's encoder is another one than this process's.
        StorageError: a worker could not write its shard.
        WorkerError: workers died over a shard.
    """
    started, finished, order = time.perf_counter(), 0, list(inputs)

    def tell(done: int) -> None:
        rate = {"per_second": done / max(time.perf_counter() - started, 1e-9)} if done else None
        progress(done, len(inputs), rate)

    def make(shard: Shard) -> None:
        some = {content: inputs[content] for content in order[shard.first : shard.first + shard.count]}
        encoded = encoding.encode(some, lambda done: tell(shard.first + done))
        if vectors.shards is not None:
            write_encoded(vectors.shards, shard.number, encoded, made_by=vectors.made_by)
        vectors.add(encoded)

    def take(shard: Shard) -> None:
        nonlocal finished
        if not vectors.take_shard(shard.number):
            raise StorageError(f"{vectors.shards}: {shard} is not there, although it has been made: the disk refused.")
        finished += shard.count
        tell(finished)

    tell(0)
    if not inputs:
        return
    shards = [
        replace(shard, number=vectors.next_number + shard.number) for shard in shards_of(len(inputs), cache.SHARD_SIZE)
    ]
    if runtime.driver == "in_process":
        map_shards(lambda _: make, shards, runtime, device=device)
        return
    assert vectors.shards is not None, "workers hand over their vectors in a folder"
    config = config.model_copy(update={"batch_size": encoding.batching.size})  # what is free now decides for all
    table = _written(inputs, vectors.shards)
    map_shards(_Encoding(load, config, table, vectors.made_by), shards, runtime, device=device, done=take)


def _written(inputs: Inputs, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"content": list(inputs), "input": [list(each) for each in inputs.values()]}
    schema = {"content": pl.String(), "input": pl.List(pl.String())}
    pl.DataFrame(columns, schema=schema).write_parquet(folder / "inputs.parquet", row_group_size=cache.SHARD_SIZE)
    return folder / "inputs.parquet"


@dataclass(frozen=True)
class _Encoding:
    """What travels to workers."""

    load: LoadEncoding
    config: TextEncoderConfig | ImageEncoderConfig
    inputs: Path
    made_by: str

    def __call__(self, device: torch.device) -> Make:
        encoding = self.load(self.config, device)
        if encoding.made_by != self.made_by:
            raise EncoderError(
                f"The encoder {self.config.name!r} has other weights or another version here than where the work was "
                "started. Every machine must have the same."
            )

        def make(shard: Shard) -> None:
            rows = pl.scan_parquet(self.inputs).slice(shard.first, shard.count).collect()
            inputs = dict(zip(rows["content"].to_list(), rows["input"].to_list(), strict=True))
            encoded = encoding.encode(inputs, lambda _: None)
            write_encoded(self.inputs.parent, shard.number, encoded, made_by=self.made_by)

        return make
