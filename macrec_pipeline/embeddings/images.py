"""Item pictures -> image embeddings (MACRec section 3.1): paths go in, one vector an item leaves.

Every distinct picture is decoded once, ahead of the model; items without a usable one get the mean of the others.
Symbols: N items, B batch, D embedding.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from macrec_pipeline.config import ImageEncoderConfig
from macrec_pipeline.embeddings.batching import Batching
from macrec_pipeline.embeddings.embedded import Embedded, build_embedded
from macrec_pipeline.embeddings.image_encoders import ImageEncoder, load_image_encoder
from macrec_pipeline.embeddings.made_before import MadeBefore, VectorsByContent, made_by
from macrec_pipeline.embeddings.pictures import decode_ahead, files_digests, pillow_warnings_ignored
from macrec_pipeline.errors import EncoderError
from macrec_pipeline.runtime.progress import Progress

STAGE = "image embeddings"


def embed_images(
    paths: Sequence[Path | None],
    config: ImageEncoderConfig,
    *,
    device: torch.device,
    progress: Progress,
    before: MadeBefore | None = None,
    shards: Path | None = None,
) -> Embedded:
    """Embed one picture an item, those alone that have no vector yet.

    Args:
        paths: N picture files, None for an item without one; items may share a file.
        config: the encoder's name, batch size and the largest picture that is decoded.
        device: where the encoder runs.
        progress: called as stage "image embeddings" after each batch, counting distinct pictures that have no vector
            yet.
        before: vectors of an earlier run.
        shards: a folder that keeps what is done, should this be cut off.

    Returns:
        The embeddings; `failures` lists each item whose picture could not be read, and why.

    Raises:
        EncoderError: the encoder cannot be loaded, no picture could be read, or a vector is not finite.
    """
    distinct = list(dict.fromkeys(path for path in paths if path is not None))
    if not distinct:
        raise EncoderError(
            f"None of the {len(paths)} items names a picture, so there are no image embeddings to make. Check the "
            "picture path template of the data set."
        )
    encoder = load_image_encoder(config.name, device=device)
    identity = made_by(encoder.description, max_pixels=config.max_pixels)
    vectors = VectorsByContent(identity, before=before, shards=shards)
    content_of = dict(zip(distinct, files_digests(distinct), strict=True))
    new: dict[str, Path] = {}
    for path, content in content_of.items():
        if content not in vectors:
            new.setdefault(content, path)
    batching = Batching(config.batch_size, device=device, bytes_an_input=encoder.bytes_a_picture)
    started = time.perf_counter()
    refused = _encode(
        new, encoder, vectors, max_pixels=config.max_pixels, batching=batching, device=device, progress=progress
    )
    seconds = time.perf_counter() - started
    if len(refused) == len(set(content_of.values())):
        content, reason = next(iter(refused.items()))
        raise EncoderError(
            f"None of the {len(distinct)} pictures could be read, such as {new[content]}: {reason}. Expected "
            "picture files such as JPEG or PNG. Check the picture path template of the data set."
        )
    found = [None if path is None else content_of[path] for path in paths]
    return build_embedded(
        [None if content in refused else content for content in found],
        vectors,
        encoder=encoder.description,
        made_by=identity,
        failures=[(row, refused[content]) for row, content in enumerate(found) if content in refused],
        num_encoded=len(new) - len(refused),
        seconds=seconds,
        batch_size=batching.size,
    )


def _encode(
    pictures: dict[str, Path],
    encoder: ImageEncoder,
    vectors: VectorsByContent,
    *,
    max_pixels: int,
    batching: Batching,
    device: torch.device,
    progress: Progress,
) -> dict[str, str]:
    """Add the vectors of pictures by content; return why the others have none."""
    refused: dict[str, str] = {}
    batch: dict[str, torch.Tensor] = {}
    started = time.perf_counter()
    progress(STAGE, 0, len(pictures))
    stream = decode_ahead(
        list(pictures.values()),
        max_pixels=max_pixels,
        transform=encoder.transform,
        num_ahead=2 * batching.size,
    )
    with pillow_warnings_ignored(), closing(stream) as decoded:
        for done, (content, picture) in enumerate(zip(pictures, decoded, strict=True), start=1):
            if isinstance(picture, str):
                refused[content] = picture
            else:
                batch[content] = picture
            if len(batch) >= batching.size or done == len(pictures):
                if batch:
                    inputs = list(batch.values())
                    vectors.add(batch, batching.run(lambda piece: _forward(encoder, piece, device=device), inputs))
                batch = {}
                rate = done / max(time.perf_counter() - started, 1e-9)
                progress(STAGE, done, len(pictures), {"per_second": rate})
    return refused


@torch.inference_mode()
def _forward(encoder: ImageEncoder, batch: Sequence[torch.Tensor], *, device: torch.device) -> NDArray[np.float32]:
    pictures = torch.stack(list(batch)).to(device, memory_format=torch.channels_last)  # [B, 3, height, width]
    return encoder.forward(pictures).float().cpu().numpy()  # [B, D]
