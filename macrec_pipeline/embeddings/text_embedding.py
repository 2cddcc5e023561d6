"""Embeds item texts (MACRec section 3.1). Takes texts and returns one vector per item.

A text may consist of several fields. Each field is then encoded separately, and the item's vector is the mean over its
fields, as in the paper. Texts of similar length share a batch, so that little of it is padding.
Shapes (docs/notation.md): B batch rows, D embedding width, N items.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from macrec_pipeline.config import RuntimeConfig, TextEncoderConfig
from macrec_pipeline.embeddings.adaptive_batching import AdaptiveBatching
from macrec_pipeline.embeddings.cache import CachedVectors, encoder_fingerprint
from macrec_pipeline.embeddings.embedding_loop import Input, Modality, embed
from macrec_pipeline.embeddings.result import EmbeddingResult
from macrec_pipeline.embeddings.text_encoders import TextEncoder, load_text_encoder
from macrec_pipeline.runtime.progress import Progress


def embed_texts(
    texts: Sequence[str | Sequence[str | None] | None],
    config: TextEncoderConfig,
    *,
    device: torch.device,
    progress: Progress,
    cached: CachedVectors | None = None,
    shard_folder: Path | None = None,
    runtime: RuntimeConfig | None = None,
) -> EmbeddingResult:
    """Embed one text per item, and encode only those texts whose vector cannot be reused.

    Args:
        texts: N texts, each a string or a sequence of fields. None, or nothing but white space, stands for an item or
            a field without a text.
        config: the encoder's name, batch size, prefix and precision, and the tokens after which a text is cut off.
        device: device of the encoder.
        progress: called as stage "text embeddings"; see `embed`.
        cached, shard_folder, runtime: see `embed`.

    Returns:
        The embeddings. `failures` is empty, since every text can be embedded.

    Raises:
        EncoderError: no item has a text, the encoder cannot be loaded, or a vector is not finite.
        StorageError, WorkerError: see `embed`.
    """
    return embed(
        _TEXTS,
        [_non_empty_fields(text) or None for text in texts],
        config,
        device=device,
        progress=progress,
        cached=cached,
        shard_folder=shard_folder,
        runtime=runtime,
    )


@dataclass(frozen=True)
class TextModalityEncoder:
    """Encodes texts for the embedding loop; see `ModalityEncoder`."""

    encoder: TextEncoder
    prefix: str
    fingerprint: str
    batching: AdaptiveBatching

    @property
    def description(self) -> dict[str, Any]:
        """See `EmbeddingResult.encoder`."""
        return self.encoder.description

    def prepare(self, inputs: Sequence[Input]) -> nullcontext[Sequence[Input]]:
        """Return the inputs unchanged: texts need no preparation."""
        return nullcontext(inputs)

    def encode_batch(self, batch: Sequence[Input]) -> NDArray[np.float32]:
        """Encode B texts, each given by its fields: float32 [B, D]."""
        fields = [self.prefix + field for text_fields in batch for field in text_fields]
        by_length = sorted(range(len(fields)), key=lambda position: -len(fields[position]))
        sorted_vectors = self.batching.run(
            lambda some: self.encoder.encode(list(some)), [fields[position] for position in by_length]
        )
        vectors = np.empty_like(sorted_vectors)  # [fields, D]
        vectors[by_length] = sorted_vectors
        return _mean_per_text(vectors, [len(text_fields) for text_fields in batch])


def load_text_modality_encoder(config: TextEncoderConfig, device: torch.device) -> TextModalityEncoder:
    """Load the text encoder that the settings name.

    Raises:
        EncoderError: the encoder cannot be loaded.
    """
    encoder = load_text_encoder(config.name, max_tokens=config.max_tokens, device=device, precision=config.precision)
    fingerprint = encoder_fingerprint(encoder.description, **({"prefix": config.prefix} if config.prefix else {}))
    batching = AdaptiveBatching(config.batch_size, device=device, bytes_per_input=encoder.bytes_per_text)
    return TextModalityEncoder(encoder, config.prefix, fingerprint, batching)


def _non_empty_fields(text: str | Sequence[str | None] | None) -> Input:
    fields = [text] if text is None or isinstance(text, str) else text
    return tuple(field for field in fields if field is not None and field.strip())


def _digest_texts(inputs: Sequence[Input]) -> list[str]:
    return [hashlib.sha256("\0".join(fields).encode()).hexdigest() for fields in inputs]


def _longest_first(inputs: Mapping[str, Input]) -> Mapping[str, Input]:
    """Sort texts by their longest field, so that a batch too large for memory fails at once and not after an hour."""
    return dict(sorted(inputs.items(), key=lambda pair: -max(map(len, pair[1]))))


def _mean_per_text(vectors: NDArray[np.float32], fields_per_text: list[int]) -> NDArray[np.float32]:
    """Average the vectors of each text's fields, which are adjacent: float32 [fields, D] -> [B, D]."""
    if len(fields_per_text) == len(vectors):
        return vectors
    starts = np.concatenate([[0], np.cumsum(fields_per_text)[:-1]])
    sums: NDArray[np.float32] = np.add.reduceat(vectors, starts, axis=0)
    return sums / np.array(fields_per_text, dtype=np.float32)[:, None]


_TEXTS = Modality(
    stage="text embeddings",
    load_encoder=load_text_modality_encoder,
    digest_contents=_digest_texts,
    sort_for_encoding=_longest_first,
    plural="texts",
    advice="Check the text columns in the data set's mapping.",
)
