"""The `macrec` command as a whole: its help, the order of its commands, and its exit status.

A mistake of the user ends in one line on standard error and exit status 2, and Ctrl-C in status 130. Only a bug in this
package prints a traceback. Modules that import slowly are imported inside the commands, so that `--help` is instant.
"""

import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from macrec_pipeline import __version__
from macrec_pipeline.cli.datasets import datasets_app, fetch_app
from macrec_pipeline.cli.help_formatting import Command, Group
from macrec_pipeline.cli.models import promote, recommend, rollback, similar
from macrec_pipeline.cli.runs import backtest, evaluate_champion, prune, recommend_all, refresh, run
from macrec_pipeline.cli.serve import serve
from macrec_pipeline.cli.settings import settings
from macrec_pipeline.cli.ui import ui
from macrec_pipeline.errors import MacrecError, did_you_mean
from macrec_pipeline.runtime.openmp import spin_briefly
from macrec_pipeline.runtime.secret_addresses import without_secrets
from macrec_pipeline.runtime.text_sanitizing import one_line

WRONG_USE, INTERRUPTED = 2, 130

app = typer.Typer(
    name="macrec",
    cls=Group,
    help="Train a generative recommender from your interaction log and catalogue, evaluate it, and register it.",
    epilog=(
        "Examples:\n\n"
        "- `macrec run demo`: the whole pipeline on a generated shop, in about four minutes\n"
        "- `macrec settings demo`: every setting of a data set, and where its value comes from\n"
        "- `macrec run demo --set recommender.num_epochs=5`: the same with a setting changed\n"
        "- `macrec recommend --model models:/macrec-demo@champion --history P0001,P0042`\n"
        "- `macrec refresh demo`: update the model after new interactions\n"
        "- `macrec ui`: the Dagster and MLflow UIs with these runs\n\n"
        "`macrec COMMAND --help` explains a command and its options."
    ),
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_PANELS = {
    "Run the pipeline": (run, refresh, backtest),
    "Use a model": (recommend, similar, recommend_all, serve, evaluate_champion, promote, rollback),
    "Inspect and prepare": (settings, ui, prune),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(cls=Command, rich_help_panel=_panel)(_command)
app.add_typer(datasets_app, name="datasets", rich_help_panel="Inspect and prepare")
app.add_typer(fetch_app, name="fetch", rich_help_panel="Inspect and prepare")


def _print_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"macrec {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the `macrec` command and exits.

    Args:
        arguments: the words after `macrec`; those of this process by default.

    Raises:
        SystemExit: always. Status 0 is success, 2 a mistake of the user or a failed run, 130 Ctrl-C.
    """
    spin_briefly()
    try:
        status = app(arguments, prog_name="macrec", standalone_mode=False)
    except MacrecError as error:
        status = _report(str(error), WRONG_USE)
    except typer.TyperException as error:
        status = _report(_usage_message(error), WRONG_USE)
    except typer.Abort:
        status = INTERRUPTED
    if status == INTERRUPTED:
        _report("Interrupted. Finished work is kept.", INTERRUPTED)
    raise SystemExit(status or 0)


def _usage_message(error: typer.TyperException) -> str:
    """Return what is wrong with the command line and which help to read."""
    detail: Any = error  # the attributes below depend on the kind of error
    message = error.format_message()
    if hasattr(detail, "possibilities"):
        name = detail.option_name
        message = f"There is no option {name}.{did_you_mean(name, detail.possibilities or ())}"
    context = getattr(detail, "ctx", None)
    return f"{message} See `{context.command_path if context else 'macrec'} --help`."


def _report(message: str, status: int) -> int:
    print(f"macrec: {' '.join(one_line(without_secrets(message)).split())}", file=sys.stderr)
    return status
