"""Caches vectors by the hash of the text or image that they were computed from, so that none is encoded twice.

The vectors come from three places: an earlier embedding table, the shards that an interrupted run left behind, and the
encoder. A shard is a file with a fixed number of inputs; for each of them it holds a vector, or the reason why there is
none. In this module, a content is identified by its content hash: the SHA-256 of the text or image file, in
hexadecimal. Shapes (docs/notation.md): D embedding width; other axes are written in words.
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

# Raise this number when a change of the code makes the same input reach the encoder in another form: no vector that was
# computed before the change is then reused.
PREPARATION_VERSION = 1
# Inputs per shard. A small encoder needs about half a minute for them on one core. Batches never cross a shard's end,
# so the vectors do not depend on which worker computes the shard.
SHARD_SIZE = 2048


@dataclass(frozen=True)
class CachedVectors:
    """The vectors of an earlier run.

    Attributes:
        encoder_fingerprint: `EmbeddingResult.encoder_fingerprint` of that run. If it differs from the fingerprint of
            the current encoder, none of the vectors is used.
        contents: the content hash of the input of each vector, as in `EmbeddingResult.contents`; None if the vector
            was imputed.
        vectors: float32 [contents, D].
    """

    encoder_fingerprint: str
    contents: Sequence[str | None]
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class EncodedShard:
    """What an encoder returned for the inputs of a shard.

    Attributes:
        contents: the content hashes that have a vector.
        vectors: float32 [contents, D].
        failures: content hash -> reason, for the inputs that could not be encoded.
    """

    contents: Sequence[str]
    vectors: NDArray[np.float32]
    failures: Mapping[str, str]


def encoder_fingerprint(description: Mapping[str, Any], **settings: Any) -> str:
    """Return the SHA-256, in hexadecimal, of everything that determines a vector except its input.

    Args:
        description: the encoder's description, as in `EmbeddingResult.encoder`.
        **settings: settings of the preparation of inputs, as plain JSON values.
    """
    described = {name: value for name, value in description.items() if name != "dim"}
    return hashlib.sha256(json.dumps([PREPARATION_VERSION, described, settings], sort_keys=True).encode()).hexdigest()


def shard_path(folder: Path, number: int) -> Path:
    """Return the path of a shard, whether or not the file exists."""
    return folder / f"{number:06d}.safetensors"


def save_shard(folder: Path, number: int, shard: EncodedShard, *, fingerprint: str) -> None:
    """Write a shard, completely or not at all. If the disk is full or broken, this only logs a warning."""
    save_checkpoint(
        shard_path(folder, number),
        identity=fingerprint,
        tensors={"vectors": torch.from_numpy(shard.vectors)},
        values={"contents": list(shard.contents), "refused": dict(shard.failures)},
    )


class VectorCache:
    """The vectors of one encoder by content hash, and the inputs that the encoder could not use.

    Args:
        fingerprint: see `encoder_fingerprint`. Vectors of another encoder are ignored.
        cached: the vectors of an earlier run; None if there are none.
        shard_folder: a folder with the shards of an interrupted run, to which new ones are added; None to keep no
            shards. The caller removes the folder when all vectors are stored elsewhere.

    Attributes:
        fingerprint, shard_folder: as given.
        next_shard: number of the next shard to write.
        failures: content hash -> reason why the input has no vector.
    """

    def __init__(self, fingerprint: str, *, cached: CachedVectors | None, shard_folder: Path | None) -> None:
        self.fingerprint, self.shard_folder = fingerprint, shard_folder
        self.failures: dict[str, str] = {}
        self._row_of: dict[str, int] = {}
        self._blocks: list[NDArray[np.float32]] = []
        self._num_rows = self.next_shard = 0
        if cached is not None and cached.encoder_fingerprint == fingerprint:
            self._add_rows(cached.contents, cached.vectors)
        for path in sorted(shard_folder.glob("*.safetensors")) if shard_folder is not None else ():
            if self.load_shard(int(path.stem)):
                self.next_shard = int(path.stem) + 1

    def __contains__(self, content: str) -> bool:
        return content in self._row_of or content in self.failures

    def add(self, shard: EncodedShard) -> None:
        """Add the vectors and failures of a shard."""
        self.failures |= shard.failures
        if len(shard.contents):
            self._add_rows(shard.contents, shard.vectors)

    def load_shard(self, number: int) -> bool:
        """Add a shard from the folder.

        Returns:
            False, with nothing added, if the file is missing or damaged or belongs to another encoder.
        """
        assert self.shard_folder is not None, "there are no shards without a folder"
        stored = load_checkpoint(shard_path(self.shard_folder, number), identity=self.fingerprint)
        if stored is None:
            return False
        tensors, values = stored
        self.add(EncodedShard(values["contents"], tensors["vectors"].numpy(), values.get("refused", {})))
        return True

    def vectors_of(self, contents: Sequence[str]) -> NDArray[np.float32]:
        """Return float32 [contents, D], for at least one content hash; each of them must have a vector."""
        rows = [self._row_of[content] for content in contents]
        vectors: NDArray[np.float32] = np.concatenate(self._blocks)[rows]
        return vectors

    def _add_rows(self, contents: Sequence[str | None], vectors: NDArray[np.float32]) -> None:
        for row, content in enumerate(contents, start=self._num_rows):
            if content is not None:
                self._row_of.setdefault(content, row)
        self._blocks.append(vectors)
        self._num_rows += len(contents)
