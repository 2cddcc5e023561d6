"""A training as a folder of files, so that any process which can read it can take part.

In: what `fit_recommender` or `fit_quantizer` is called with. Out: `job.json` and `arrays.safetensors`, and from those
the same call again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from safetensors.torch import load_file

from macrec_pipeline.config import PipelineConfig, QuantizerConfig, RecommenderConfig, RuntimeConfig
from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender import FittedRecommender, fit_recommender
from macrec_pipeline.runtime.progress import Progress
from macrec_pipeline.semantic_ids import FittedQuantizer, fit_quantizer

FITTED = "fitted"
"""In a job's folder: what `save` of the fitted model wrote."""
_JOB, _ARRAYS, _RESULT = "job.json", "arrays.safetensors", "result.json"
_MODALITIES = ("text", "image")


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        stage: "recommender" or "quantizer".
        config, runtime: the stage's section and the one on devices, as plain JSON.
        seed: root seed.
        arguments: what else the training is told, as plain JSON.
        arrays: what it is trained on.
    """

    stage: str
    config: Mapping[str, Any]
    runtime: Mapping[str, Any]
    seed: int
    arguments: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(repr=False)

    def write(self, folder: Path) -> None:
        """Write both files."""
        save_file({name: np.ascontiguousarray(array) for name, array in self.arrays.items()}, folder / _ARRAYS)
        (folder / _JOB).write_text(json.dumps(asdict(self) | {"arrays": sorted(self.arrays)}, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Job:
        """What `write` wrote. Raises `StorageError` that names the folder."""
        try:
            described = json.loads((folder / _JOB).read_text())
            # by way of torch, whose arrays may be written to
            arrays = {name: tensor.numpy() for name, tensor in load_file(folder / _ARRAYS).items()}
            return cls(**described | {"arrays": arrays})
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise StorageError(
                f"{folder} holds no training to take part in: {error}. It has to lie where every rank can read it."
            ) from error

    def devices(self) -> RuntimeConfig:
        """Where and with how many threads a rank computes."""
        return RuntimeConfig.model_validate(self.runtime)

    def fit(self, device: torch.device, progress: Progress) -> FittedRecommender | FittedQuantizer:
        """Train, alone or as a rank; errors as those of the two `fit_` functions."""
        given = {modality: self.arrays.get(modality) for modality in _MODALITIES}
        if self.stage == "recommender":
            return fit_recommender(
                np.split(self.arrays["items"], np.cumsum(self.arrays["lengths"])[:-1]),
                given["text"],
                given["image"],
                codebook_size=self.arguments["codebook_size"],
                config=RecommenderConfig.model_validate(self.config),
                seed=self.seed,
                device=device,
                progress=progress,
                checkpoint=Path(self.arguments["checkpoint"]),
                start=Path(self.arguments["start"]) if self.arguments["start"] else None,
            )
        return fit_quantizer(
            given["text"],
            given["image"],
            self.arrays.get("text_clusters"),
            self.arrays.get("image_clusters"),
            QuantizerConfig.model_validate(self.config),
            seed=self.seed,
            device=device,
            progress=progress,
            collaborative_vectors=self.arrays.get("collaborative"),
        )


@dataclass(frozen=True)
class Result:
    """How a training ended; a file, since a message can be lost with the process that was to hear it.

    Attributes:
        error: the class's name and the message of what would come again; None if there is a model.
        warm_start: of the recommender, see `FittedRecommender`.
    """

    error: tuple[str, str] | None = None
    warm_start: str = "none"

    def write(self, folder: Path) -> None:
        """Write `result.json`, whole or not at all."""
        half = folder / f".{_RESULT}"
        half.write_text(json.dumps(asdict(self)) + "\n")
        half.replace(folder / _RESULT)

    @classmethod
    def read(cls, folder: Path) -> Result | None:
        """What `write` wrote, if anything."""
        try:
            return cls(**json.loads((folder / _RESULT).read_text()))
        except FileNotFoundError:
            return None


def recommender_job(
    histories: Sequence[np.ndarray],
    codes: Mapping[str, np.ndarray],
    *,
    codebook_size: int,
    config: PipelineConfig,
    checkpoint: Path,
    start: Path | None,
) -> Job:
    """The arguments are those of `fit_recommender`, with the codes of each modality by its name."""
    arrays = {"items": np.concatenate(histories), "lengths": np.array([len(history) for history in histories])}
    arguments = {
        "codebook_size": codebook_size,
        "checkpoint": str(checkpoint.absolute()),
        "start": start and str(start.absolute()),
    }
    return _job("recommender", config, arguments, {**arrays, **codes})


def quantizer_job(
    vectors: Mapping[str, np.ndarray],
    clusters: Mapping[str, np.ndarray],
    *,
    config: PipelineConfig,
    collaborative_vectors: np.ndarray | None,
) -> Job:
    """The arguments are those of `fit_quantizer`, with what belongs to a modality by its name."""
    arrays = {**vectors, **{f"{modality}_clusters": labels for modality, labels in clusters.items()}}
    if collaborative_vectors is not None:
        arrays["collaborative"] = collaborative_vectors
    return _job("quantizer", config, {}, arrays)


def _job(stage: str, config: PipelineConfig, arguments: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Job:
    settings = config.model_dump(mode="json")
    return Job(stage, settings[stage], settings["runtime"], config.seed, arguments, arrays)
