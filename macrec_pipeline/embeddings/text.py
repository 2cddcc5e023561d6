"""Item texts -> text embeddings (MACRec section 3.1): texts go in, one vector an item leaves.

Texts of like length share a batch, so little of it is padding; items without a text get the mean of the others. A text
may be several fields, each encoded alone: the item's vector is then their mean, as the paper's are.
Symbols: N items, B batch, F fields, D embedding.
"""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from macrec_pipeline.config import TextEncoderConfig
from macrec_pipeline.embeddings.batching import Batching
from macrec_pipeline.embeddings.embedded import Embedded, build_embedded
from macrec_pipeline.embeddings.made_before import MadeBefore, VectorsByContent, made_by
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
    before: MadeBefore | None = None,
    shards: Path | None = None,
) -> Embedded:
    """Embed one text an item, those alone that have no vector yet.

    Args:
        texts: N texts, or a text's fields; None, or nothing but white space, for an item or a field without one.
        config: the encoder's name, batch size, prefix, precision and the tokens after which a text is cut off.
        device: where the encoder runs.
        progress: called as stage "text embeddings" after each batch, counting distinct texts that have no vector yet.
        before: vectors of an earlier run.
        shards: a folder that keeps what is done, should this be cut off.

    Returns:
        The embeddings; `failures` is empty, since any text can be embedded.

    Raises:
        EncoderError: the encoder cannot be loaded, no item has a text, or a vector is not finite.
    """
    fields = [_fields(text) for text in texts]
    contents = [_digest("\0".join(own)) if own else None for own in fields]
    distinct = {content: own for content, own in zip(contents, fields, strict=True) if content}
    if not distinct:
        raise EncoderError(
            f"None of the {len(texts)} items has a text, so there are no text embeddings to make. Check the text "
            "columns in the data set's mapping."
        )
    encoder = load_text_encoder(config.name, max_tokens=config.max_tokens, device=device, precision=config.precision)
    identity = made_by(encoder.description, **({"prefix": config.prefix} if config.prefix else {}))
    vectors = VectorsByContent(identity, before=before, shards=shards)
    new = {content: own for content, own in distinct.items() if content not in vectors}
    batching = Batching(config.batch_size, device=device, bytes_an_input=encoder.bytes_a_text)
    started = time.perf_counter()
    _encode(new, encoder, vectors, prefix=config.prefix, batching=batching, progress=progress)
    return build_embedded(
        contents,
        vectors,
        encoder=encoder.description,
        made_by=identity,
        failures=(),
        num_encoded=len(new),
        seconds=time.perf_counter() - started,
        batch_size=batching.size,
    )


def _encode(
    texts: dict[str, list[str]],
    encoder: TextEncoder,
    vectors: VectorsByContent,
    *,
    prefix: str,
    batching: Batching,
    progress: Progress,
) -> None:
    """Add the vectors of texts by content, the longest first, so that a batch too large for memory fails at once."""
    order = sorted(texts, key=lambda content: -max(map(len, texts[content])))
    started, done = time.perf_counter(), 0
    progress(STAGE, 0, len(order))
    while done < len(order):
        batch = order[done : done + batching.size]
        fields = [prefix + field for content in batch for field in texts[content]]
        by_length = sorted(range(len(fields)), key=lambda place: -len(fields[place]))
        found = batching.run(lambda piece: encoder.encode(list(piece)), [fields[place] for place in by_length])
        encoded = np.empty_like(found)  # [F, D]
        encoded[by_length] = found
        vectors.add(batch, _means(encoded, [len(texts[content]) for content in batch]))  # [B, D]
        done += len(batch)
        progress(STAGE, done, len(order), {"per_second": done / max(time.perf_counter() - started, 1e-9)})


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
