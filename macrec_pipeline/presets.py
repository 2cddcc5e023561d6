"""Presets, and how a preset and the layers above it become the settings of a run.

The input is the name of a preset and a sequence of layers: nested mappings from a data set file, or assignments such
as `section.setting=value`. The output is a validated `PipelineConfig`, or the same settings with the layer that each
value comes from.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.config.reference import Setting, all_settings
from macrec_pipeline.config.validation_messages import describe_validation_error
from macrec_pipeline.config.yaml_text import RefusedYamlError, load_yaml
from macrec_pipeline.errors import ConfigError, did_you_mean

# What each preset changes in the published settings, section by section.
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
            # The published MLP needs thousands of steps before it reconstructs anything; this one needs hundreds.
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
            # One layer learns as much per sample as two, in half the time. In so few epochs the model is far from
            # overfitting, so dropout would only slow it down.
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


@dataclass(frozen=True)
class SettingsLayer:
    """Settings that one source puts on top of a preset.

    Attributes:
        source: where they come from, as a reader would say it: "data set file", "--set".
        values: {section: {setting: value}}; {"seed": 1} for a setting without a section.
    """

    source: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class ResolvedSetting:
    """A setting with its value and the source of the value.

    Attributes:
        setting: what the setting is.
        default: its value with the default preset and no layers, as JSON has it.
        value: its value, as JSON has it.
        source: "default preset", "preset NAME" or the source of a layer.
    """

    setting: Setting
    default: Any
    value: Any
    source: str

    @property
    def is_changed(self) -> bool:
        """Whether the value differs from the default."""
        return json.dumps(self.value) != json.dumps(self.default)


def resolve_config(preset: str, *layers: Mapping[str, Any]) -> PipelineConfig:
    """Combine a preset with the layers above it, later ones winning.

    Args:
        preset: a key of `PRESETS`.
        layers: nested mappings `{section: {setting: value}}`; `{"seed": 1}` for a setting without a section.

    Raises:
        ConfigError: the preset or a setting is unknown, or a value is not allowed; the message names each one.
    """
    if preset not in PRESETS:
        known = ", ".join(sorted(PRESETS))
        raise ConfigError(f"Unknown preset `{preset}`.{did_you_mean(preset, PRESETS)} The presets are {known}.")
    merged: dict[str, Any] = {"preset": preset}
    for layer in (PRESETS[preset], *layers):
        merged = merge_layers(merged, layer)
    try:
        return PipelineConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, PipelineConfig)) from None


def resolve_with_sources(preset: str, layers: Sequence[SettingsLayer] = ()) -> list[ResolvedSetting]:
    """Resolve every setting and find the layer that its value comes from.

    Returns:
        Every setting, section by section.

    Raises:
        ConfigError: see `resolve_config`.
    """
    default = resolve_config("default").model_dump(mode="json")
    resolved = resolve_config(preset, *(layer.values for layer in layers)).model_dump(mode="json")
    sources = [SettingsLayer(_preset_source(preset), PRESETS[preset]), *layers]
    settings = []
    for setting in all_settings():
        keys = setting.name.split(".")
        value, default_value = _value_of(setting, resolved), _value_of(setting, default)
        source = next((layer.source for layer in reversed(sources) if _assigns(layer.values, keys)), None)
        if source is None:
            source = _preset_source("default" if json.dumps(value) == json.dumps(default_value) else preset)
        settings.append(ResolvedSetting(setting, default_value, value, source))
    return settings


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn `["recommender.num_epochs=3", "seed=1"]` into `{"recommender": {"num_epochs": 3}, "seed": 1}`.

    Values are read as YAML, so lists are written `[1, 2]`. Names and values are not validated here.

    Raises:
        ConfigError: an assignment is not of the form `name=value`, or its value is not YAML.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        keys = name.strip().split(".")
        if not separator or not all(keys):
            raise ConfigError(
                f"{assignment!r} does not set anything. Write SECTION.SETTING=VALUE, for example --set seed=7 or "
                "--set recommender.num_epochs=5."
            )
        try:
            value = load_yaml(text)
        except RefusedYamlError as error:
            raise ConfigError(f"The value of `{name}` is refused: {error}") from None
        except yaml.YAMLError:
            raise ConfigError(f"The value of `{name}` is not valid YAML: {text!r}.") from None
        nested: Any = value
        for key in reversed(keys):
            nested = {key: nested}
        overrides = merge_layers(overrides, nested)
    return overrides


def common_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the full names of the settings, or whole sections, that two layers both assign, sorted."""
    names = []
    for key in sorted(one.keys() & other.keys()):
        below = (one[key], other[key])
        if all(isinstance(value, Mapping) for value in below):
            names += [f"{key}.{name}" for name in common_settings(*below)]
        else:
            names.append(key)
    return names


def _preset_source(preset: str) -> str:
    return "default preset" if preset == "default" else f"preset {preset}"


def _value_of(setting: Setting, tree: Mapping[str, Any]) -> Any:
    """Return a setting's value in a dumped `PipelineConfig`; its declared default if its limit is not set."""
    value: Any = tree
    for key in setting.name.split("."):
        if value is None:
            return setting.default
        value = value[key]
    return value


def _assigns(values: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Return whether a layer assigns a value to nested keys, or to a level above them."""
    found: Any = values
    for key in keys:
        if not isinstance(found, Mapping):
            return True
        if key not in found:
            return False
        found = found[key]
    return True


def merge_layers(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer on top of another; neither changes."""
    merged = dict(base)
    for key, value in layer.items():
        below = merged.get(key)
        merged[key] = merge_layers(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
