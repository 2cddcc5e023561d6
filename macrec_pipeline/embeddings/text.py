"""Item texts -> text embeddings (MACRec section 3.1): texts go in, one vector an item leaves.

Texts of like length share a batch, so little of it is padding; items without a text get the mean of the others.
Symbols: N items, B batch, D embedding.
"""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from macrec_pipeline.config import TextEncoderConfig
from macrec_pipeline.embeddings.embedded import Embedded, build_embedded
from macrec_pipeline.embeddings.made_before import MadeBefore, VectorsByContent, made_by
from macrec_pipeline.embeddings.text_encoders import TextEncoder, load_text_encoder
from macrec_pipeline.errors import EncoderError
from macrec_pipeline.runtime.progress import Progress

STAGE = "text embeddings"


def embed_texts(
    texts: Sequence[str | None],
    config: TextEncoderConfig,
    *,
    device: torch.device,
    progress: Progress,
    before: MadeBefore | None = None,
    shards: Path | None = None,
) -> Embedded:
    """Embed one text an item, those alone that have no vector yet.

    Args:
        texts: N texts; None, or nothing but white space, for an item without one.
        config: the encoder's name, batch size and the tokens after which a text is cut off.
        device: where the encoder runs.
        progress: called as stage "text embeddings" after each batch, counting distinct texts that have no vector yet.
        before: vectors of an earlier run.
        shards: a folder that keeps what is done, should this be cut off.

    Returns:
        The embeddings; `failures` is empty, since any text can be embedded.

    Raises:
        EncoderError: the encoder cannot be loaded, no item has a text, or a vector is not finite.
    """
    contents = [_digest(text) if text is not None and text.strip() else None for text in texts]
    distinct = {content: text for content, text in zip(contents, texts, strict=True) if content and text}
    if not distinct:
        raise EncoderError(
            f"None of the {len(texts)} items has a text, so there are no text embeddings to make. Check the text "
            "columns in the data set's mapping."
        )
    encoder = load_text_encoder(config.name, max_tokens=config.max_tokens, device=device)
    identity = made_by(encoder.description)
    vectors = VectorsByContent(identity, before=before, shards=shards)
    new = {content: text for content, text in distinct.items() if content not in vectors}
    started = time.perf_counter()
    _encode(new, encoder, vectors, batch_size=config.batch_size, progress=progress)
    return build_embedded(
        contents,
        vectors,
        encoder=encoder.description,
        made_by=identity,
        failures=(),
        num_encoded=len(new),
        seconds=time.perf_counter() - started,
    )


def _encode(
    texts: dict[str, str], encoder: TextEncoder, vectors: VectorsByContent, *, batch_size: int, progress: Progress
) -> None:
    """Add the vectors of texts by content, the longest first, so that a batch too large for memory fails at once."""
    order = sorted(texts, key=lambda content: -len(texts[content]))
    progress(STAGE, 0, len(order))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        vectors.add(batch, encoder.encode([texts[content] for content in batch]))  # [B, D]
        progress(STAGE, start + len(batch), len(order))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
