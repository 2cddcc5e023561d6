"""The commands about data sets: `macrec datasets` and `macrec fetch`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from macrec_pipeline.cli.options import DEFAULT_DATA, DataOption
from macrec_pipeline.datasets import DatasetSpec, dataset_names, datasets_folder, load_dataset
from macrec_pipeline.errors import ConfigError, MissingFileError
from macrec_pipeline.terminal import console, failures_table

datasets_app = typer.Typer(help="The data sets that there are: list them, or check whether they are ready to run.")
fetch_app = typer.Typer(help="Load into the data folder what a data set names but does not hold.")


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
    from macrec_pipeline.data.readers.registry import validate_source

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
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Addresses may lead to this machine and into private networks.")
    ] = False,
) -> None:
    """Load the pictures of a data set by their addresses; what is there already is not loaded again.

    Ctrl-C is safe: the same command goes on. A parquet file says which pictures failed, and why.
    """
    from macrec_pipeline.data.images.addresses import image_addresses, image_template_of
    from macrec_pipeline.data.images.downloads import FetchLimits
    from macrec_pipeline.data.images.fetch import fetch_images
    from macrec_pipeline.runtime.progress import TerminalProgress

    spec = load_dataset(dataset)
    template = image_template_of(spec)
    require_files(spec, data.resolve())
    addresses = image_addresses(spec, data.resolve(), everything=everything)
    limits = FetchLimits(
        concurrency=concurrency,
        timeout=timeout,
        attempts=attempts,
        max_bytes=int(max_megabytes * 1e6),
        max_pixels=spec.config().image_encoder.max_pixels,
        allow_private=allow_private,
    )
    progress = TerminalProgress(interactive=sys.stderr.isatty())
    try:
        report = fetch_images(addresses, template, data.resolve(), limits, progress)
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


def require_files(spec: DatasetSpec, data: Path) -> None:
    """Raise `MissingFileError` with all that a data set lacks, before anything is started."""
    from macrec_pipeline.data.readers.registry import validate_source

    problems = validate_source(spec, data)
    if problems:
        raise MissingFileError(f"{spec.name} is not ready: {' '.join(problems)}")
