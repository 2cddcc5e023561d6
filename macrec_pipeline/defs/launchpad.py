"""The settings as Dagster's Launchpad shows and checks them: `resources.settings.config.recommender.num_epochs: 5`.

The schema is generated from `PipelineConfig`, so each setting has its type, choices, bounds, description and default.
Dagster's page refuses unknown names, wrong types and wrong choices while a person types. Bounds, and the strings in
`overrides`, are checked when a run is launched, before it exists. Rules that combine several settings depend on the
data set's file, and are checked when the run starts.

A setting without a value in the Launchpad keeps the value of the data set's file, so Dagster gets no defaults.
"""

import json
from collections.abc import Mapping
from typing import Any

import dagster as dg
from pydantic import ValidationError

from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.config.reference import Schema
from macrec_pipeline.config.validation_messages import describe_validation_error
from macrec_pipeline.defs.dagster_private import PostProcessingError
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.errors import ConfigError

_TYPES: Mapping[str, Any] = {"integer": int, "number": float, "boolean": bool, "string": str}
_NOT_OFFERED = "preset"  # a data set's file chooses it; its name alone changes nothing
_FOLDERS_AND_STRINGS = ("home", "data", "overrides")


class _CheckedNoneable(dg.Noneable):
    """The config of the resource `settings`, whose values are checked when a run is launched."""

    def post_process(self, value: Any) -> Any:
        try:
            check_settings(value or {})
        except ConfigError as error:
            raise PostProcessingError(str(error)) from None
        return value


def check_settings(config: Mapping[str, Any]) -> None:
    """Check the settings in a run's config, as far as that is possible without the data set's file.

    Args:
        config: what the run config has at `resources.settings.config`.

    Raises:
        ConfigError: a name or a value is wrong, or a setting has a value both in its section and in `overrides`.
    """
    values = Settings.from_run_config(config).run_values()
    try:
        PipelineConfig.model_validate(values)
    except ValidationError as error:
        wrong = describe_validation_error(error, PipelineConfig, with_combined_rules=False)
        if wrong:
            raise ConfigError(wrong) from None


def _resource_config() -> dg.Field:
    """Return the schema of the config of the resource `settings`."""
    schema = Schema(PipelineConfig)
    own = {name: Settings.model_fields[name].description for name in _FOLDERS_AND_STRINGS}
    types: Mapping[str, Any] = {"home": dg.Noneable(str), "data": dg.Noneable(str), "overrides": [str]}
    fields = {name: dg.Field(types[name], description=about, is_required=False) for name, about in own.items()}
    fields |= _fields(schema, schema.root)
    return dg.Field(_CheckedNoneable(fields), is_required=False, description=Settings.__doc__)


def _fields(schema: Schema, section: Mapping[str, Any]) -> dict[str, dg.Field]:
    """Return the fields of a section of the schema, or of its root."""
    required = section.get("required", ())
    properties = {name: node for name, node in section["properties"].items() if name != _NOT_OFFERED}
    return {
        name: dg.Field(_type(schema, name, node), is_required=name in required, description=_description(schema, node))
        for name, node in properties.items()
    }


def _type(schema: Schema, name: str, node: Mapping[str, Any]) -> Any:
    """Return Dagster's type of a setting, of a section or of the entries of a list."""
    branches = schema.branches(node)
    inner = _type_of_branch(schema, name, branches[0]) if len(branches) == 1 else dg.Any
    return dg.Noneable(inner) if schema.accepts_null(node) and inner is not dg.Any else inner


def _type_of_branch(schema: Schema, name: str, branch: Mapping[str, Any]) -> Any:
    if "properties" in branch:
        return _fields(schema, branch)
    if "enum" in branch:
        choices = branch["enum"]
        # Dagster tells enumerations apart by their name alone.
        return dg.Enum(" | ".join(choices), [dg.EnumValue(choice) for choice in choices])
    if branch.get("type") == "array":
        return dg.Array(_type(schema, name, branch.get("items", {})))
    return _TYPES.get(branch.get("type", ""), dg.Any)


def _description(schema: Schema, node: Mapping[str, Any]) -> str:
    """Return what a setting does, what it allows and its default; for a section, what it is about."""
    branches = schema.branches(node)
    text = node.get("description") or branches[0].get("description", "")
    about = " ".join(text.partition("\n\n")[0].replace("`", "").split())
    if len(branches) == 1 and "properties" in branches[0]:
        return about
    allowed = schema.allowed_in_words(node)
    default = f" Default: {json.dumps(node['default'])}, unless the preset differs." if "default" in node else ""
    return f"{about} Allowed: {allowed}.{default}"


@dg.resource(config_schema=_resource_config(), description=Settings.__doc__)
def settings_resource(context: dg.InitResourceContext) -> Settings:
    """Build `Settings` from a run's config."""
    return Settings.from_run_config(context.resource_config or {})
