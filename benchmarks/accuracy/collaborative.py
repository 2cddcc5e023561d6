"""The SASRec of a study, trained once per seed: a baseline, a third route, and item vectors for the quantizer.

The input is a prepared data set, of which only the blinded histories are read. The output is a trained model, which is
stored in the work folder.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.preparation import Prepared
from benchmarks.accuracy.work_folder import code_digest, digest_of
from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.recommender import FittedSasrec, fit_sasrec
from macrec_pipeline.runtime.devices import prepare_device
from macrec_pipeline.runtime.progress import Progress

_CODE = ("recommender/sasrec/model.py", "recommender/sasrec/training.py", "recommender/sasrec/fitted.py", "runtime")


def sasrec_identity(prepared: Prepared, config: PipelineConfig) -> dict[str, Any]:
    """Return everything that the trained model depends on, as plain JSON."""
    return {
        "sasrec": config.sasrec.model_dump(mode="json"),
        "runtime": config.runtime.model_dump(mode="json"),
        "seed": config.seed,
        "histories": prepared.blinded_digest,
        "num_items": prepared.num_items,
        "torch": torch.__version__,
        "code": code_digest(*_CODE),
    }


def trained_sasrec(prepared: Prepared, config: PipelineConfig, *, work: Path, progress: Progress) -> FittedSasrec:
    """Train the model for these settings and this seed, or load it from the work folder."""
    device = prepare_device(config.runtime)
    folder = work / f"sasrec-{config.seed}-{digest_of(sasrec_identity(prepared, config))[:16]}"
    if not folder.is_dir():
        fitted = fit_sasrec(
            prepared.blinded,
            num_items=prepared.num_items,
            config=config.sasrec,
            seed=config.seed,
            device=device,
            progress=progress,
            checkpoint=folder.with_suffix(".safetensors"),
        )
        partial = folder.with_suffix(f".{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fitted.save(partial)
        partial.rename(folder)
    return FittedSasrec.load(folder, device=device)


def quantizer_uses_sasrec(config: PipelineConfig) -> bool:
    """Tell whether the quantizer uses the item embeddings of SASRec."""
    return bool(config.quantizer.collaborative_input_weight or config.quantizer.collaborative_contrast_weight)
