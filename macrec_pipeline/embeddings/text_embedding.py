"""Item texts -> text embeddings (MACRec section 3.1): texts go in, one vector an item leaves.

Texts of like length share a batch, so little of it is padding; items without a text get the mean of the others. A text
may be several fields, each encoded alone: the item's vector is then their mean, as the paper's are.
Symbols: N items, B batch, F fields, D embedding.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from macrec_pipeline.config import RuntimeConfig, TextEncoderConfig
from macrec_pipeline.embeddings.adaptive_batching import Batching
from macrec_pipeline.embeddings.cache import CachedVectors, Encoded, VectorsByContent, made_by
from macrec_pipeline.embeddings.embedding_loop import Inputs, encode_in_shards
from macrec_pipeline.embeddings.result import EmbeddingResult, build_embedding_result
from macrec_pipeline.embeddings.text_encoders import TextEncoder, load_text_encoder
from macrec_pipeline.errors import EncoderError
from macrec_pipeline.runtime.progress import Progress

STAGE = "text embeddings"


def embed_texts(
    texts: Sequence[str | Sequence[str | None] | None],
    config: TextEncoderConfig,
    *,
    device: torch.device,
    progress: Progress,
    before: CachedVectors | None = None,
    shards: Path | None = None,
    runtime: RuntimeConfig | None = None,
) -> EmbeddingResult:
    """Embed one text an item, those alone that have no vector yet.

    Args:
        texts: N texts, or a text's fields; None, or nothing but white space, for an item or a field without one.
        config: the encoder's name, batch size, prefix, precision and the tokens after which a text is cut off.
        device: where the encoder runs.
        progress: called as stage "text embeddings" after each batch, counting distinct texts that have no vector yet.
        before: vectors of an earlier run.
        shards: a folder that keeps what is done, should this be cut off; workers need one.
        runtime: who encodes; None: this process.

    Returns:
        The embeddings; `failures` is empty, since any text can be embedded.

    Raises:
        EncoderError: the encoder cannot be loaded, no item has a text, or a vector is not finite.
        StorageError, WorkerError: see `encode_in_shards`.
    """
    fields = [_fields(text) for text in texts]
    contents = [_digest("\0".join(own)) if own else None for own in fields]
    distinct = {content: own for content, own in zip(contents, fields, strict=True) if content}
    if not distinct:
        raise EncoderError(
            f"None of the {len(texts)} items has a text, so there are no text embeddings to make. Check the text "
            "columns in the data set's mapping."
        )
    encoding = load_text_encoding(config, device)
    vectors = VectorsByContent(encoding.made_by, before=before, shards=shards)
    new = {content: own for content, own in distinct.items() if content not in vectors}
    # the longest first, so that a batch too large for memory fails at once
    longest_first = dict(sorted(new.items(), key=lambda pair: -max(map(len, pair[1]))))
    started = time.perf_counter()
    encode_in_shards(
        longest_first,
        vectors,
        encoding,
        load=load_text_encoding,
        config=config,
        runtime=runtime or RuntimeConfig(),
        device=device,
        progress=partial(progress, STAGE),
    )
    return build_embedding_result(
        contents,
        vectors,
        encoder=encoding.encoder.description,
        made_by=encoding.made_by,
        failures=(),
        num_encoded=len(new),
        seconds=time.perf_counter() - started,
        batch_size=encoding.batching.size,
    )


@dataclass(frozen=True)
class TextEncoding:
    """See `Encoding`."""

    encoder: TextEncoder
    prefix: str
    made_by: str
    batching: Batching

    def encode(self, inputs: Inputs, done: Callable[[int], None]) -> Encoded:
        """Encode texts, given as their fields, in the order in which they come."""
        order, found = list(inputs), list[NDArray[np.float32]]()
        finished = 0
        while finished < len(order):
            batch = order[finished : finished + self.batching.size]
            found.append(self._batch([inputs[content] for content in batch]))  # [B, D]
            finished += len(batch)
            done(finished)
        return Encoded(order, np.concatenate(found), {})

    def _batch(self, texts: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        fields = [self.prefix + field for own in texts for field in own]
        by_length = sorted(range(len(fields)), key=lambda place: -len(fields[place]))
        found = self.batching.run(
            lambda piece: self.encoder.encode(list(piece)), [fields[place] for place in by_length]
        )
        encoded = np.empty_like(found)  # [F, D]
        encoded[by_length] = found
        return _means(encoded, [len(own) for own in texts])


def load_text_encoding(config: TextEncoderConfig, device: torch.device) -> TextEncoding:
    """Load the encoder of the settings. Raises `EncoderError`."""
    encoder = load_text_encoder(config.name, max_tokens=config.max_tokens, device=device, precision=config.precision)
    identity = made_by(encoder.description, **({"prefix": config.prefix} if config.prefix else {}))
    batching = Batching(config.batch_size, device=device, bytes_an_input=encoder.bytes_a_text)
    return TextEncoding(encoder, config.prefix, identity, batching)


def _means(encoded: NDArray[np.float32], counts: list[int]) -> NDArray[np.float32]:
    """The mean of each item's fields, which stand together: float32 [F, D] -> [B, D]."""
    if len(counts) == len(encoded):
        return encoded
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums: NDArray[np.float32] = np.add.reduceat(encoded, starts, axis=0)
    return sums / np.array(counts, dtype=np.float32)[:, None]


def _fields(text: str | Sequence[str | None] | None) -> list[str]:
    """What there is to encode of an item."""
    given = [text] if text is None or isinstance(text, str) else text
    return [field for field in given if field is not None and field.strip()]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
