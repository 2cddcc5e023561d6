"""What an image encoder does to an image before the model sees it, in words and as a digest.

The same weights give other vectors if they see another part of the image: timm's configurations of several CLIP models
crop the border away, open_clip's do not. The embeddings keep the transform, so that a change can be noticed.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any


def describe_transform(preprocessing: Mapping[str, Any]) -> dict[str, str]:
    """Return the transform of an encoder as `words` for a person and a `digest` of all its settings.

    Args:
        preprocessing: the settings of timm (with `input_size`) or open_clip (with `size`), as plain JSON values.

    Returns:
        For example `{"words": "timm: shorter side to 248, centre crop of 224 x 224, bicubic", "digest": "5f0c..."}`.
    """
    settings = json.dumps(dict(preprocessing), sort_keys=True)
    return {"words": _in_words(preprocessing), "digest": hashlib.sha256(settings.encode()).hexdigest()}


def _in_words(preprocessing: Mapping[str, Any]) -> str:
    size = preprocessing.get("input_size", preprocessing.get("size", 224))
    height, width = size[-2:] if isinstance(size, list | tuple) else (size, size)
    if "input_size" in preprocessing:
        library, mode = "timm", str(preprocessing.get("crop_mode", "center"))
        share = preprocessing.get("crop_pct", 0.875)
        scaled_height, scaled_width = (math.floor(side / share) for side in (height, width))
        scaled = str(scaled_height) if scaled_height == scaled_width else f"{scaled_height} x {scaled_width}"
    else:
        library, mode = "open_clip", str(preprocessing.get("resize_mode", "shortest"))
        scaled = str(height) if height == width else f"{height} x {width}"
    if mode in ("center", "shortest"):
        resize = f"shorter side to {scaled}, centre crop of {height} x {width}"
    elif mode == "squash":
        resize = f"both sides to {scaled}, centre crop of {height} x {width}"
    else:
        resize = f"longer side to {scaled}, border up to {height} x {width}"
    normal = ", ".join(f"{name} {_rounded(preprocessing[name])}" for name in ("mean", "std") if name in preprocessing)
    return f"{library}: {resize}, {preprocessing.get('interpolation', 'bilinear')}; {normal}".rstrip("; ")


def _rounded(values: Any) -> str:
    distinct = [f"{float(value):.4g}" for value in values]
    return distinct[0] if len(set(distinct)) == 1 else f"({', '.join(distinct)})"
