"""The `macrec` command, put together: its help, its commands in the order of the help, and how it ends.

What a person did wrong ends in one line on standard error and exit status 2; Ctrl-C in status 130; only a fault of this
package keeps its traceback. Heavy imports wait until a command needs them, so that `--help` is instant.
"""

import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from macrec_pipeline import __version__
from macrec_pipeline.cli.data_sets import datasets_app, fetch_app
from macrec_pipeline.cli.interface import ui
from macrec_pipeline.cli.models import promote, recommend, rollback
from macrec_pipeline.cli.runs import backtest, evaluate_champion, recommend_all, refresh, run
from macrec_pipeline.errors import MacrecError
from macrec_pipeline.runtime.openmp import spin_briefly
from macrec_pipeline.runtime.text_sanitizing import one_line

INTERRUPTED = 130

app = typer.Typer(
    name="macrec",
    help="From interactions and a multimodal catalogue to a registered generative recommender.",
    epilog=(
        "Examples:\n\n"
        "`macrec run demo` — the whole pipeline on a built-in shop\n\n"
        "`macrec run movielens-100k --data ~/data --set recommender.num_epochs=5 --set seed=7`\n\n"
        "`macrec refresh demo` — new interactions: items keep their IDs, training goes on from the last weights\n\n"
        "`macrec recommend --model models:/macrec-demo@champion --history P0001,P0042 -k 10`\n\n"
        "`macrec recommend-all demo` — what every user is recommended, as parquet files\n\n"
        "`macrec datasets validate` — which data sets are ready to run\n\n"
        "`macrec promote demo` — the challenger becomes the champion; `macrec rollback demo` takes it back\n\n"
        "`macrec evaluate-champion demo` — what the champion is worth on the newest data\n\n"
        "`macrec ui` — the Dagster and MLflow UIs, with those very runs"
    ),
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(datasets_app, name="datasets")
app.add_typer(fetch_app, name="fetch")
for _command in (run, refresh, backtest, recommend, recommend_all, evaluate_champion, promote, rollback, ui):
    app.command()(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
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
    """Entry point of the `macrec` command."""
    spin_briefly()
    try:
        status = app(arguments, prog_name="macrec", standalone_mode=False)
    except MacrecError as error:
        status = _complain(str(error), 2)
    except typer.TyperException as error:
        status = _complain(f"{error.format_message()} See `macrec --help`.", 2)
    except typer.Abort:
        status = INTERRUPTED
    if status == INTERRUPTED:
        _complain("Interrupted. What is finished is kept.", INTERRUPTED)
    raise SystemExit(status or 0)


def _complain(message: str, status: int) -> int:
    print(f"macrec: {' '.join(one_line(message).split())}", file=sys.stderr)
    return status
