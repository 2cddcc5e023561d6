"""A fitted quantizer of all modalities, whatever the method, and its folder on disk.

text.safetensors, image.safetensors    the weights of each modality
quantizer.json                         the settings, the widths and the epochs of the weights
training_log.json                      one row per measured epoch
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from macrec_pipeline.errors import StorageError
from macrec_pipeline.semantic_ids.catalogue import MODALITIES
from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer, QuantizerSpec
from macrec_pipeline.semantic_ids.residual_k_means import ResidualKMeans
from macrec_pipeline.semantic_ids.rq_vae import RqVae


@dataclass(frozen=True)
class FittedQuantizer:
    """A quantizer per modality, each with the weights of its best epoch.

    Attributes:
        text, image: in evaluation mode, on the training device; None for a modality that the catalogue lacks.
        settings: the section `quantizer` that it was fitted with, as plain values.
        best_epoch: {modality: epoch of its weights}, counted from 1; 0 if nothing was trained.
        log: one row per measured epoch: epoch, loss and its parts, and collision rate and dead codes per modality.
        collaborative_dim: number of collaborative columns at the end of the input; 0 if there are none.
    """

    text: ModalityQuantizer | None
    image: ModalityQuantizer | None
    settings: Mapping[str, Any]
    best_epoch: dict[str, int]
    log: list[dict[str, float]] = field(repr=False)
    collaborative_dim: int = 0

    @property
    def modules(self) -> dict[str, ModalityQuantizer]:
        """{modality: quantizer}, for the modalities that the catalogue has."""
        modules = zip(MODALITIES, (self.text, self.image), strict=True)
        return {modality: module for modality, module in modules if module is not None}

    @property
    def codebook_size(self) -> int:
        """Codes per level."""
        return int(self.settings["codebook_size"])

    def save(self, folder: Path) -> None:
        """Write the files of a quantizer into a folder."""
        embedding_dims = {}
        for modality, module in self.modules.items():
            save_file(
                {name: value.contiguous().cpu() for name, value in module.state_dict().items()},
                folder / f"{modality}.safetensors",
            )
            embedding_dims[modality] = module.input_dim - self.collaborative_dim
        description = {
            "config": dict(self.settings),
            "embedding_dim": embedding_dims,
            "collaborative_dim": self.collaborative_dim,
            "best_epoch": self.best_epoch,
        }
        (folder / "quantizer.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
        (folder / "training_log.json").write_text(json.dumps(self.log, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, *, device: torch.device) -> FittedQuantizer:
        """Read what `save` wrote. Raise `StorageError` if a file is missing or damaged."""
        try:
            description = json.loads((folder / "quantizer.json").read_text())
            settings = description["config"]
            spec = QuantizerSpec.from_settings(settings)
            module_class = ResidualKMeans if settings["method"] == "residual_k_means" else RqVae
            collaborative_dim: int = description["collaborative_dim"]
            modules = {}
            for modality, embedding_dim in description["embedding_dim"].items():
                module = module_class(embedding_dim + collaborative_dim, spec)
                module.load_state_dict(load_file(folder / f"{modality}.safetensors"))
                modules[modality] = module.to(device).eval()
            log = json.loads((folder / "training_log.json").read_text())
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise StorageError(
                f"The quantizer in {folder} cannot be read: {error}. Materialize `quantizer` again."
            ) from error
        return cls(
            modules.get("text"), modules.get("image"), settings, description["best_epoch"], log, collaborative_dim
        )
