"""Sentences for people about settings that pydantic rejected.

The input is a `ValidationError` and the model that raised it. The output names each wrong setting in full, what was
given and what is allowed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from macrec_pipeline.config.pipeline import PipelineConfig
from macrec_pipeline.config.reference import Schema, all_settings
from macrec_pipeline.errors import did_you_mean, similar_names

_OVERRIDES = "overrides"
_MAX_CHARACTERS = 120


@dataclass(frozen=True)
class _Place:
    """Where in a model an error occurred.

    Attributes:
        name: full name of the setting, without the labels that pydantic adds for alternatives.
        node: its JSON schema; for an unknown name, that of the section around it.
    """

    name: str
    node: Mapping[str, Any]


@dataclass(frozen=True)
class _Step:
    """One step down a schema; `is_named` is False for a step to an alternative, which setting names leave out."""

    node: Mapping[str, Any]
    is_named: bool


def describe_validation_error(
    error: ValidationError, model: type[BaseModel], *, with_combined_rules: bool = True
) -> str:
    """Return one sentence per wrong setting: its full name, what was given and what is allowed.

    Args:
        error: what `model.model_validate` raised.
        model: the model that was validated.
        with_combined_rules: False leaves out the rules that combine several settings, because some of these settings
            may still come from elsewhere. The result is then "" if nothing else is wrong.
    """
    schema = Schema(model)
    problems = [
        (_locate(schema, problem["loc"], problem["type"]), problem)
        for problem in error.errors()
        if with_combined_rules or problem["type"] != "value_error"
    ]
    sentences: list[str] = []
    for place, problem in problems:
        # pydantic reports every alternative that a setting allows. An error inside one says more.
        if not any(other.name.startswith((f"{place.name}.", f"{place.name}[")) for other, _ in problems if place.name):
            sentences.append(_sentence(schema, model, place, problem))
    return " ".join(dict.fromkeys(sentences))


def _locate(schema: Schema, location: Sequence[str | int], kind: str) -> _Place:
    """Follow the path of an error through the schema."""
    node, name = schema.root, ""
    for position, part in enumerate(location):
        below = _child(schema, node, part)
        if below is None:
            if kind == "extra_forbidden" and position == len(location) - 1:
                return _Place(_joined(name, part), node)
            break  # the label of an alternative, such as "constrained-int"
        if not below.is_named and position == len(location) - 1:
            break  # none of the alternatives fits, so the message is about all of them
        node = below.node
        if below.is_named:
            name = f"{name}[{part}]" if isinstance(part, int) else _joined(name, part)
    return _Place(name, node)


def _child(schema: Schema, node: Mapping[str, Any], part: str | int) -> _Step | None:
    """Return the step that one part of an error's path stands for; None if the schema has no such step."""
    alternatives = schema.branches(node)
    if isinstance(part, int):
        return next((_Step(each["items"], is_named=True) for each in alternatives if "items" in each), None)
    tags = schema.resolve(node).get("discriminator", {}).get("mapping", {})
    if part in tags:
        return _Step({"$ref": tags[part]}, is_named=False)
    for each in alternatives:
        if part in each.get("properties", {}):
            return _Step(each["properties"][part], is_named=True)
    return next((_Step(each, is_named=False) for each in alternatives if each.get("title") == part), None)


def _sentence(schema: Schema, model: type[BaseModel], place: _Place, problem: Mapping[str, Any]) -> str:
    kind, name, value = problem["type"], place.name, _shortened(problem["input"])
    if kind == "extra_forbidden":
        return _unknown_setting(schema, model, place, is_section=isinstance(problem["input"], Mapping))
    is_section = any("properties" in each for each in schema.branches(place.node))
    if kind == "value_error":
        rule = str(problem["ctx"]["error"])
        if name and not is_section:
            return f"`{name}` {rule}; got {value}."
        section = f"In section `{name}`: " if name else ""
        return f"{section}{rule.rstrip('.')}."
    if "discriminator" in schema.resolve(place.node):
        key = schema.resolve(place.node)["discriminator"]["propertyName"]
        return f"`{name}` must be a mapping with `{key}`; got {value}."
    if kind == "missing":
        return f"`{name}` is missing; it must be {schema.allowed_in_words(place.node)}."
    if not name:
        return f"Expected a mapping of settings, got {value}."
    if kind == "string_pattern_mismatch":
        meaning = schema.resolve(place.node).get("description") or f"It must match {problem['ctx']['pattern']}."
        return f"`{name}` does not accept {value}. {meaning}"
    if is_section and len(schema.branches(place.node)) == 1:
        example = _joined(name, next(iter(schema.branches(place.node)[0]["properties"])))
        return f"`{name}` is a section, so it takes settings such as `{example}`; got {value}."
    return f"`{name}` must be {schema.allowed_in_words(place.node)}; got {value}."


def _unknown_setting(schema: Schema, model: type[BaseModel], place: _Place, *, is_section: bool) -> str:
    section, _, key = place.name.rpartition(".")
    siblings = [sibling for each in schema.branches(place.node) for sibling in each["properties"]]
    similar = [_joined(section, sibling) for sibling in similar_names(key, siblings)]
    message = f"Unknown {'section' if is_section else 'setting'} `{place.name}`."
    suggestion = did_you_mean(key, (), also=[*_same_name_elsewhere(model, section, key), *similar])
    if suggestion:
        return message + suggestion
    if model is PipelineConfig:
        return f"{message} Run `macrec settings{f' {section}' if section else ''}` to list the settings that exist."
    return f"{message} Expected one of: {', '.join(siblings)}."


def _same_name_elsewhere(model: type[BaseModel], section: str, key: str) -> Iterator[str]:
    """Yield settings of other sections that have the name `key`."""
    if model is PipelineConfig:
        yield from [each.name for each in all_settings() if each.name.rpartition(".")[2] == key][:2]
    elif not section and _OVERRIDES in model.model_fields and key in PipelineConfig.model_fields:
        yield f"{_OVERRIDES}.{key}"


def _joined(section: str, key: str | int) -> str:
    return f"{section}.{key}" if section else str(key)


def _shortened(value: object) -> str:
    """Return a value as YAML would write it on one line, cut off if it is long."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."
