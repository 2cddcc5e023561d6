"""Item texts -> text embeddings (MACRec section 3.1): texts go in, one vector an item leaves.

Texts of like length share a batch, so little of it is padding; items without a text get the mean of the others.
Symbols: N items, M distinct texts, B batch, D embedding.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from macrec_pipeline.config import TextEncoderConfig
from macrec_pipeline.embeddings.embedded import Embedded, build_embedded
from macrec_pipeline.embeddings.text_encoders import TextEncoder, load_text_encoder
from macrec_pipeline.errors import EncoderError
from macrec_pipeline.runtime.progress import Progress

STAGE = "text embeddings"


def embed_texts(
    texts: Sequence[str | None], config: TextEncoderConfig, *, device: torch.device, progress: Progress
) -> Embedded:
    """Embed one text an item.

    Args:
        texts: N texts; None, or nothing but white space, for an item without one.
        config: the encoder's name, batch size and the tokens after which a text is cut off.
        device: where the encoder runs.
        progress: called as stage "text embeddings" after each batch, counting distinct texts.

    Returns:
        The embeddings; `failures` is empty, since any text can be embedded.

    Raises:
        EncoderError: the encoder cannot be loaded, no item has a text, or a vector is not finite.
    """
    present = [text if text is not None and text.strip() else None for text in texts]
    slot_of: dict[str, int] = {}
    for text in present:
        if text is not None:
            slot_of.setdefault(text, len(slot_of))
    if not slot_of:
        raise EncoderError(
            f"None of the {len(texts)} items has a text, so there are no text embeddings to make. Check the text "
            "columns in the data set's mapping."
        )
    encoder = load_text_encoder(config.name, max_tokens=config.max_tokens, device=device)
    started = time.perf_counter()
    encoded = _encode(list(slot_of), encoder, batch_size=config.batch_size, progress=progress)
    return build_embedded(
        encoded,
        slots=np.array([-1 if text is None else slot_of[text] for text in present], dtype=np.int64),
        encoder=encoder.description,
        failures=(),
        seconds=time.perf_counter() - started,
    )


def _encode(texts: list[str], encoder: TextEncoder, *, batch_size: int, progress: Progress) -> NDArray[np.float32]:
    """Encode M texts, the longest first, so that a batch too large for memory fails at once; float32 [M, D]."""
    order = sorted(range(len(texts)), key=lambda index: (-len(texts[index]), index))
    vectors: list[NDArray[np.float32]] = []
    progress(STAGE, 0, len(texts))
    for start in range(0, len(order), batch_size):
        batch = [texts[index] for index in order[start : start + batch_size]]
        vectors.append(encoder.encode(batch))  # [B, D]
        progress(STAGE, min(start + batch_size, len(order)), len(order))
    result = np.empty((len(texts), vectors[0].shape[1]), dtype=np.float32)
    result[order] = np.concatenate(vectors)
    return result
