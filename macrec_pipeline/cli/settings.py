"""The command that explains settings: `macrec settings`."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.table import Table

from macrec_pipeline.cli.completion import complete_assignment, complete_dataset, complete_settings_argument
from macrec_pipeline.config.reference import GENERAL, all_settings, setting_sections
from macrec_pipeline.datasets import dataset_names, load_dataset
from macrec_pipeline.errors import ConfigError, did_you_mean, similar_names
from macrec_pipeline.presets import ResolvedSetting, SettingsLayer, parse_overrides, resolve_with_sources
from macrec_pipeline.terminal import console

_COMMAND_LINE = "--set"
_MAX_WIDTH = 100
_NEXT_STEPS = """\
To see more:
  macrec settings recommender        the settings of a section, explained
  macrec settings demo               every setting as a data set resolves it
  macrec settings demo recommender   both: a section, as a data set resolves it
  macrec settings demo --set seed=7  a change, before running with it"""


def settings(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SECTION|DATASET",
            autocompletion=complete_settings_argument,
            help="A section (recommender), a setting (seed), a data set, or a data set and any number of the others. "
            "Without arguments: the list of sections.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="DATASET",
            autocompletion=complete_dataset,
            help="Data set whose values to show, if its name is also that of a section.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            autocompletion=complete_assignment,
            help="A change to check before running with it, as in recommender.num_epochs=5. Repeat for more.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Explain the settings: what they do, their values, and where each value comes from.

    An asterisk marks a value that differs from the default.

    Examples:

    - `macrec settings`: the sections
    - `macrec settings recommender`: the settings of one section, explained
    - `macrec settings demo`: every setting, as the data set demo resolves it
    - `macrec settings demo recommender --set recommender.num_epochs=5`: a change, before running with it
    """
    request = _parse_request(names or [], dataset)
    layers = [SettingsLayer(_COMMAND_LINE, parse_overrides(overrides or []))]
    preset = "default"
    if request.dataset is not None:
        spec = load_dataset(request.dataset)
        preset, layers = spec.preset, [*spec.layers(), *layers]
    resolved = resolve_with_sources(preset, layers)
    if request.names:
        chosen = [each for each in resolved if any(_is_within(each, name) for name in request.names)]
    elif overrides and request.dataset is None:
        chosen = [each for each in resolved if each.source == _COMMAND_LINE]
    else:
        chosen = resolved
    if as_json:
        document = {"dataset": request.dataset, "preset": preset, "settings": [_as_json(each) for each in chosen]}
        typer.echo(json.dumps(document, indent=2))
    elif request.names or (overrides and request.dataset is None):
        _print_explained(chosen)
    elif request.dataset is not None:
        _print_values(chosen, dataset=request.dataset, preset=preset)
    else:
        _print_sections()


@dataclass(frozen=True)
class _Request:
    """What to show: the values of a data set, sections or single settings, or both."""

    dataset: str | None
    names: tuple[str, ...]


def _parse_request(arguments: Sequence[str], dataset: str | None) -> _Request:
    """Tell sections and settings from the name of a data set; a name that is both means the section."""
    resolved = resolve_with_sources("default")
    names: list[str] = []
    for argument in arguments:
        if any(_is_within(each, argument) for each in resolved):
            names.append(argument)
        elif argument not in dataset_names():
            raise ConfigError(
                f"There is no section, setting or data set `{argument}`.{_suggestion(argument)} Run `macrec settings` "
                "to list the sections and `macrec datasets` to list the data sets."
            )
        elif dataset not in (None, argument):
            raise ConfigError(f"Give one data set only, not both `{dataset}` and `{argument}`.")
        else:
            dataset = argument
    return _Request(dataset, tuple(names))


def _suggestion(argument: str) -> str:
    """Return what an unknown argument may stand for: settings of its section if it has one, else any name."""
    sections = [each.name for each in setting_sections()]
    section, _, key = argument.rpartition(".")
    siblings = [each.name for each in all_settings() if each.section == (section or GENERAL)]
    if section and siblings:
        keys = [name.removeprefix(f"{section}.") for name in (*siblings, *sections) if name.startswith(f"{section}.")]
        return did_you_mean(argument, (), also=[f"{section}.{name}" for name in similar_names(key, keys)])
    return did_you_mean(argument, [*sections, *siblings, *dataset_names()])


def _is_within(resolved: ResolvedSetting, name: str) -> bool:
    """Return whether `name` is the setting itself or a section around it."""
    setting = resolved.setting
    return name in (setting.name, setting.section) or setting.name.startswith(f"{name}.")


def _as_json(resolved: ResolvedSetting) -> dict[str, Any]:
    setting = resolved.setting
    return {
        "name": setting.name,
        "section": setting.section,
        "type": setting.type,
        "bounds": setting.bounds,
        "choices": list(setting.choices),
        "default": resolved.default,
        "value": resolved.value,
        "source": resolved.source,
        "differs_from_default": resolved.is_changed,
        "description": setting.description,
    }


def _print_sections() -> None:
    table = Table("section", "settings", "what it controls", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for section in setting_sections():
        table.add_row(section.name, str(len(section.settings)), section.description)
    out = console()
    out.print(table, highlight=False, width=min(out.width, _MAX_WIDTH))
    count = sum(len(section.settings) for section in setting_sections())
    out.print(f"\n{count} settings in {table.row_count} sections. {_NEXT_STEPS}", highlight=False, markup=False)


def _print_explained(chosen: Sequence[ResolvedSetting]) -> None:
    """Print each setting with its type, bounds, default, source and description, section by section."""
    descriptions = {section.name: section.description for section in setting_sections()}
    shown = None
    for resolved in chosen:
        setting = resolved.setting
        if setting.section != shown:
            shown = setting.section
            _print_lines(f"{shown}: {descriptions[shown]}", hanging=2, style="bold")
            _print_lines("")
        details = [f"{setting.type}, {setting.bounds}" if setting.bounds else setting.type]
        details += [f"default: {_written(resolved.default)}", f"source: {resolved.source}"]
        _print_lines(_assignment(resolved, setting.name), style="bold" if resolved.is_changed else None)
        _print_lines("; ".join(details), indent=6)
        _print_lines(setting.description, indent=6)
        _print_lines("")
    if any(resolved.is_changed for resolved in chosen):
        _print_lines("* differs from the default")


def _print_values(chosen: Sequence[ResolvedSetting], *, dataset: str, preset: str) -> None:
    """Print one line per setting: its value, and its default and source where they differ from the usual ones."""
    changed = sum(resolved.is_changed for resolved in chosen)
    _print_lines(f"Settings of the data set {dataset}, preset {preset}")
    _print_lines(f"{changed} of {len(chosen)} settings differ from the default; they are marked with *.")
    shown = None
    for resolved in chosen:
        setting = resolved.setting
        if setting.section != shown:
            shown = setting.section
            _print_lines("")
            _print_lines(shown, style="bold")
        notes = [f"default: {_written(resolved.default)}"] if resolved.is_changed else []
        notes += [resolved.source] if resolved.source != "default preset" else []
        line = _assignment(resolved, setting.name.removeprefix(f"{setting.section}."))
        note = f"  ({'; '.join(notes)})" if notes else ""
        _print_lines(line + note, style="bold" if resolved.is_changed else None)
    _print_lines("")
    _print_lines("For types, bounds and descriptions, add a section, for example:")
    _print_lines(f"  macrec settings {dataset} recommender")


def _assignment(resolved: ResolvedSetting, name: str) -> str:
    return f"{'*' if resolved.is_changed else ' '} {name} = {_written(resolved.value)}"


def _written(value: Any) -> str:
    """Return a value as `--set` and a data set file take it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value)


def _print_lines(text: str, *, indent: int = 0, hanging: int = 6, style: str | None = None) -> None:
    """Print a paragraph, wrapped between words at the width of the terminal.

    Args:
        indent: spaces before the first line.
        hanging: spaces before the other lines.
        style: style of rich, as in "bold".
    """
    out = console()
    lines = textwrap.wrap(
        text,
        width=min(out.width, _MAX_WIDTH),
        initial_indent=" " * indent,
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines or [""]:
        out.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
