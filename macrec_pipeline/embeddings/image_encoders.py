"""Loads image encoders by name: `packaged:`, `timm:` or `open_clip:`, each with its preprocessing.

Weights are read as tensors only (safetensors, or torch files with `weights_only`), so a weights file cannot run code.
Shapes (docs/notation.md): B batch rows, D embedding width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from macrec_pipeline.embeddings.efficientnet_lite0 import PREPROCESSING, load_efficientnet_lite0, weights_path
from macrec_pipeline.embeddings.hub import loading
from macrec_pipeline.embeddings.weights import files_digest, state_digest
from macrec_pipeline.errors import EncoderError
from macrec_pipeline.runtime.fast_layers import use_fast_linear

# Rough number of float32 values per input pixel that a network holds in memory at its widest layer.
_VALUES_PER_PIXEL = 64


@dataclass(frozen=True)
class ImageEncoder:
    """A loaded image encoder.

    Attributes:
        transform: RGB image -> float32 [3, height, width] on the CPU, of the same size for every image.
        forward: float32 [B, 3, height, width] on the encoder's device -> [B, D].
        description: see `EmbeddingResult.encoder`.
    """

    transform: Callable[[Image.Image], torch.Tensor]
    forward: Callable[[torch.Tensor], torch.Tensor]
    description: dict[str, Any]

    @property
    def bytes_per_image(self) -> int:
        """Rough estimate of the memory that one image needs on its way through the encoder."""
        preprocessing = self.description["preprocessing"]
        size = preprocessing.get("input_size", preprocessing.get("size", 224))
        height, width = size[-2:] if isinstance(size, list | tuple) else (size, size)
        return int(4 * height * width * _VALUES_PER_PIXEL)


def load_image_encoder(name: str, *, device: torch.device) -> ImageEncoder:
    """Load the image encoder of that name; `image_encoder.name` in the settings.

    Args:
        name: `packaged:efficientnet-lite0`, `timm:MODEL` (weights from the hub), `timm:MODEL@WEIGHTS_FILE`, or
            `open_clip:MODEL/PRETRAINED_TAG_OR_FILE`, which is split at the first slash, so that the path may be
            absolute.
        device: device of the model.

    Raises:
        EncoderError: the name has another form, or the model or its weights are not available.
    """
    scheme, _, rest = name.partition(":")
    loaders = {"packaged": _load_packaged, "timm": _load_timm, "open_clip": _load_open_clip}
    if scheme not in loaders or not rest:
        raise EncoderError(
            f"image_encoder.name is {name!r}. Expected packaged:efficientnet-lite0, timm:MODEL[@WEIGHTS_FILE] or "
            "open_clip:MODEL/PRETRAINED_TAG_OR_FILE."
        )
    return loaders[scheme](name, rest, device)


def _load_packaged(name: str, rest: str, device: torch.device) -> ImageEncoder:
    from timm.data.transforms_factory import create_transform

    if rest != "efficientnet-lite0":
        raise EncoderError(f"There is no packaged image encoder {rest!r}. Use packaged:efficientnet-lite0.")
    path = weights_path()
    with loading(name, from_hub=False):
        model: Any = load_efficientnet_lite0(path)
        model.reset_classifier(0)
        transform = create_transform(**PREPROCESSING, is_training=False)
    description = _description(name, files=path, state=None, preprocessing=PREPROCESSING)
    return ImageEncoder(transform, _on_device(model, device), description)


def _load_timm(name: str, rest: str, device: torch.device) -> ImageEncoder:
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    model_name, _, file = rest.partition("@")
    if not timm.is_model(model_name):
        raise EncoderError(f"timm has no model {model_name!r}.{_suggestion(model_name, timm.list_models())}")
    path = _existing_file(name, file) if file else None
    with loading(name, from_hub=path is None):
        model = timm.create_model(model_name, pretrained=path is None, num_classes=0)
        if path is not None:
            _load_weights_into_timm(model, timm.models.load_state_dict(str(path), device="cpu", weights_only=True))
    preprocessing = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    transform = create_transform(**preprocessing, is_training=False)
    description = _description(name, files=path, state=model, preprocessing=preprocessing)
    return ImageEncoder(transform, _on_device(model, device), description)


def _load_weights_into_timm(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Load weights into a model without a classifier; only tensors of the classifier may be left over."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    classifiers = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ((classifiers,) if isinstance(classifiers, str) else classifiers))
    surplus = [key for key in unexpected if not key.startswith(heads)]
    if missing or surplus:
        raise ValueError(
            f"{len(missing)} tensors are missing, such as {missing[:3]}, "
            f"and {len(surplus)} are unexpected, such as {surplus[:3]}"
        )


def _load_open_clip(name: str, rest: str, device: torch.device) -> ImageEncoder:
    import open_clip

    model_name, _, pretrained = rest.partition("/")
    if not pretrained:
        raise EncoderError(
            f"image_encoder.name {name!r} names no weights. Expected open_clip:MODEL/PRETRAINED_TAG_OR_FILE."
        )
    if model_name not in open_clip.list_models():
        raise EncoderError(f"open_clip has no model {model_name!r}.{_suggestion(model_name, open_clip.list_models())}")
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    path = None if pretrained in tags else _existing_file(name, pretrained, tags=tags)
    with loading(name, from_hub=path is None):
        model, _, transform = open_clip.create_model_and_transforms(
            model_name,
            pretrained=pretrained if path is None else str(path),
            force_quick_gelu=path is None and needs_quick_gelu(model_name, pretrained),
        )
    preprocessing = dict(model.visual.preprocess_cfg)
    description = _description(name, files=path, state=model, preprocessing=preprocessing)
    _on_device(model, device)
    return ImageEncoder(transform, model.encode_image, description)


def needs_quick_gelu(model_name: str, tag: str) -> bool:
    """Return whether open_clip weights were trained with QuickGELU, although the model's settings lack it.

    `ViT-L-14/openai` is such a pair: open_clip would only warn, and compute other features than CLIP does.
    """
    import open_clip

    trained_with = bool((open_clip.get_pretrained_cfg(model_name, tag) or {}).get("quick_gelu", False))
    return trained_with and not bool(open_clip.get_model_config(model_name).get("quick_gelu", False))


def _on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to the device, in evaluation mode and in the memory format in which a CPU convolves fastest."""
    moved = model.eval().to(device=device, dtype=torch.float32).to(memory_format=torch.channels_last)
    return use_fast_linear(moved)


def _existing_file(name: str, file: str, *, tags: list[str] | None = None) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        hint = f" Nor is it a pretrained tag; the tags of this model are: {', '.join(tags)}." if tags else ""
        raise EncoderError(
            f"The weights of {name!r} are missing: there is no file {file}.{hint} Give the path of a file."
        )
    return path


def _suggestion(model_name: str, available: list[str]) -> str:
    similar = get_close_matches(model_name, available, n=3)
    return f" Did you mean {' or '.join(similar)}?" if similar else f" It has {len(available)} other models."


def _description(
    name: str, *, files: Path | None, state: nn.Module | None, preprocessing: dict[str, Any]
) -> dict[str, Any]:
    if files is not None:
        digest, digest_of = files_digest(files), "files"
    else:
        assert state is not None
        digest, digest_of = state_digest(state.state_dict()), "state"
    return {"name": name, "digest": digest, "digest_of": digest_of, "preprocessing": preprocessing}
