"""From a preset and what is laid over it to the settings of a run.

In: a preset's name and override layers, as nested mappings or as `section.field=value`. Out: `PipelineConfig`, checked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.errors import ConfigError

# What a preset changes in the published settings, section by section.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {"recommender": {"encoding": "item_causal"}},
    "paper": {
        "text_encoder": {"name": "transformers:huggyllama/llama-7b", "fields": "mean"},
        "image_encoder": {"name": "open_clip:ViT-L-14/openai"},
    },
    "demo": {
        "text_encoder": {"batch_size": 16},
        "image_encoder": {"batch_size": 8},
        "pseudo_labels": {"num_clusters": 64},
        "quantizer": {
            "num_levels": 3,
            "codebook_size": 32,
            # the published MLP needs thousands of steps before it reconstructs anything; this one needs hundreds
            "projection_dim": 256,
            "hidden_dims": (256,),
            "contrast_weight": 0.02,
            "learning_rate": 2e-3,
            "batch_size": 256,
            "num_epochs": 200,
        },
        "recommender": {
            "d_model": 64,
            "d_ff": 256,
            "d_kv": 16,
            "num_heads": 4,
            # one layer each learns as much a sample as two and takes half the time; in so few epochs the model
            # is far from knowing its samples by heart, and dropout only slows it
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
            "dropout": 0.0,
            "encoding": "item_causal",
            "learning_rate": 3e-3,
            "batch_size": 512,
            "num_epochs": 12,
        },
        "decoding": {"beam_width": 50},
    },
}


def resolve_config(preset: str, *layers: Mapping[str, Any]) -> PipelineConfig:
    """Lay override layers, later ones winning, over a preset.

    Args:
        preset: a key of `PRESETS`.
        layers: nested mappings `{section: {field: value}}`; `{"seed": 1}` for a top-level field.

    Raises:
        ConfigError: an unknown preset, section or field, or a value out of bounds; names each one.
    """
    if preset not in PRESETS:
        raise ConfigError(f"There is no preset {preset!r}. Use one of: {', '.join(sorted(PRESETS))}.")
    merged: dict[str, Any] = {"preset": preset}
    for layer in (PRESETS[preset], *layers):
        merged = _merge(merged, layer)
    try:
        return PipelineConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(f"The settings are wrong. {describe_validation_error(error)}") from None


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn `["recommender.num_epochs=3", "seed=1"]` into `{"recommender": {"num_epochs": 3}, "seed": 1}`.

    Values are read as YAML scalars or flow lists. Raises `ConfigError` for anything that is not `path=value`.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise ConfigError(f"--set got {assignment!r}; it needs section.field=value, as in seed=7.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {path}: the value {text!r} is not readable as YAML.") from None
        nested: Any = value
        for key in reversed(keys):
            nested = {key: nested}
        overrides = _merge(overrides, nested)
    return overrides


def describe_validation_error(error: ValidationError) -> str:
    """One line for a person: each wrong field, what was got and why it is refused."""
    parts = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        # of a rule about several sections the input is the whole tree, which helps nobody
        told = problem["type"] == "missing" or not problem["loc"]
        got = "" if told else f" (got {problem['input']!r})"
        parts.append(f"{path}: {problem['msg']}{got}")
    return "; ".join(parts)


def _merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in layer.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
