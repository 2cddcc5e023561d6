"""A training job as a folder of files, so that any process that can read the folder can take part.

The arguments of `fit_recommender` or `fit_quantizer` are written to `job.json` and `arrays.safetensors`; reading these
files gives the same call again.
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

FITTED_FOLDER = "fitted"
"""Subfolder of a job's folder that the fitted model is saved to."""
_JOB_FILE, _ARRAYS_FILE, _RESULT_FILE = "job.json", "arrays.safetensors", "result.json"
_MODALITIES = ("text", "image")


@dataclass(frozen=True)
class TrainingJob:
    """The call of a training.

    Attributes:
        stage: "recommender" or "quantizer".
        config, runtime: the sections of the stage and of the devices, as plain JSON.
        seed: root seed.
        arguments: further arguments of the call, as plain JSON.
        arrays: the training data.
    """

    stage: str
    config: Mapping[str, Any]
    runtime: Mapping[str, Any]
    seed: int
    arguments: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(repr=False)

    def write(self, folder: Path) -> None:
        """Write both files."""
        save_file({name: np.ascontiguousarray(array) for name, array in self.arrays.items()}, folder / _ARRAYS_FILE)
        (folder / _JOB_FILE).write_text(json.dumps(asdict(self) | {"arrays": sorted(self.arrays)}, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> TrainingJob:
        """Read what `write` wrote. Raise `StorageError` if a file is missing or damaged."""
        try:
            description = json.loads((folder / _JOB_FILE).read_text())
            # read through torch, because safetensors' numpy arrays are read-only
            arrays = {name: tensor.numpy() for name, tensor in load_file(folder / _ARRAYS_FILE).items()}
            return cls(**description | {"arrays": arrays})
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise StorageError(
                f"The training job in {folder} cannot be read: {error}. The folder must be on storage that every rank "
                "can read."
            ) from error

    def runtime_config(self) -> RuntimeConfig:
        """Return the section `runtime`: device and number of threads of a rank."""
        return RuntimeConfig.model_validate(self.runtime)

    def fit(self, device: torch.device, progress: Progress) -> FittedRecommender | FittedQuantizer:
        """Run the training, alone or as a rank. Raises what `fit_recommender` or `fit_quantizer` raises."""
        arrays = {modality: self.arrays.get(modality) for modality in _MODALITIES}
        if self.stage == "recommender":
            continued = self.arguments["continued"]
            return fit_recommender(
                np.split(self.arrays["items"], np.cumsum(self.arrays["lengths"])[:-1]),
                arrays["text"],
                arrays["image"],
                codebook_size=self.arguments["codebook_size"],
                config=RecommenderConfig.model_validate(self.config),
                seed=self.seed,
                device=device,
                progress=progress,
                checkpoint=Path(self.arguments["checkpoint"]),
                start=Path(self.arguments["start"]) if self.arguments["start"] else None,
                refit_epochs=self.arguments["refit_epochs"],
                target_weights=self.arrays.get("target_weights"),
                continued=RecommenderConfig.model_validate(continued) if continued else None,
            )
        return fit_quantizer(
            arrays["text"],
            arrays["image"],
            self.arrays.get("text_clusters"),
            self.arrays.get("image_clusters"),
            QuantizerConfig.model_validate(self.config),
            seed=self.seed,
            device=device,
            progress=progress,
            collaborative_vectors=self.arrays.get("collaborative"),
        )


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended. It is a file, since a message can be lost with the process that should receive it.

    Attributes:
        error: class name and message of an error that would occur again on a retry; None if there is a model.
        warm_start: `FittedRecommender.warm_start`, for the recommender.
    """

    error: tuple[str, str] | None = None
    warm_start: str = "none"

    def write(self, folder: Path) -> None:
        """Write `result.json`, completely or not at all."""
        partial = folder / f".{_RESULT_FILE}"
        partial.write_text(json.dumps(asdict(self)) + "\n")
        partial.replace(folder / _RESULT_FILE)

    @classmethod
    def read(cls, folder: Path) -> TrainingResult | None:
        """Read what `write` wrote; None if there is no such file."""
        try:
            return cls(**json.loads((folder / _RESULT_FILE).read_text()))
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
    refit_epochs: int | None = None,
    target_weights: np.ndarray | None = None,
    continued: RecommenderConfig | None = None,
) -> TrainingJob:
    """Return a call of `fit_recommender` as a job.

    Args:
        histories: as there.
        codes: {modality: int64 [items, levels]}.
        codebook_size: as there.
        config: all settings.
        checkpoint: as there.
        start: as there.
        refit_epochs, target_weights: as there.
        continued: as there.
    """
    arrays = {"items": np.concatenate(histories), "lengths": np.array([len(history) for history in histories])}
    arrays |= {} if target_weights is None else {"target_weights": target_weights}
    arguments = {
        "codebook_size": codebook_size,
        "checkpoint": str(checkpoint.absolute()),
        "start": start and str(start.absolute()),
        "refit_epochs": refit_epochs,
        "continued": continued and continued.model_dump(mode="json"),
    }
    return _job("recommender", config, arguments, {**arrays, **codes})


def quantizer_job(
    vectors: Mapping[str, np.ndarray],
    clusters: Mapping[str, np.ndarray],
    *,
    config: PipelineConfig,
    collaborative_vectors: np.ndarray | None,
) -> TrainingJob:
    """Return a call of `fit_quantizer` as a job.

    Args:
        vectors: {modality: float32 [items, width]}.
        clusters: {modality: int64 [items]}.
        config: all settings.
        collaborative_vectors: as there.
    """
    arrays = {**vectors, **{f"{modality}_clusters": labels for modality, labels in clusters.items()}}
    if collaborative_vectors is not None:
        arrays["collaborative"] = collaborative_vectors
    return _job("quantizer", config, {}, arrays)


def _job(
    stage: str, config: PipelineConfig, arguments: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> TrainingJob:
    settings = config.model_dump(mode="json")
    return TrainingJob(stage, settings[stage], settings["runtime"], config.seed, arguments, arrays)
