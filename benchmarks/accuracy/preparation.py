"""Preparation of a data set for all variants: histories, and the embeddings of both modalities.

The input is a data set's file and its data, the output is `Prepared`. Reading and cleaning take seconds and are always
repeated. Embeddings are cached in the work folder by the content of the texts and images and by the encoder.

Shapes (docs/notation.md): D embedding width, N items, T items of a history.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.accuracy.work_folder import cached_result, code_digest, digest_of_arrays
from macrec_pipeline.config import ROUTES, PipelineConfig, Route
from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.data.readers.precomputed import precomputed_embeddings
from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items, validate_source
from macrec_pipeline.datasets import DatasetSpec, IndexedSource
from macrec_pipeline.embeddings import embed_images, embed_texts
from macrec_pipeline.errors import ConfigError, MissingFileError
from macrec_pipeline.runtime.devices import prepare_device
from macrec_pipeline.runtime.progress import Progress
from macrec_pipeline.semantic_ids import impute_from_neighbours


@dataclass(frozen=True)
class Prepared:
    """A data set that is ready for training.

    Attributes:
        histories: whole histories, int64 [T] item indices each, oldest first, at least 3 long.
        text_vectors, image_vectors: float32 [N, D], imputed from neighbours where an item lacks the modality.
    """

    histories: list[np.ndarray]
    text_vectors: np.ndarray
    image_vectors: np.ndarray

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.text_vectors)

    @cached_property
    def blinded(self) -> list[np.ndarray]:
        """The histories with item 0 instead of the test target. Models are fitted and evaluated on these only."""
        return [np.append(history[:-1], 0) for history in self.histories]

    @cached_property
    def vectors_digest(self) -> str:
        """Digest of the embeddings of both modalities."""
        return digest_of_arrays([self.text_vectors, self.image_vectors])

    @cached_property
    def blinded_digest(self) -> str:
        """Digest of the histories without the test targets."""
        return digest_of_arrays(self.blinded)


def prepare(spec: DatasetSpec, config: PipelineConfig, *, data: Path, work: Path, progress: Progress) -> Prepared:
    """Read, clean and embed a data set.

    Raises:
        MissingFileError: a file of the data set is missing; the message names it.
        ConfigError: the data set brings its semantic IDs, so there is no quantizer to compare.
        MacrecError: a stage of the pipeline failed.
    """
    if isinstance(spec.source, IndexedSource) and spec.source.given_modalities:
        raise ConfigError(
            f"{spec.name} brings its semantic IDs, so there is no quantizer to compare. Choose a data set with texts "
            "and images, or run benchmarks/accuracy/instruments.py, which is for given IDs."
        )
    if problems := validate_source(spec, data):
        raise MissingFileError(f"{spec.name} is incomplete: {' '.join(problems)} Pass the data folder with --data.")
    tables = clean(read_raw_interactions(spec, data), read_raw_items(spec, data), config.cleaning, seed=config.seed)
    histories = build_histories(tables.interactions, tables.items)
    embeddings = {
        route: _embeddings(spec, tables.items, route, config=config, data=data, work=work, progress=progress)
        for route in ROUTES
    }
    imputed = impute_from_neighbours(
        {route: vectors for route, (vectors, _) in embeddings.items()},
        {route: missing for route, (_, missing) in embeddings.items()},
    )
    sequences = [items.to_numpy(writable=True) for items in histories["item_indices"]]
    return Prepared(sequences, imputed["text"], imputed["image"])


def _embeddings(
    spec: DatasetSpec,
    items: pl.DataFrame,
    route: Route,
    *,
    config: PipelineConfig,
    data: Path,
    work: Path,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings of one modality, float32 [N, D], and which items lack it, bool [N]."""
    given = precomputed_embeddings(spec, data, items, route)
    if given is not None:
        return given, np.zeros(len(given), dtype=np.bool_)
    device = prepare_device(config.runtime)
    encoder = config.text_encoder if route == "text" else config.image_encoder
    paths = [None if path is None else data / path for path in items["image_path"]]
    content = items["text"].to_list() if route == "text" else [_digest_of_file(path) for path in paths]
    identity = {
        "encoder": encoder.model_dump(mode="json"),
        "runtime": config.runtime.model_dump(mode="json"),
        "content": content,
        "torch": torch.__version__,
        "code": code_digest("embeddings"),
    }

    def embed() -> tuple[dict[str, np.ndarray], dict[str, int]]:
        if route == "text":
            embedded = embed_texts(items["text"].to_list(), config.text_encoder, device=device, progress=progress)
        else:
            embedded = embed_images(paths, config.image_encoder, device=device, progress=progress)
        return {"vectors": embedded.vectors, "imputed": embedded.imputed}, {}

    arrays = cached_result(work, f"{route}-embeddings", identity, embed).arrays
    return arrays["vectors"], arrays["imputed"]


def _digest_of_file(path: Path | None) -> str | None:
    """Return the SHA-256 digest of an image file; None if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None and path.is_file() else None
