"""A description of every setting: full name, type, bounds and meaning.

The input is a pydantic model, whose JSON schema holds all of it; the output is plain text for people. The command
`macrec settings` and the error messages about settings use the same words.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from macrec_pipeline.config.pipeline import PipelineConfig

GENERAL = "general"
"""The section that lists the settings without a section, such as `seed`."""


@dataclass(frozen=True)
class Setting:
    """One setting of the pipeline.

    Attributes:
        name: full name, as `--set` takes it: "recommender.num_epochs".
        section: the part of the name before the last dot, or `GENERAL`.
        type: type in words: "integer", "one of first, last, keep".
        bounds: bounds in words: "at least 1"; "" if there are none.
        description: what the setting does, with its unit.
        choices: the values that can be listed; () if there are too many.
        default: the value that the model declares, as JSON has it; None if it declares none. A preset may differ.
    """

    name: str
    section: str
    type: str
    bounds: str
    description: str
    choices: tuple[str, ...]
    default: Any


@dataclass(frozen=True)
class SettingSection:
    """A group of settings whose names begin with the same section."""

    name: str
    description: str
    settings: tuple[Setting, ...]


class Schema:
    """The JSON schema of a model, with references resolved."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.root: Mapping[str, Any] = model.model_json_schema()
        self._definitions: Mapping[str, Any] = self.root.get("$defs", {})

    def resolve(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the definition that a node refers to, or the node itself."""
        return self._definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node

    def branches(self, node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the alternatives of a node, nested ones included and without null."""
        node = self.resolve(node)
        alternatives = node.get("anyOf") or node.get("oneOf")
        if alternatives is None:
            return [] if node.get("type") == "null" else [node]
        return [branch for each in alternatives for branch in self.branches(each)]

    def accepts_null(self, node: Mapping[str, Any]) -> bool:
        """Return whether null is one of the alternatives of a node."""
        node = self.resolve(node)
        alternatives = node.get("anyOf") or node.get("oneOf") or []
        return node.get("type") == "null" or any(self.accepts_null(each) for each in alternatives)

    def type_in_words(self, node: Mapping[str, Any]) -> str:
        """Return the type of a node in words, such as "integer or null"."""
        names = [self._type_of_branch(branch) for branch in self.branches(node)]
        names += ["null"] * self.accepts_null(node)
        separator = ", or " if any("," in name for name in names) else " or "
        return separator.join(dict.fromkeys(names))

    def bounds_in_words(self, node: Mapping[str, Any]) -> str:
        """Return the bounds of a node in words, such as "from 1 to 1000"; "" if there are none."""
        return ", ".join(filter(None, map(_bounds_of_branch, self.branches(node))))

    def allowed_in_words(self, node: Mapping[str, Any]) -> str:
        """Return the type and bounds of a node as part of a sentence, such as "an integer of at least 1 or null"."""
        phrases = [_phrase(self._type_of_branch(branch), _bounds_of_branch(branch)) for branch in self.branches(node)]
        phrases += ["null"] * self.accepts_null(node)
        separator = ", or " if any("," in phrase or " of " in phrase for phrase in phrases) else " or "
        return separator.join(dict.fromkeys(phrases))

    def choices(self, node: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the values of a node that can be listed: names, `true`, `false` and `null`."""
        choices: list[str] = []
        for branch in self.branches(node):
            choices += map(str, branch.get("enum", [branch["const"]] if "const" in branch else []))
            choices += ["true", "false"] if branch.get("type") == "boolean" else []
        return (*choices, *["null"] * self.accepts_null(node))

    def _type_of_branch(self, branch: Mapping[str, Any]) -> str:
        if "const" in branch:
            return str(branch["const"])
        if "enum" in branch:
            return f"one of {', '.join(map(str, branch['enum']))}"
        if branch.get("type") == "array":
            entries = self.type_in_words(branch.get("items", {}))
            if entries.startswith("one of "):
                return f"list with any of {entries.removeprefix('one of ')}"
            return f"list of {_PLURALS.get(entries, entries)}"
        if "properties" in branch:
            return f"mapping with {', '.join(branch['properties'])}"
        if branch.get("format") == "date-time":
            return "date and time"
        return _TYPES.get(branch.get("type", ""), "anything")


_TYPES = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text", "object": "mapping"}
_ARTICLES = {"integer": "an ", "number": "a ", "list": "a ", "mapping": "a ", "date": "a "}
_PLURALS = {"integer": "integers", "number": "numbers", "text": "texts"}


@cache
def setting_sections() -> tuple[SettingSection, ...]:
    """Return every section of `PipelineConfig` with its settings, the general one first."""
    schema = Schema(PipelineConfig)
    settings: dict[str, list[Setting]] = {}
    descriptions = {GENERAL: "Settings of the whole run. Their names have no section, as in seed=7."}
    for setting, description in _walk(schema, schema.root, ""):
        settings.setdefault(setting.section, []).append(setting)
        descriptions.setdefault(setting.section, description)
    return tuple(SettingSection(name, descriptions[name], tuple(group)) for name, group in settings.items())


def all_settings() -> list[Setting]:
    """Return every setting of `PipelineConfig`, section by section."""
    return [setting for section in setting_sections() for setting in section.settings]


def _walk(schema: Schema, section: Mapping[str, Any], prefix: str) -> Iterator[tuple[Setting, str]]:
    """Yield each setting below a section with the description of its section."""
    below = []
    for key, node in section["properties"].items():
        branches = schema.branches(node)
        if len(branches) == 1 and "properties" in branches[0]:
            below.append((f"{prefix}{key}.", branches[0], node))
        else:
            yield _setting(schema, prefix, key, node), _first_paragraph(section)
    for name, nested, node in below:
        if schema.accepts_null(node):  # a limit: it belongs to the section that names it
            for key, inner in nested["properties"].items():
                about = node["description"] if key in nested["required"] else inner["description"]
                yield _setting(schema, name, key, inner, section=prefix, description=about), _first_paragraph(section)
        else:
            yield from _walk(schema, nested, name)


def _setting(
    schema: Schema,
    prefix: str,
    key: str,
    node: Mapping[str, Any],
    *,
    section: str | None = None,
    description: str | None = None,
) -> Setting:
    return Setting(
        name=f"{prefix}{key}",
        section=(prefix if section is None else section).rstrip(".") or GENERAL,
        type=schema.type_in_words(node),
        bounds=schema.bounds_in_words(node),
        description=node.get("description", "") if description is None else description,
        choices=schema.choices(node),
        default=node.get("default"),
    )


def _first_paragraph(section: Mapping[str, Any]) -> str:
    text = inspect.cleandoc(section.get("description", ""))
    return " ".join(text.partition("\n\n")[0].replace("`", "").split())


def _bounds_of_branch(branch: Mapping[str, Any]) -> str:
    """Return the bounds of one alternative in words."""
    low, high = branch.get("minimum"), branch.get("maximum")
    above, below = branch.get("exclusiveMinimum"), branch.get("exclusiveMaximum")
    if branch.get("type") == "integer":
        low = above + 1 if above is not None else low
        high = below - 1 if below is not None else high
        above = below = None
    if low is not None and high is not None:
        return f"from {low} to {high}"
    parts = [f"at least {low}"] * (low is not None) + [f"above {above}"] * (above is not None)
    parts += [f"at most {high}"] * (high is not None) + [f"below {below}"] * (below is not None)
    if branch.get("type") == "array" and branch.get("minItems"):
        parts.append("at least one entry" if branch["minItems"] == 1 else f"at least {branch['minItems']} entries")
    shortest, longest = branch.get("minLength"), branch.get("maxLength")
    if longest is not None:
        parts.append(_characters(longest) if longest == shortest else f"at most {_characters(longest)}")
    if shortest is not None and shortest != longest:
        parts.append(f"at least {_characters(shortest)}")
    return " and ".join(parts)


def _phrase(name: str, bounds: str) -> str:
    """Return a type and its bounds as part of a sentence."""
    phrase = _ARTICLES.get(name.partition(" ")[0], "") + name
    if name.startswith("list") and bounds:
        return f"{phrase} ({bounds})"
    link = " of " if bounds.startswith(("at", "one", *"0123456789")) else " " if bounds else ""
    return f"{phrase}{link}{bounds}"


def _characters(count: int) -> str:
    return "one character" if count == 1 else f"{count} characters"
