"""Embeds item images (MACRec section 3.1). Takes paths and returns one vector per item.

Each distinct image is decoded once, ahead of the model, and images with the same bytes share a vector. Items without a
readable image get the mean vector of the others.
Shapes (docs/notation.md): B batch rows, D embedding width, N items.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from macrec_pipeline.config import ImageEncoderConfig, RuntimeConfig
from macrec_pipeline.embeddings.adaptive_batching import AdaptiveBatching
from macrec_pipeline.embeddings.cache import CachedVectors, encoder_fingerprint
from macrec_pipeline.embeddings.embedding_loop import Input, Modality, embed
from macrec_pipeline.embeddings.image_decoding import decode_ahead, file_digests, pillow_warnings_ignored
from macrec_pipeline.embeddings.image_encoders import ImageEncoder, load_image_encoder
from macrec_pipeline.embeddings.result import EmbeddingResult
from macrec_pipeline.runtime.progress import Progress


def embed_images(
    paths: Sequence[Path | None],
    config: ImageEncoderConfig,
    *,
    device: torch.device,
    progress: Progress,
    cached: CachedVectors | None = None,
    shard_folder: Path | None = None,
    runtime: RuntimeConfig | None = None,
) -> EmbeddingResult:
    """Embed one image per item, and encode only those images whose vector cannot be reused.

    Args:
        paths: N image files, None for an item without one. Items may share a file.
        config: the encoder's name, the batch size and the largest number of pixels that is decoded.
        device: device of the encoder.
        progress: called as stage "image embeddings"; see `embed`.
        cached, shard_folder, runtime: see `embed`.

    Returns:
        The embeddings. `failures` lists each item whose image could not be read, with the reason.

    Raises:
        EncoderError: no item has an image, the encoder cannot be loaded, no image can be read, or a vector is not
            finite.
        StorageError, WorkerError: see `embed`.
    """
    return embed(
        _IMAGES,
        [None if path is None else (str(path),) for path in paths],
        config,
        device=device,
        progress=progress,
        cached=cached,
        shard_folder=shard_folder,
        runtime=runtime,
    )


@dataclass(frozen=True)
class ImageModalityEncoder:
    """Decodes and encodes images for the embedding loop; see `ModalityEncoder`."""

    encoder: ImageEncoder
    max_pixels: int
    device: torch.device
    fingerprint: str
    batching: AdaptiveBatching

    @property
    def description(self) -> dict[str, Any]:
        """See `EmbeddingResult.encoder`."""
        return self.encoder.description

    @contextmanager
    def prepare(self, inputs: Sequence[Input]) -> Iterator[Iterator[torch.Tensor | str]]:
        """Decode images ahead of the model: float32 [3, height, width] or the reason for a failure, per image."""
        stream = decode_ahead(
            [Path(path) for (path,) in inputs],
            max_pixels=self.max_pixels,
            transform=self.encoder.transform,
            num_ahead=2 * self.batching.size,
        )
        with pillow_warnings_ignored(), closing(stream):
            yield stream

    def encode_batch(self, batch: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        """Encode B images, each float32 [3, height, width]: float32 [B, D]."""
        return self.batching.run(self._forward, batch)

    @torch.inference_mode()
    def _forward(self, batch: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        # [B, 3, height, width]
        images = torch.stack(list(batch)).to(self.device, memory_format=torch.channels_last)
        return self.encoder.forward(images).float().cpu().numpy()  # [B, D]


def load_image_modality_encoder(config: ImageEncoderConfig, device: torch.device) -> ImageModalityEncoder:
    """Load the image encoder that the settings name.

    Raises:
        EncoderError: the encoder cannot be loaded.
    """
    encoder = load_image_encoder(config.name, device=device)
    fingerprint = encoder_fingerprint(encoder.description, max_pixels=config.max_pixels)
    batching = AdaptiveBatching(config.batch_size, device=device, bytes_per_input=encoder.bytes_per_image)
    return ImageModalityEncoder(encoder, config.max_pixels, device, fingerprint, batching)


def _digest_images(inputs: Sequence[Input]) -> list[str]:
    """Digest the bytes of each image file; a file that several items share is read once."""
    distinct = list(dict.fromkeys(inputs))
    digests = dict(zip(distinct, file_digests([Path(path) for (path,) in distinct]), strict=True))
    return [digests[each] for each in inputs]


def _in_given_order(inputs: Mapping[str, Input]) -> Mapping[str, Input]:
    return inputs


_IMAGES = Modality(
    stage="image embeddings",
    load_encoder=load_image_modality_encoder,
    digest_contents=_digest_images,
    sort_for_encoding=_in_given_order,
    plural="images",
    advice="Check the image path template of the data set.",
)
