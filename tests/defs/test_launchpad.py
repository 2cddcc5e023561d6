"""The settings in Dagster's Launchpad: their schema, and which wrong ones are refused before a run exists."""

from typing import Any

import dagster as dg
import pytest

from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.config.reference import all_settings
from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.jobs import FULL_PIPELINE
from macrec_pipeline.defs.launchpad import check_settings, settings_resource
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.errors import ConfigError


def _fields(config_type: Any) -> dict[str, dg.Field]:
    while hasattr(config_type, "inner_type"):
        config_type = config_type.inner_type
    return getattr(config_type, "fields", {})


def _field(name: str) -> dg.Field:
    field = settings_resource.config_schema.as_field()
    for key in name.split("."):
        field = _fields(field.config_type)[key]
    return field


def _validate(config: dict[str, Any]) -> None:
    """Check a run's config as Dagster does before it creates a run."""
    run_config = {"resources": {"settings": {"config": config}}}
    assert dg.validate_run_config(defs.resolve_job_def(FULL_PIPELINE), run_config)


def test_every_setting_is_offered_with_its_description() -> None:
    """Each setting except the preset's name is a field whose description says what it does and what it allows."""
    for setting in all_settings():
        if setting.name == "preset":
            continue
        field = _field(setting.name)
        assert field.description, setting.name
        assert setting.bounds in field.description or "list" in setting.type, setting.name


def test_a_field_has_type_bounds_and_default() -> None:
    field = _field("recommender.num_epochs")
    assert field.config_type.given_name == "Int"
    assert not field.is_required
    assert not field.default_provided  # a default would replace the value of the data set's file
    assert field.description == (
        "Largest number of passes over the training data. Allowed: an integer of at least 1. Default: 200, unless the "
        "preset differs."
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"recommender": {"num_epochs": "five"}}, 'Value "five".*expected type "Int"'),
        ({"recommender": {"num_epoch": 3}}, 'unexpected config entry "num_epoch"'),
        ({"recomender": {"num_epochs": 3}}, 'unexpected config entry "recomender"'),
        ({"quantizer": {"method": "magic"}}, "cross_modal.*magic"),
        ({"recommender": {"num_epochs": 0}}, "`recommender.num_epochs` must be an integer of at least 1; got 0"),
        ({"text_encoder": {"batch_size": "many"}}, "`text_encoder.batch_size` must be"),
        ({"cleaning": {"k_core": None}}, "k_core"),
        ({"identity": {"limits": {"max_gini": {"action": "block"}}}}, "value"),
        ({"overrides": ["recomender.x=3"]}, "Unknown section `recomender`. Did you mean `recommender`"),
        (
            {"overrides": ["recommender.num_epochs=3", "seed=1"], "recommender": {"num_epochs": 4}, "seed": 2},
            "set `recommender.num_epochs`, `seed`. Keep one",
        ),
    ],
)
def test_a_wrong_setting_is_refused_before_a_run_exists(config: dict[str, Any], message: str) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match=message):
        _validate(config)


def test_settings_of_every_type_are_accepted() -> None:
    """The defaults of all settings are valid in the Launchpad, and so are null, an offset date and nested limits."""
    defaults = PipelineConfig().model_dump(mode="json", exclude={"preset"})
    _validate(defaults)
    _validate(
        {
            "split": {"method": "global_time", "test_from": "2026-01-01T00:00:00+02:00"},
            "cleaning": {"min_rating": 3},
            "text_encoder": {"batch_size": "auto"},
            "identity": {"limits": {"max_gini": {"value": 1}, "max_cold_share": None}},
        }
    )


def test_rules_that_combine_settings_wait_for_the_data_set() -> None:
    """`mode: auto` needs a limit, which the data set's file may have, so it is not refused before launch."""
    check_settings({"identity": {"mode": "auto"}})
    with pytest.raises(ConfigError, match=r"quantizer\.num_levels"):
        check_settings({"identity": {"mode": "auto"}, "quantizer": {"num_levels": 9}})


def test_the_launchpad_wins_over_the_job_and_the_data_set() -> None:
    """A null is a value; a setting that is left out keeps the data set's value; strings still work beside sections."""
    config = {"overrides": ["seed=5"], "recommender": {"num_epochs": 3}, "routes": None}
    settings = Settings.from_run_config(config).with_job_overrides(["recommender.num_epochs=9", "identity.mode=append"])
    resolved = settings.config("demo")
    unchanged = Settings().config("demo")
    assert (resolved.recommender.num_epochs, resolved.seed, resolved.identity.mode) == (3, 5, "append")
    assert resolved.routes is None
    assert resolved.recommender.d_model == unchanged.recommender.d_model
    cleared = Settings.from_run_config({"promotion": {"outdated_weeks": None}}).config("demo")
    assert cleared.promotion.outdated_weeks is None
    assert unchanged.promotion.outdated_weeks == 26
