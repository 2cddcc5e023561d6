"""A fitted quantizer of both modalities, whatever the method, and its folder on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from macrec_pipeline.errors import StorageError
from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer
from macrec_pipeline.semantic_ids.residual_k_means import ResidualKMeans
from macrec_pipeline.semantic_ids.rq_vae import RqVae

if TYPE_CHECKING:
    from macrec_pipeline.config import QuantizerConfig

MODALITIES = ("text", "image")


@dataclass(frozen=True)
class FittedQuantizer:
    """A quantizer a modality, each from its best epoch.

    Attributes:
        text, image: in evaluation mode, on the training device; None for a modality that the catalogue lacks.
        best_epoch: epoch of each modality's weights, counted from 1; 0 where nothing is trained.
        log: one mapping a measurement: epoch, loss, its parts, and text_ and image_collision_rate and dead codes.
        collaborative_dim: C of the vectors that anchor the input; 0 if none do.
    """

    text: ModalityQuantizer | None
    image: ModalityQuantizer | None
    config: QuantizerConfig
    best_epoch: dict[str, int]
    log: list[dict[str, float]] = field(repr=False)
    collaborative_dim: int = 0

    @property
    def modules(self) -> dict[str, ModalityQuantizer]:
        """Each modality that there is, by its name."""
        both = zip(MODALITIES, (self.text, self.image), strict=True)
        return {modality: module for modality, module in both if module is not None}

    def save(self, folder: Path) -> None:
        """Write a safetensors file a modality, `quantizer.json` and `training_log.json` into a folder."""
        dims = {}
        for modality, module in self.modules.items():
            save_file(
                {name: value.contiguous().cpu() for name, value in module.state_dict().items()},
                folder / f"{modality}.safetensors",
            )
            dims[modality] = module.input_dim - self.collaborative_dim
        description = {
            "config": dict(vars(self.config)),
            "embedding_dim": dims,
            "collaborative_dim": self.collaborative_dim,
            "best_epoch": self.best_epoch,
        }
        (folder / "quantizer.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
        (folder / "training_log.json").write_text(json.dumps(self.log, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, *, device: torch.device) -> FittedQuantizer:
        """Read what `save` wrote. Raises `StorageError` that names the file."""
        try:
            description = json.loads((folder / "quantizer.json").read_text())
            config = cast("QuantizerConfig", SimpleNamespace(**description["config"]))
            made = ResidualKMeans if description["config"]["method"] == "residual_k_means" else RqVae
            collaborative_dim: int = description["collaborative_dim"]
            modules = {}
            for modality, dim in description["embedding_dim"].items():
                module = made(dim + collaborative_dim, config)
                module.load_state_dict(load_file(folder / f"{modality}.safetensors"))
                modules[modality] = module.to(device).eval()
            log = json.loads((folder / "training_log.json").read_text())
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise StorageError(f"{folder} is no usable quantizer: {error}. Materialize `quantizer` again.") from error
        return cls(modules.get("text"), modules.get("image"), config, description["best_epoch"], log, collaborative_dim)
