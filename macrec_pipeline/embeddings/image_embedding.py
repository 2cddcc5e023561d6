"""Item pictures -> image embeddings (MACRec section 3.1): paths go in, one vector an item leaves.

Every distinct picture is decoded once, ahead of the model; items without a usable one get the mean of the others.
Symbols: N items, B batch, D embedding.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from macrec_pipeline.config import ImageEncoderConfig, RuntimeConfig
from macrec_pipeline.embeddings.adaptive_batching import Batching
from macrec_pipeline.embeddings.cache import CachedVectors, Encoded, VectorsByContent, made_by
from macrec_pipeline.embeddings.embedding_loop import Inputs, encode_in_shards
from macrec_pipeline.embeddings.image_decoding import decode_ahead, files_digests, pillow_warnings_ignored
from macrec_pipeline.embeddings.image_encoders import ImageEncoder, load_image_encoder
from macrec_pipeline.embeddings.result import EmbeddingResult, build_embedding_result
from macrec_pipeline.errors import EncoderError
from macrec_pipeline.runtime.progress import Progress

STAGE = "image embeddings"


def embed_images(
    paths: Sequence[Path | None],
    config: ImageEncoderConfig,
    *,
    device: torch.device,
    progress: Progress,
    before: CachedVectors | None = None,
    shards: Path | None = None,
    runtime: RuntimeConfig | None = None,
) -> EmbeddingResult:
    """Embed one picture an item, those alone that have no vector yet.

    Args:
        paths: N picture files, None for an item without one; items may share a file.
        config: the encoder's name, batch size and the largest picture that is decoded.
        device: where the encoder runs.
        progress: called as stage "image embeddings" after each batch, counting distinct pictures that have no vector
            yet.
        before: vectors of an earlier run.
        shards: a folder that keeps what is done, should this be cut off; workers need one.
        runtime: who encodes; None: this process.

    Returns:
        The embeddings; `failures` lists each item whose picture could not be read, and why.

    Raises:
        EncoderError: the encoder cannot be loaded, no picture could be read, or a vector is not finite.
        StorageError, WorkerError: see `encode_in_shards`.
    """
    distinct = list(dict.fromkeys(path for path in paths if path is not None))
    if not distinct:
        raise EncoderError(
            f"None of the {len(paths)} items names a picture, so there are no image embeddings to make. Check the "
            "picture path template of the data set."
        )
    encoding = load_image_encoding(config, device)
    vectors = VectorsByContent(encoding.made_by, before=before, shards=shards)
    content_of = dict(zip(distinct, files_digests(distinct), strict=True))
    new: dict[str, list[str]] = {}
    for path, content in content_of.items():
        if content not in vectors:
            new.setdefault(content, [str(path)])
    started = time.perf_counter()
    encode_in_shards(
        new,
        vectors,
        encoding,
        load=load_image_encoding,
        config=config,
        runtime=runtime or RuntimeConfig(),
        device=device,
        progress=partial(progress, STAGE),
    )
    seconds, refused = time.perf_counter() - started, vectors.refused
    if all(content in refused for content in content_of.values()):
        path, content = next(iter(content_of.items()))
        raise EncoderError(
            f"None of the {len(distinct)} pictures could be read, such as {path}: {refused[content]}. Expected "
            "picture files such as JPEG or PNG. Check the picture path template of the data set."
        )
    found = [None if path is None else content_of[path] for path in paths]
    return build_embedding_result(
        [None if content in refused else content for content in found],
        vectors,
        encoder=encoding.encoder.description,
        made_by=encoding.made_by,
        failures=[(row, refused[content]) for row, content in enumerate(found) if content in refused],
        num_encoded=len(new.keys() - refused.keys()),
        seconds=seconds,
        batch_size=encoding.batching.size,
    )


@dataclass(frozen=True)
class ImageEncoding:
    """See `Encoding`."""

    encoder: ImageEncoder
    max_pixels: int
    device: torch.device
    made_by: str
    batching: Batching

    def encode(self, inputs: Inputs, done: Callable[[int], None]) -> Encoded:
        """Encode pictures, given as their paths, in the order in which they come, those that can be read."""
        refused, batch = dict[str, str](), dict[str, torch.Tensor]()
        contents, found = list[str](), [np.empty((0, 0), dtype=np.float32)]
        stream = decode_ahead(
            [Path(path) for (path,) in inputs.values()],
            max_pixels=self.max_pixels,
            transform=self.encoder.transform,
            num_ahead=2 * self.batching.size,
        )
        with pillow_warnings_ignored(), closing(stream) as decoded:
            for number, (content, picture) in enumerate(zip(inputs, decoded, strict=True), start=1):
                if isinstance(picture, str):
                    refused[content] = picture
                else:
                    batch[content] = picture
                if len(batch) >= self.batching.size or number == len(inputs):
                    if batch:
                        contents += batch
                        found.append(self.batching.run(self._forward, list(batch.values())))  # [B, D]
                    batch = {}
                    done(number)
        return Encoded(contents, np.concatenate(found[1:] or found), refused)

    @torch.inference_mode()
    def _forward(self, batch: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        # [B, 3, height, width]
        pictures = torch.stack(list(batch)).to(self.device, memory_format=torch.channels_last)
        return self.encoder.forward(pictures).float().cpu().numpy()  # [B, D]


def load_image_encoding(config: ImageEncoderConfig, device: torch.device) -> ImageEncoding:
    """Load the encoder of the settings. Raises `EncoderError`."""
    encoder = load_image_encoder(config.name, device=device)
    identity = made_by(encoder.description, max_pixels=config.max_pixels)
    batching = Batching(config.batch_size, device=device, bytes_an_input=encoder.bytes_a_picture)
    return ImageEncoding(encoder, config.max_pixels, device, identity, batching)
