"""Turns the texts or images of a catalogue into embeddings; the same loop serves both modalities.

The loop identifies each input by a digest of its content, looks up the vectors that an earlier or interrupted run has
computed, encodes the remaining inputs in shards, and imputes a vector for items without an input. Shards are encoded by
this process, worker processes or Ray. All of them produce the same bytes, because the order of the inputs alone
determines what a shard and its batches contain. A `Modality` says in what texts and images differ.
Shapes (docs/notation.md): B batch rows, N items, D embedding width.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from macrec_pipeline.config import ImageEncoderConfig, RuntimeConfig, TextEncoderConfig
from macrec_pipeline.embeddings import cache
from macrec_pipeline.embeddings.adaptive_batching import AdaptiveBatching
from macrec_pipeline.embeddings.cache import CachedVectors, EncodedShard, VectorCache, save_shard
from macrec_pipeline.embeddings.result import EmbeddingResult, build_embedding_result
from macrec_pipeline.errors import EncoderError, StorageError
from macrec_pipeline.runtime.progress import Progress
from macrec_pipeline.runtime.sharding.drivers import map_shards
from macrec_pipeline.runtime.sharding.shards import Shard, ShardTask, split_into_shards

PreparedT = TypeVar("PreparedT")

Input: TypeAlias = tuple[str, ...]
"""What is encoded for one item: the fields of its text, or the path of its image alone."""

EncoderConfig: TypeAlias = TextEncoderConfig | ImageEncoderConfig


class ModalityEncoder(Protocol[PreparedT]):
    """A loaded encoder, with everything that it does to the inputs of its modality.

    Attributes:
        description: see `EmbeddingResult.encoder`.
        fingerprint: see `EmbeddingResult.encoder_fingerprint`.
        batching: holds the batch size.
    """

    @property
    def description(self) -> dict[str, Any]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def batching(self) -> AdaptiveBatching: ...

    def prepare(self, inputs: Sequence[Input]) -> AbstractContextManager[Iterable[PreparedT | str]]:
        """Prepare inputs for `encode_batch`, such as by decoding images.

        Returns:
            A context in which each input, in order, yields what `encode_batch` takes, or a string that says why this
            input cannot be encoded.
        """

    def encode_batch(self, batch: Sequence[PreparedT]) -> NDArray[np.float32]:
        """Encode B prepared inputs: float32 [B, D]."""


LoadEncoder: TypeAlias = Callable[[Any, torch.device], ModalityEncoder[Any]]
"""Loads an encoder from its section of the settings; a function at the top level of a module, so that workers can
import it."""


@dataclass(frozen=True)
class Modality:
    """What texts and images do differently in the loop.

    Attributes:
        stage: name of the stage in progress reports.
        load_encoder: see `LoadEncoder`.
        digest_contents: inputs -> for each one a digest of its content, in hexadecimal.
        sort_for_encoding: distinct inputs by content -> the same in the order in which they are encoded.
        plural: what a message calls several inputs.
        advice: what the user should check if no input can be used; ends the error message.
    """

    stage: str
    load_encoder: LoadEncoder
    digest_contents: Callable[[Sequence[Input]], list[str]]
    sort_for_encoding: Callable[[Mapping[str, Input]], Mapping[str, Input]]
    plural: str
    advice: str


def embed(
    modality: Modality,
    inputs: Sequence[Input | None],
    config: EncoderConfig,
    *,
    device: torch.device,
    progress: Progress,
    cached: CachedVectors | None,
    shard_folder: Path | None,
    runtime: RuntimeConfig | None,
) -> EmbeddingResult:
    """Embed the input of each item.

    Args:
        modality: texts or images.
        inputs: one per item, N in all; None for an item without one.
        config: the settings of the encoder.
        device: device of the encoder in this process.
        progress: called after each batch, or after each shard of a worker, with the number of distinct inputs that are
            finished; inputs whose vector is reused do not count.
        cached: the vectors of an earlier run, to be reused where the input and the encoder are the same.
        shard_folder: a folder for finished shards, from which a run that was interrupted can resume. Required if
            `runtime` has workers.
        runtime: the driver that encodes the shards; None for this process.

    Raises:
        EncoderError: there is no input, the encoder cannot be loaded, no input can be encoded, or a vector is not
            finite.
        StorageError: a worker could not write its shard.
        WorkerError: several workers died on the same shard.
    """
    given = [value for value in inputs if value is not None]
    if not given:
        raise EncoderError(
            f"There are no {modality.plural} to embed: none of the {len(inputs)} items has one. {modality.advice}"
        )
    encoder = modality.load_encoder(config, device)
    vectors = VectorCache(encoder.fingerprint, cached=cached, shard_folder=shard_folder)
    digests = iter(modality.digest_contents(given))
    contents = [None if value is None else next(digests) for value in inputs]  # N
    new: dict[str, Input] = {}
    for content, value in zip(contents, inputs, strict=True):
        if content is not None and value is not None and content not in vectors:
            new.setdefault(content, value)
    started = time.perf_counter()
    _encode_in_shards(
        modality.sort_for_encoding(new),
        vectors,
        encoder,
        load_encoder=modality.load_encoder,
        config=config,
        runtime=runtime or RuntimeConfig(),
        device=device,
        progress=partial(progress, modality.stage),
    )
    seconds = time.perf_counter() - started
    if all(content is None or content in vectors.failures for content in contents):
        example = next(content for content in contents if content is not None)
        raise EncoderError(
            f"None of the {len(set(given))} {modality.plural} can be encoded. The first is {' '.join(given[0])}: "
            f"{vectors.failures[example]}. {modality.advice}"
        )
    return build_embedding_result(
        contents,
        vectors,
        encoder=encoder.description,
        num_encoded=len(new.keys() - vectors.failures.keys()),
        seconds=seconds,
        batch_size=encoder.batching.size,
    )


def encode_shard(
    encoder: ModalityEncoder[PreparedT], inputs: Mapping[str, Input], on_progress: Callable[[int], None]
) -> EncodedShard:
    """Encode the inputs of a shard in batches, in the given order.

    Args:
        encoder: the encoder of the inputs' modality.
        inputs: at least one input, by content.
        on_progress: called after each batch with the number of inputs that are finished.

    Returns:
        The vectors, and the reason for each input that could not be prepared.
    """
    contents, failures = list[str](), dict[str, str]()
    blocks = list[NDArray[np.float32]]()
    batch = dict[str, PreparedT]()
    with encoder.prepare(list(inputs.values())) as prepared_inputs:
        for num_prepared, (content, prepared) in enumerate(zip(inputs, prepared_inputs, strict=True), start=1):
            if isinstance(prepared, str):
                failures[content] = prepared
            else:
                batch[content] = prepared
            if len(batch) >= encoder.batching.size or num_prepared == len(inputs):
                if batch:
                    contents += batch
                    blocks.append(encoder.encode_batch(list(batch.values())))  # [B, D]
                batch = {}
                on_progress(num_prepared)
    return EncodedShard(contents, np.concatenate(blocks or [np.empty((0, 0), dtype=np.float32)]), failures)


def _encode_in_shards(
    inputs: Mapping[str, Input],
    vectors: VectorCache,
    encoder: ModalityEncoder[Any],
    *,
    load_encoder: LoadEncoder,
    config: EncoderConfig,
    runtime: RuntimeConfig,
    device: torch.device,
    progress: Callable[[int, int, Mapping[str, float] | None], None],
) -> None:
    """Encode inputs with the driver of `runtime`, and add their vectors or failures to `vectors`.

    Args:
        inputs: by content, those that are not in `vectors`; shards take them in this order.
        vectors: receives the vectors; workers write their shards to its folder.
        encoder: the encoder of this process.
        load_encoder, config: load the same encoder in a worker.
        runtime, device: see `map_shards`.
        progress: called with the number of finished inputs, of all inputs, and the rate.

    Raises:
        EncoderError: the encoder of a worker differs from this one.
        StorageError, WorkerError: see `embed`.
    """
    started, num_finished, order = time.perf_counter(), 0, list(inputs)

    def report(num_done: int) -> None:
        rate = {"per_second": num_done / max(time.perf_counter() - started, 1e-9)} if num_done else None
        progress(num_done, len(inputs), rate)

    def encode_here(shard: Shard) -> None:
        shard_inputs = {content: inputs[content] for content in order[shard.first : shard.first + shard.count]}
        encoded = encode_shard(encoder, shard_inputs, lambda num_done: report(shard.first + num_done))
        if vectors.shard_folder is not None:
            save_shard(vectors.shard_folder, shard.number, encoded, fingerprint=vectors.fingerprint)
        vectors.add(encoded)

    def load_from_worker(shard: Shard) -> None:
        nonlocal num_finished
        if not vectors.load_shard(shard.number):
            raise StorageError(
                f"A worker finished {shard}, but {vectors.shard_folder} has no readable file of it. Check that the "
                "disk has room and that every worker sees this folder under the same path."
            )
        num_finished += shard.count
        report(num_finished)

    report(0)
    if not inputs:
        return
    shards = [
        replace(shard, number=vectors.next_shard + shard.number)
        for shard in split_into_shards(len(inputs), cache.SHARD_SIZE)
    ]
    if runtime.driver == "in_process":
        map_shards(lambda _: encode_here, shards, runtime, device=device)
        return
    assert vectors.shard_folder is not None, "workers return their vectors through a folder"
    # Workers use the batch size that was chosen here: the batch size must not depend on a worker's free memory.
    config = config.model_copy(update={"batch_size": encoder.batching.size})
    inputs_file = _write_inputs(inputs, vectors.shard_folder)
    load_task = _LoadEncodingTask(load_encoder, config, inputs_file, vectors.fingerprint)
    map_shards(load_task, shards, runtime, device=device, on_finished=load_from_worker)


def _write_inputs(inputs: Mapping[str, Input], folder: Path) -> Path:
    path = folder / "inputs.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"content": list(inputs), "input": [list(value) for value in inputs.values()]}
    schema = {"content": pl.String(), "input": pl.List(pl.String())}
    pl.DataFrame(columns, schema=schema).write_parquet(path, row_group_size=cache.SHARD_SIZE)
    return path


@dataclass(frozen=True)
class _LoadEncodingTask:
    """Sent to workers: loads the encoder there and returns the task that encodes a shard of the inputs file."""

    load_encoder: LoadEncoder
    config: EncoderConfig
    inputs_file: Path
    fingerprint: str

    def __call__(self, device: torch.device) -> ShardTask:
        encoder = self.load_encoder(self.config, device)
        if encoder.fingerprint != self.fingerprint:
            raise EncoderError(
                f"The encoder {self.config.name!r} of this worker has other weights or settings than that of the "
                "process that started the work. Install the same model files on every machine."
            )

        def encode(shard: Shard) -> None:
            rows = pl.scan_parquet(self.inputs_file, glob=False).slice(shard.first, shard.count).collect()
            inputs = {content: tuple(value) for content, value in rows.iter_rows()}
            encoded = encode_shard(encoder, inputs, lambda _: None)
            save_shard(self.inputs_file.parent, shard.number, encoded, fingerprint=self.fingerprint)

        return encode
