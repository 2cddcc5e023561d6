"""The pages of the reference that are generated from the code: settings, commands, tables, HTTP and Python."""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import typer

from macrec_pipeline import schemas
from macrec_pipeline.cli.application import app
from macrec_pipeline.config.reference import setting_sections
from macrec_pipeline.schemas import TableSchema
from macrec_pipeline.serving.app import create_app
from macrec_pipeline.serving.settings import ServiceSettings

if TYPE_CHECKING:
    from macrec_pipeline.serving.champion import Champion

PYTHON_API = (
    "macrec_pipeline.data.readers.reader",
    "macrec_pipeline.recommender.bundle.bundle",
    "macrec_pipeline.recommender.retrieval.retriever",
    "macrec_pipeline.recommender.retrieval.eligible_items",
    "macrec_pipeline.semantic_ids.cross_modal",
    "macrec_pipeline.evaluation.metrics",
    "macrec_pipeline.evaluation.statistics",
)
"""The modules that code outside this repository can build on."""


def pages() -> dict[str, str]:
    """Return the generated pages: file name without folder -> Markdown."""
    generators: dict[str, Callable[[], Iterator[str]]] = {
        "settings": _settings,
        "commands": _commands,
        "tables": _tables,
        "http": _http,
        "python": _python,
    }
    return {f"{name}.md": "\n".join(lines()) + "\n" for name, lines in generators.items()}


def _settings() -> Iterator[str]:
    yield "# Settings"
    yield "\nA setting has a default. The preset of a data set, the data set's file and `--set` override it, in this"
    yield "order. `macrec settings DATASET` shows the values of a data set and where each one comes from.\n"
    for section in setting_sections():
        yield f"\n## {section.name}\n\n{_text(section.description)}\n"
        yield "| setting | type and limits | default | what it does |\n|---|---|---|---|"
        for setting in section.settings:
            limits = f"{setting.type}, {setting.bounds}" if setting.bounds else setting.type
            yield _row(f"`{setting.name}`", limits, f"`{json.dumps(setting.default)}`", setting.description)


def _commands() -> Iterator[str]:
    yield "# Commands"
    yield "\nEvery command explains itself with `--help`. Exit status 0 is success, 2 is a mistake of the user or a"
    yield "failed run, and 130 is an interruption by Ctrl-C."
    for path, command in _walk_commands(typer.main.get_command(app), ("macrec",)):
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        options = [each for each in command.params if each.param_type_name == "option" and each.name != "help"]
        words = [_shown(each) if each.required else f"[{_shown(each)}]" for each in arguments]
        usage = " ".join([*path, *["[OPTIONS]"] * bool(options), *words])
        yield f"\n## {' '.join(path)}\n\n```text\n{usage}\n```\n\n{inspect.cleandoc(command.help or '')}\n"
        if any(each.help for each in (*arguments, *options)):
            yield "| argument or option | meaning |\n|---|---|"
            for each in (*arguments, *options):
                yield _row(f"`{_shown(each)}`", each.help or "")


def _shown(parameter: Any) -> str:
    """Return an argument or option as a person writes it: "DATASET", "--set NAME=VALUE"."""
    metavar = parameter.metavar if parameter.metavar is not None else parameter.name.upper()
    if parameter.param_type_name == "argument":
        return str(metavar)
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag or not metavar else f"{names} {metavar}"


def _walk_commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "commands"):
        for name in sorted(command.commands):
            yield from _walk_commands(command.commands[name], (*path, name))
    else:
        yield path, command


def _tables() -> Iterator[str]:
    yield "# Tables"
    yield "\nEvery Parquet table of the pipeline is checked against its schema at each write and each read. Times are"
    yield "milliseconds since 1970 in UTC. A column that can hold nulls says so."
    for schema in _schemas():
        yield f"\n## {schema.name}\n\n{_text(schema.description)}\n"
        yield "| column | dtype | what it holds |\n|---|---|---|"
        optional = {name: column.dtype for name, column in schema.optional.items()}
        about = {**schema.column_descriptions, **{name: each.description for name, each in schema.optional.items()}}
        for name, dtype in (schema.columns | optional).items():
            nullable = name in schema.nullable or name in optional
            yield _row(f"`{name}`", f"{dtype}{', or null' * nullable}", about.get(name, ""))


def _schemas() -> list[TableSchema]:
    return [each for each in vars(schemas).values() if isinstance(each, TableSchema)]


def _http() -> Iterator[str]:
    service = create_app(cast("Champion", None), ServiceSettings())  # describing the endpoints needs no model
    document: Mapping[str, Any] = service.openapi()
    yield "# HTTP\n"
    yield "`macrec serve DATASET` answers these requests. [Serving](../docs/serving.md) has a walk-through with curl."
    yield "The service itself describes them at `/openapi.json`."
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            about = inspect.cleandoc(operation.get("description") or operation["summary"])
            yield f"\n## {method.upper()} {path}\n\n{about}\n"
            yield "| status | meaning |\n|---|---|"
            for status, response in operation["responses"].items():
                yield _row(status, response["description"])
    for name, schema in document["components"]["schemas"].items():
        yield f"\n## {name}\n\n{_text(schema.get('description', ''))}\n"
        if "properties" in schema:
            yield "| field | what it holds |\n|---|---|"
            for field, node in schema["properties"].items():
                yield _row(f"`{field}`", node.get("description") or node.get("title", ""))


def _python() -> Iterator[str]:
    yield "# Python\n"
    yield "A consumer of the registered model needs MLflow only ([serving](../docs/serving.md)). The modules below are"
    yield "what other code can build on."
    for module in PYTHON_API:
        yield f"\n## {module.removeprefix('macrec_pipeline.')}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```"


def _row(*cells: str) -> str:
    return f"| {' | '.join(_text(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _text(text: str) -> str:
    return " ".join(str(text).split())
