"""Vectors by what they were made from, so that an input is encoded again only when it, or the encoder, has changed.

They come from an earlier embedding table, from what an attempt that was cut off left behind, and from the encoder.
What an attempt leaves behind are shards: files of so many inputs, each with a vector or the reason why it has none.
Symbols: K vectors, M inputs, D embedding.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from macrec_pipeline.runtime.checkpoint import load_checkpoint, save_checkpoint

# To be raised when inputs are prepared in another way before they reach the encoder.
PROCEDURE = 1
# Inputs a shard: half a minute or so of a small encoder on a core. Batches end where it ends, whoever makes it.
SHARD_SIZE = 2048


@dataclass(frozen=True)
class CachedVectors:
    """Vectors of an earlier run.

    Attributes:
        made_by: what made them, `Embedded.made_by`; if that is not what is asked now, none of them is used.
        contents: K times what a vector was made from, `Embedded.contents`; None for one that is imputed.
        vectors: float32 [K, D].
    """

    made_by: str
    contents: Sequence[str | None]
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of some inputs.

    Attributes:
        contents: K of them, those that have a vector.
        vectors: float32 [K, D].
        refused: content -> why it has none.
    """

    contents: Sequence[str]
    vectors: NDArray[np.float32]
    refused: Mapping[str, str]


def made_by(encoder: Mapping[str, Any], **settings: Any) -> str:
    """SHA-256, in hexadecimal, of all that decides a vector but its input.

    Args:
        encoder: its description, `Embedded.encoder`.
        **settings: of the preparation of inputs, plain JSON.
    """
    own = {name: value for name, value in encoder.items() if name != "dim"}
    return hashlib.sha256(json.dumps([PROCEDURE, own, settings], sort_keys=True).encode()).hexdigest()


def shard_file(folder: Path, number: int) -> Path:
    """Where a shard is, whether it is there or not."""
    return folder / f"{number:06d}.safetensors"


def write_encoded(folder: Path, number: int, encoded: Encoded, *, made_by: str) -> None:
    """Write a shard as a whole; a disk that refuses costs a warning."""
    save_checkpoint(
        shard_file(folder, number),
        identity=made_by,
        tensors={"vectors": torch.from_numpy(encoded.vectors)},
        values={"contents": list(encoded.contents), "refused": dict(encoded.refused)},
    )


class VectorsByContent:
    """What is known and what is added, once for each content.

    Args:
        made_by: see `made_by`.
        before: an earlier run's.
        shards: a folder to take up shards from that an attempt left there, and to write new ones to; None for none.
            It is the caller's to remove when all is done.

    Attributes:
        made_by, shards: as given.
        next_number: of the next shard.
        refused: content -> why it has no vector, of those that have been tried.
    """

    def __init__(self, made_by: str, *, before: CachedVectors | None, shards: Path | None) -> None:
        self.made_by, self.shards = made_by, shards
        self.refused: dict[str, str] = {}
        self._row: dict[str, int] = {}
        self._blocks: list[NDArray[np.float32]] = []
        self._num_rows = self.next_number = 0
        if before is not None and before.made_by == made_by:
            self._take(before.contents, before.vectors)
        for path in sorted(shards.glob("*.safetensors")) if shards is not None else ():
            if self.take_shard(int(path.stem)):
                self.next_number = int(path.stem) + 1

    def __contains__(self, content: str) -> bool:
        return content in self._row or content in self.refused

    def add(self, encoded: Encoded) -> None:
        """Add what has just been made."""
        self.refused |= encoded.refused
        if len(encoded.contents):
            self._take(encoded.contents, encoded.vectors)

    def take_shard(self, number: int) -> bool:
        """Add what a shard holds; whether it is there, whole, and by the same maker."""
        assert self.shards is not None, "there are no shards without a folder"
        stored = load_checkpoint(shard_file(self.shards, number), identity=self.made_by)
        if stored is None:
            return False
        tensors, values = stored
        self.add(Encoded(values["contents"], tensors["vectors"].numpy(), values.get("refused", {})))
        return True

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
