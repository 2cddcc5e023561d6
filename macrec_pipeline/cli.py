"""The `macrec` command: run the pipeline, look at data sets, open the UIs, ask a registered model.

What a person did wrong ends in one line on standard error and exit status 2; Ctrl-C in status 130; only a fault of this
package keeps its traceback. Heavy imports wait until a command needs them, so that `--help` is instant.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from macrec_pipeline import __version__
from macrec_pipeline.datasets import DatasetSpec, dataset_names, datasets_folder, load_dataset
from macrec_pipeline.errors import ConfigError, MacrecError, MissingFileError
from macrec_pipeline.presets import parse_overrides
from macrec_pipeline.terminal import (
    WIDE,
    answer_table,
    champion_lines,
    console,
    decision_lines,
    failures_table,
    history_lines,
    metrics_table,
    quieten_libraries,
    show_finished_assets,
)

if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130
MEASURED = ("evaluation_report", "registered_model")  # after these the metrics are those of this run

app = typer.Typer(
    name="macrec",
    help="From interactions and a multimodal catalogue to a registered generative recommender.",
    epilog=(
        "Examples:\n\n"
        "`macrec run demo` — the whole pipeline on a built-in shop\n\n"
        "`macrec run movielens-100k --data ~/data --set recommender.num_epochs=5 --set seed=7`\n\n"
        "`macrec recommend --model models:/macrec-demo@champion --history P0001,P0042 -k 10`\n\n"
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
datasets_app = typer.Typer(help="The data sets that there are: list them, or check whether they are ready to run.")
app.add_typer(datasets_app, name="datasets")
fetch_app = typer.Typer(help="Load into the data folder what a data set names but does not hold.")
app.add_typer(fetch_app, name="fetch")

HomeOption = Annotated[
    Path, typer.Option("--home", metavar="DIR", envvar="MACREC_HOME", help="Folder of all state: tables, models, runs.")
]
DataOption = Annotated[
    Path,
    typer.Option("--data", metavar="DIR", envvar="MACREC_DATA", help="Folder that data set files are relative to."),
]
DEFAULT_HOME, DEFAULT_DATA = Path(".macrec"), Path("data")


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


@app.command()
def run(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A data set of `macrec datasets`.")],
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Override a setting; may be repeated."),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="ASSET", help="Run this asset and all that it is made from.")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="ASSET", help="Run this asset alone, on what is there already.")
    ] = None,
) -> None:
    """Run the pipeline on one data set, then show its metrics and where everything is.

    Example: `macrec run demo --set recommender.num_epochs=3`
    """
    if until and only:
        raise ConfigError("--until and --only cannot go together.")
    spec = load_dataset(dataset)
    spec.config(parse_overrides(settings or []))
    if not only:
        _require_files(spec, data.resolve())
    quieten_libraries()
    show_finished_assets()
    from macrec_pipeline.definitions import defs
    from macrec_pipeline.defs.launch import LaunchRequest, launch

    request = LaunchRequest(
        dataset, home.resolve(), data.resolve(), overrides=tuple(settings or ()), until=until, only=only
    )
    launch(request, defs=defs)
    _show_results(dataset, request.home, measured=(only or until or MEASURED[-1]) in MEASURED)


@datasets_app.callback(invoke_without_command=True)
def _datasets(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_datasets()


@datasets_app.command("list")
def list_datasets() -> None:
    """List the data sets: one YAML file each, one partition of every asset."""
    table = Table("data set", "what it is", "reader", "preset", box=None, pad_edge=False)
    for name in dataset_names():
        spec = load_dataset(name)
        table.add_row(name, escape(spec.title), spec.source.reader, spec.preset)
    out = console()
    out.print(table)
    out.print(f"\n{table.row_count} data sets in {escape(str(datasets_folder()))}", highlight=False)


@datasets_app.command("validate")
def validate_datasets(
    names: Annotated[list[str] | None, typer.Argument(metavar="[DATASET]...", help="Default: all of them.")] = None,
    data: DataOption = DEFAULT_DATA,
) -> int:
    """Check the YAML files and whether the files that they name are there, with the columns that they name."""
    from macrec_pipeline.data.readers import validate_source

    out = console()
    broken = 0
    for name in names or dataset_names():
        try:
            problems = validate_source(load_dataset(name), data.resolve())
        except ConfigError as error:
            problems = [str(error)]
        broken += bool(problems)
        out.print(f"{name}: {'ready' if not problems else ''}", highlight=False)
        for problem in problems:
            out.print(f"  - {escape(problem)}", highlight=False)
    return 2 if broken else 0


@fetch_app.command("images")
def fetch_images(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A data set whose source names addresses.")],
    data: DataOption = DEFAULT_DATA,
    everything: Annotated[
        bool, typer.Option("--all", help="Every item of the catalogue, not only those that cleaning leaves.")
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Addresses at once.")] = 16,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds of one attempt, to its last byte.")] = 30,
    attempts: Annotated[int, typer.Option(min=1, max=20, help="Attempts a picture, with growing waits.")] = 4,
    max_megabytes: Annotated[float, typer.Option(min=0.1, help="A larger picture is refused.")] = 20,
) -> None:
    """Load the pictures of a data set by their addresses; what is there already is not loaded again.

    Ctrl-C is safe: the same command goes on. A parquet file says which pictures failed, and why.
    """
    from macrec_pipeline.data.downloads import FetchLimits
    from macrec_pipeline.data.fetch import fetch_pictures
    from macrec_pipeline.data.picture_addresses import picture_addresses, picture_template
    from macrec_pipeline.runtime.progress import TerminalProgress

    spec = load_dataset(dataset)
    template = picture_template(spec)
    _require_files(spec, data.resolve())
    addresses = picture_addresses(spec, data.resolve(), everything=everything)
    limits = FetchLimits(
        concurrency=concurrency,
        timeout=timeout,
        attempts=attempts,
        max_bytes=int(max_megabytes * 1e6),
        max_pixels=spec.config().image_encoder.max_pixels,
    )
    progress = TerminalProgress(interactive=sys.stderr.isatty())
    try:
        report = fetch_pictures(addresses, template, data.resolve(), limits, progress)
    finally:
        progress.close()
    out = console()
    out.print(
        f"{addresses.height:,} items: {report.present:,} pictures were there, {report.fetched:,} are new, "
        f"{len(report.failures):,} failed, {report.without_url:,} items have no address.",
        highlight=False,
    )
    out.print(failures_table(report.failures))
    out.print(f"failures          {escape(str(report.failures_table))}", highlight=False, soft_wrap=True)


@app.command()
def recommend(
    model: Annotated[str, typer.Option("--model", help="A registered model, as in models:/macrec-demo@champion.")],
    history: Annotated[str, typer.Option("--history", help="Item ids, oldest first, separated by commas.")],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many items.")] = 10,
    route: Annotated[
        Literal["fused", "text", "image", "collaborative"],
        typer.Option("--route", help="All routes fused, or one alone; collaborative where the model has that route."),
    ] = "fused",
    exclude_seen: Annotated[bool, typer.Option("--exclude-seen", help="Leave out what is in the history.")] = False,
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Ask a registered model what comes next.

    Example: `macrec recommend --model models:/macrec-demo@champion --history P0001,P0042 -k 5`
    """
    quieten_libraries()
    from macrec_pipeline.tracking import load_model

    item_ids = [part.strip() for part in history.split(",") if part.strip()]
    loaded: Any = load_model(model, home.resolve())
    bundle = loaded.unwrap_python_model().bundle
    answer = bundle.recommend_ids([item_ids], k=k, route=route, exclude_seen=exclude_seen)[0]
    catalogue = dict(zip(bundle.item_ids, bundle.catalogue, strict=True))
    out = console()
    out.print(history_lines(item_ids, catalogue))
    if answer.fallback != "none":
        out.print("Nothing of it is known to the model, so these are its most popular items.")
    out.print(answer_table(answer, catalogue, data=data.resolve()))


@app.command()
def promote(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Whose registered model, macrec-DATASET.")],
    version: Annotated[int | None, typer.Option("--version", min=1, help="Default: the challenger.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Kept on the version, for those who ask later.")] = "",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Make a version the champion, which services load from their next start on.

    Example: `macrec promote demo --version 3 --reason "better on the spring users"`
    """
    quieten_libraries()
    from macrec_pipeline.tracking import open_tracking

    decision = open_tracking(home.resolve(), create=False).promote(dataset, version=version, reason=reason)
    console().print(decision_lines(decision, take_back=f"macrec rollback {dataset}"))


@app.command()
def rollback(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Whose registered model, macrec-DATASET.")],
    reason: Annotated[str, typer.Option("--reason", help="Kept on the version, for those who ask later.")] = "",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Make the champion before the present one the champion again; once more goes to the one before that.

    Example: `macrec rollback demo --reason "empty answers since noon"`
    """
    quieten_libraries()
    from macrec_pipeline.tracking import open_tracking

    decision = open_tracking(home.resolve(), create=False).rollback(dataset, reason=reason)
    before = decision.before
    console().print(
        decision_lines(decision, take_back=f"macrec promote {dataset} --version {before.version if before else 'N'}")
    )


@app.command("evaluate-champion")
def evaluate_champion(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Whose champion, macrec-DATASET@champion.")],
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Read the newest files and say what the champion is worth on them, beside the most popular items.

    Nothing is trained or promoted. Example: `macrec evaluate-champion demo`
    """
    spec = load_dataset(dataset)
    _require_files(spec, data.resolve())
    quieten_libraries()
    show_finished_assets()
    from macrec_pipeline.definitions import defs
    from macrec_pipeline.defs.jobs import EVALUATE_CHAMPION
    from macrec_pipeline.defs.launch import LaunchRequest, launch

    request = LaunchRequest(dataset, home.resolve(), data.resolve(), job=EVALUATE_CHAMPION)
    launch(request, defs=defs)
    path = request.home / dataset / "champion_evaluation" / "evaluation.json"
    console().print(champion_lines(dataset, json.loads(path.read_text(encoding="utf-8"))), highlight=False)


@app.command()
def ui(
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Of the Dagster UI.")] = 3000,
    mlflow_port: Annotated[int, typer.Option("--mlflow-port", min=1, max=65535, help="Of the MLflow UI.")] = 5000,
) -> None:
    """Open the Dagster UI and the MLflow UI on this machine, until Ctrl-C."""
    quieten_libraries()
    from macrec_pipeline.defs.abandoned_runs import close_abandoned_runs, close_runs_of_a_stopped_ui
    from macrec_pipeline.defs.launch import open_instance
    from macrec_pipeline.defs.local_servers import local_plans, serving, wait_for_the_end

    signal.signal(signal.SIGTERM, _interrupt)
    started = datetime.now(UTC)
    out = console()
    out.print("Starting; this takes some ten seconds.")
    plans = local_plans(home.resolve(), data.resolve(), port=port, mlflow_port=mlflow_port)
    with open_instance(home.resolve()) as instance:
        close_abandoned_runs(instance, home.resolve())
    with serving(plans, logs=home.resolve() / "logs") as servers, suppress(KeyboardInterrupt):
        for server in servers:
            out.print(f"{server.name:<8} {server.url}   (log: {escape(str(server.log))})", highlight=False)
        out.print('MLflow opens in its GenAI view: choose "Model training" at the top left to see the runs.')
        out.print("Ctrl-C ends both.")
        try:
            wait_for_the_end(servers)
        finally:  # a second signal must not cut the ending short and leave servers or runs behind
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
    with open_instance(home.resolve()) as instance:
        for run_id in close_runs_of_a_stopped_ui(instance, home.resolve(), started=started):
            out.print(f"The run {run_id} was still at work and is canceled.", highlight=False)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `macrec` command."""
    # OpenMP's threads spin for long while they wait, which takes the processor from those that work as soon as
    # anything else runs: with four busy processes on two cores training then takes three times as long. Not to spin
    # at all (OMP_WAIT_POLICY=PASSIVE) doubles it on a quiet machine. OpenMP reads this when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
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
    print(f"macrec: {' '.join(message.split())}", file=sys.stderr)
    return status


def _interrupt(_signal: int, _frame: "FrameType | None") -> NoReturn:
    raise KeyboardInterrupt


def _require_files(spec: DatasetSpec, data: Path) -> None:
    from macrec_pipeline.data.readers import validate_source

    problems = validate_source(spec, data)
    if problems:
        raise MissingFileError(f"{spec.name} is not ready: {' '.join(problems)}")


def _show_results(dataset: str, home: Path, *, measured: bool) -> None:
    from macrec_pipeline.tracking.store import tracking_uri

    out = console()
    folder = home / dataset
    metrics, report = folder / "evaluation_report" / "metrics.json", folder / "evaluation_report" / "report.html"
    registration = folder / "registered_model" / "registration.json"
    if measured:
        document = json.loads(metrics.read_text(encoding="utf-8"))
        out.print(metrics_table(document, with_intervals=out.width >= WIDE))
        out.print(f"report            {escape(str(report))}", highlight=False, soft_wrap=True)
    out.print(f"tables, models    {escape(str(folder))}", highlight=False, soft_wrap=True)
    out.print(f"MLflow store      {escape(tracking_uri(home))}", highlight=False, soft_wrap=True)
    if registration.is_file():
        version = json.loads(registration.read_text(encoding="utf-8"))
        aliases = ", ".join(f"@{alias}" for alias in version["aliases"])
        out.print(f"registered model  {escape(version['uri'])} ({aliases})", highlight=False, soft_wrap=True)
        if "decision" in version:
            out.print(f"promotion         {escape(version['decision'])}", highlight=False, soft_wrap=True)
    out.print("Look at all of it with `macrec ui`.", highlight=False)


if __name__ == "__main__":
    main()
