"""Item pictures -> image embeddings (MACRec section 3.1): paths go in, one vector an item leaves.

Every distinct picture is decoded once, ahead of the model; items without a usable one get the mean of the others.
Symbols: N items, M distinct pictures that could be read, B batch, D embedding.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from macrec_pipeline.config import ImageEncoderConfig
from macrec_pipeline.embeddings.embedded import Embedded, build_embedded
from macrec_pipeline.embeddings.image_encoders import ImageEncoder, load_image_encoder
from macrec_pipeline.embeddings.pictures import decode_ahead, pillow_warnings_ignored
from macrec_pipeline.errors import EncoderError
from macrec_pipeline.runtime.progress import Progress

STAGE = "image embeddings"


def embed_images(
    paths: Sequence[Path | None], config: ImageEncoderConfig, *, device: torch.device, progress: Progress
) -> Embedded:
    """Embed one picture an item.

    Args:
        paths: N picture files, None for an item without one; items may share a file.
        config: the encoder's name, batch size and the largest picture that is decoded.
        device: where the encoder runs.
        progress: called as stage "image embeddings" after each batch, counting distinct pictures.

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
    started = time.perf_counter()
    encoded, outcome = _encode(distinct, encoder, config, device=device, progress=progress)
    seconds = time.perf_counter() - started
    results = [None if path is None else outcome[path] for path in paths]
    return build_embedded(
        encoded,
        slots=np.array([slot if isinstance(slot, int) else -1 for slot in results], dtype=np.int64),
        encoder=encoder.description,
        failures=[(row, reason) for row, reason in enumerate(results) if isinstance(reason, str)],
        seconds=seconds,
    )


def _encode(
    paths: list[Path], encoder: ImageEncoder, config: ImageEncoderConfig, *, device: torch.device, progress: Progress
) -> tuple[NDArray[np.float32], dict[Path, int | str]]:
    """Vectors float32 [M, D] with M > 0, and for each path its row in them or why it has none."""
    outcome: dict[Path, int | str] = {}
    batch: list[torch.Tensor] = []
    vectors: list[NDArray[np.float32]] = []
    num_read = 0
    progress(STAGE, 0, len(paths))
    stream = decode_ahead(
        paths, max_pixels=config.max_pixels, transform=encoder.transform, num_ahead=2 * config.batch_size
    )
    with pillow_warnings_ignored(), closing(stream) as pictures:
        for done, (path, picture) in enumerate(zip(paths, pictures, strict=True), start=1):
            if isinstance(picture, str):
                outcome[path] = picture
            else:
                outcome[path] = num_read
                num_read += 1
                batch.append(picture)
            if len(batch) == config.batch_size or done == len(paths):
                if batch:
                    vectors.append(_forward(encoder, batch, device=device))
                batch = []
                progress(STAGE, done, len(paths))
    if not vectors:
        raise EncoderError(
            f"None of the {len(paths)} pictures could be read, such as {paths[0]}: {outcome[paths[0]]}. Expected "
            "picture files such as JPEG or PNG. Check the picture path template of the data set."
        )
    return np.concatenate(vectors), outcome


@torch.inference_mode()
def _forward(encoder: ImageEncoder, batch: list[torch.Tensor], *, device: torch.device) -> NDArray[np.float32]:
    pictures = torch.stack(batch).to(device, memory_format=torch.channels_last)  # [B, 3, height, width]
    return encoder.forward(pictures).float().cpu().numpy()  # [B, D]
