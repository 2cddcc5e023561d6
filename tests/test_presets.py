"""Presets and the layers above them."""

import pytest

from macrec_pipeline.errors import ConfigError
from macrec_pipeline.presets import (
    PRESETS,
    SettingsLayer,
    parse_overrides,
    resolve_config,
    resolve_with_sources,
)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_is_valid(preset: str) -> None:
    """A preset resolves on its own, and records its name."""
    assert resolve_config(preset).preset == preset


def test_later_layers_win() -> None:
    """A layer replaces single settings and leaves the rest of a section as it is."""
    config = resolve_config("demo", {"recommender": {"num_epochs": 3, "patience": 2}}, {"recommender": {"patience": 1}})
    assert (config.recommender.num_epochs, config.recommender.patience, config.recommender.d_model) == (3, 1, 64)


def test_an_unknown_preset_is_compared_with_the_existing_ones() -> None:
    """The message suggests the preset that was meant, and lists all of them."""
    with pytest.raises(ConfigError, match=r"Unknown preset `papper`\. Did you mean `paper`\? The presets are default"):
        resolve_config("papper")


def test_assignments_become_a_tree() -> None:
    """Values are YAML: numbers, lists, null and texts; later assignments win."""
    assignments = ["recommender.num_epochs=3", "seed=1", "routes=[text]", "cleaning.min_rating=", "seed=2"]
    assert parse_overrides(assignments) == {
        "recommender": {"num_epochs": 3},
        "seed": 2,
        "routes": ["text"],
        "cleaning": {"min_rating": None},
    }
    assert parse_overrides(["text_encoder.prefix='passage: '"]) == {"text_encoder": {"prefix": "passage: "}}


@pytest.mark.parametrize("assignment", ["seed", "=7", "recommender.=3", ".seed=3"])
def test_what_is_no_assignment_is_rejected(assignment: str) -> None:
    """The message shows how to write one."""
    with pytest.raises(ConfigError, match=r"does not set anything\. Write SECTION\.SETTING=VALUE"):
        parse_overrides([assignment])


def test_a_value_that_is_no_yaml_is_rejected() -> None:
    """The message names the setting and the value."""
    with pytest.raises(ConfigError, match=r"The value of `routes` is not valid YAML: '\[text'"):
        parse_overrides(["routes=[text"])


def test_every_value_has_its_source() -> None:
    """The last layer that assigns a setting is its source; what nothing assigns comes from the preset."""
    layers = [
        SettingsLayer("data set file", {"cleaning": {"k_core": 5}, "recommender": {"num_epochs": 3}}),
        SettingsLayer("--set", {"recommender": {"num_epochs": 4}, "seed": 1}),
    ]
    resolved = {each.setting.name: each for each in resolve_with_sources("demo", layers)}
    found = {name: (each.value, each.default, each.source, each.is_changed) for name, each in resolved.items()}
    assert found["seed"] == (1, 20260, "--set", True)
    assert found["recommender.num_epochs"] == (4, 200, "--set", True)
    assert found["recommender.d_model"] == (64, 128, "preset demo", True)
    assert found["recommender.encoding"] == ("item_causal", "item_causal", "preset demo", False)
    assert found["cleaning.k_core"] == (5, 5, "data set file", False)
    assert found["cleaning.ties"] == ("hash", "hash", "default preset", False)
    config = resolve_config("demo", *(layer.values for layer in layers))
    assert config.recommender.num_epochs == 4


def test_what_a_preset_leaves_at_the_published_value_is_its_own() -> None:
    """The default preset changes `recommender.encoding`, so leaving it alone is a choice of the paper preset."""
    resolved = {each.setting.name: each for each in resolve_with_sources("paper")}
    encoding = resolved["recommender.encoding"]
    assert (encoding.value, encoding.default, encoding.source) == ("exact", "item_causal", "preset paper")


def test_a_limit_that_is_not_set_shows_its_defaults() -> None:
    """The value is null and the action is the declared default; once it is set, both have values."""
    resolved = {each.setting.name: each for each in resolve_with_sources("default")}
    assert resolved["identity.limits.max_gini.value"].value is None
    assert resolved["identity.limits.max_gini.action"].value == "warn"
    layer = SettingsLayer("--set", {"identity": {"limits": {"max_gini": {"value": 0.5}}}})
    resolved = {each.setting.name: each for each in resolve_with_sources("default", [layer])}
    assert resolved["identity.limits.max_gini.value"].value == 0.5
    assert resolved["identity.limits.max_gini.value"].source == "--set"
    assert resolved["identity.limits.max_gini.action"].source == "default preset"
