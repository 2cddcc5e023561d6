"""Vectors by what they were made from, so that an input is encoded again only when it, or the encoder, has changed.

They come from an earlier embedding table, from what an attempt that was cut off left behind, and from the encoder.
Symbols: K vectors, M inputs, D embedding.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from macrec_pipeline.runtime.checkpoint import load_checkpoint, save_checkpoint

# To be raised when inputs are prepared in another way before they reach the encoder.
PROCEDURE = 1
# Inputs after which an attempt writes down what it has: a minute or so of a small encoder on two cores.
SHARD_SIZE = 2048


@dataclass(frozen=True)
class MadeBefore:
    """Vectors of an earlier run.

    Attributes:
        made_by: what made them, `Embedded.made_by`; if that is not what is asked now, none of them is used.
        contents: K times what a vector was made from, `Embedded.contents`; None for one that is imputed.
        vectors: float32 [K, D].
    """

    made_by: str
    contents: Sequence[str | None]
    vectors: NDArray[np.float32]


def made_by(encoder: Mapping[str, Any], **settings: Any) -> str:
    """SHA-256, in hexadecimal, of all that decides a vector but its input.

    Args:
        encoder: its description, `Embedded.encoder`.
        **settings: of the preparation of inputs, plain JSON.
    """
    own = {name: value for name, value in encoder.items() if name != "dim"}
    return hashlib.sha256(json.dumps([PROCEDURE, own, settings], sort_keys=True).encode()).hexdigest()


class VectorsByContent:
    """What is known and what is added, once for each content.

    Args:
        made_by: see `made_by`.
        before: an earlier run's.
        shards: a folder to take up vectors from that an attempt left there, and to write new ones to; None for none.
            It is the caller's to remove when all is done.
    """

    def __init__(self, made_by: str, *, before: MadeBefore | None, shards: Path | None) -> None:
        self._made_by, self._shards = made_by, shards
        self._row: dict[str, int] = {}
        self._blocks: list[NDArray[np.float32]] = []
        self._waiting: list[tuple[str, NDArray[np.float32]]] = []
        self._num_rows = self._num_shards = 0
        if before is not None and before.made_by == made_by:
            self._take(before.contents, before.vectors)
        for path in sorted(shards.glob("*.safetensors")) if shards is not None else ():
            stored = load_checkpoint(path, identity=made_by)
            if stored is not None:
                self._take(stored[1]["contents"], stored[0]["vectors"].numpy())
                self._num_shards = int(path.stem) + 1

    def __contains__(self, content: str) -> bool:
        return content in self._row

    def add(self, contents: Iterable[str], vectors: NDArray[np.float32]) -> None:
        """Add vectors float32 [M, D]; they are written down once there are `SHARD_SIZE`."""
        contents = list(contents)
        self._take(contents, vectors)
        if self._shards is None:
            return
        self._waiting += zip(contents, vectors, strict=True)
        if len(self._waiting) >= SHARD_SIZE:
            save_checkpoint(
                self._shards / f"{self._num_shards:06d}.safetensors",
                identity=self._made_by,
                tensors={"vectors": torch.from_numpy(np.stack([vector for _, vector in self._waiting]))},
                values={"contents": [content for content, _ in self._waiting]},
            )
            self._waiting = []
            self._num_shards += 1

    def rows(self, contents: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of contents that are there, float32 [M, D], M > 0."""
        vectors: NDArray[np.float32] = np.concatenate(self._blocks)[[self._row[content] for content in contents]]
        return vectors

    def _take(self, contents: Sequence[str | None], vectors: NDArray[np.float32]) -> None:
        for row, content in enumerate(contents, start=self._num_rows):
            if content is not None:
                self._row.setdefault(content, row)
        self._blocks.append(vectors)
        self._num_rows += len(contents)
