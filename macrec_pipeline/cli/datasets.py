"""The commands about data sets: `macrec datasets` and `macrec fetch`."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from macrec_pipeline.cli.completion import complete_dataset
from macrec_pipeline.cli.help_formatting import Command, Group
from macrec_pipeline.cli.options import DEFAULT_DATA, DataOption
from macrec_pipeline.datasets import DatasetSpec, dataset_names, datasets_folder, load_dataset
from macrec_pipeline.errors import ConfigError, DataError, MissingFileError
from macrec_pipeline.terminal import console, failures_table

datasets_app = typer.Typer(cls=Group, help="List the data sets, or check that they are ready to run.")
fetch_app = typer.Typer(cls=Group, help="Download files that a data set refers to by URL.")


@datasets_app.callback(invoke_without_command=True)
def _datasets(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_datasets()


@datasets_app.command("list", cls=Command)
def list_datasets() -> None:
    """List the data sets, one per YAML file in the folder of data sets."""
    table = Table("data set", "title", "reader", "preset", box=None, pad_edge=False)
    for name in dataset_names():
        spec = load_dataset(name)
        table.add_row(name, escape(spec.title), spec.reader_name, spec.preset)
    out = console()
    out.print(table)
    out.print(f"\n{table.row_count} data sets in {escape(str(datasets_folder()))}", highlight=False)


@datasets_app.command("validate", cls=Command)
def validate_datasets(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATASET",
            autocompletion=complete_dataset,
            help="Data sets to check.",
            show_default="all of them",
        ),
    ] = None,
    data: DataOption = DEFAULT_DATA,
) -> int:
    """Check that data sets are ready to run, and show how the first rows of each of their files are understood.

    Without names, all data sets are checked, and only what is unusual is shown. The exit status is 2 if one is not
    ready.
    """
    from macrec_pipeline.cli.source_page import source_page, source_warnings
    from macrec_pipeline.data.readers.registry import validate_source
    from macrec_pipeline.data.readers.source_preview import SourcePreview, preview_source

    out = console()
    num_broken = 0
    for name in names or dataset_names():
        preview: SourcePreview | None = None
        try:
            spec = load_dataset(name)
            problems = validate_source(spec, data.resolve())
            if not problems:
                preview = preview_source(spec, data.resolve())
                problems = list(preview.problems)
        except (ConfigError, DataError) as error:
            problems = [str(error)]
        num_broken += bool(problems)
        out.print(f"{name}: {'not ready' if problems else 'ready'}", highlight=False)
        for problem in problems:
            out.print(f"  - {escape(problem)}", highlight=False)
        if preview is None:
            continue
        if not names:
            for warning in source_warnings(preview, data.resolve()):
                out.print(f"  - {escape(warning)}", highlight=False)
        elif preview.interactions.height + preview.items.height:
            out.print(source_page(preview, data.resolve()), highlight=False)
    if not names:
        out.print("`macrec datasets validate NAME` shows how the first rows of a data set are understood.")
    return 2 if num_broken else 0


@datasets_app.command("new", cls=Command)
def new_dataset(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the new data set: lower-case letters, digits and hyphens.")
    ],
    files: Annotated[
        list[Path],
        typer.Option(
            "--from", metavar="FILE", help="A file of the log or of the catalogue; give the option once per file."
        ),
    ],
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Look at files and write a first data set file with guessed columns, each with a comment, for you to correct.

    Example: `macrec datasets new shop --from shop/orders.csv --from shop/catalogue.csv`
    """
    from macrec_pipeline.data.readers.guessing import guess_dataset, sample_table

    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise ConfigError(f"The name {name!r} must consist of lower-case letters, digits and hyphens, as in my-shop.")
    path = datasets_folder() / f"{name}.yaml"
    if path.exists():
        raise ConfigError(f"{path} exists already. Choose another name, or remove the file first.")
    text = guess_dataset(name, [sample_table(file, data.resolve()) for file in files])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    out = console()
    out.print(escape(text), highlight=False, soft_wrap=True)
    out.print(
        f"Written to {escape(str(path))}. Correct it, then run `macrec datasets validate {name}`.", highlight=False
    )


@fetch_app.command("images", cls=Command)
def fetch_images(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            autocompletion=complete_dataset,
            help="A data set whose items have image URLs.",
        ),
    ],
    data: DataOption = DEFAULT_DATA,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Download images of all items, not only of those that cleaning keeps."),
    ] = False,
    concurrency: Annotated[
        int, typer.Option(metavar="NUMBER", min=1, max=256, help="Downloads at the same time.")
    ] = 16,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="Seconds that one attempt may take in all.")
    ] = 30,
    attempts: Annotated[
        int, typer.Option(metavar="NUMBER", min=1, max=20, help="Attempts per image, with growing waits between them.")
    ] = 4,
    max_megabytes: Annotated[
        float, typer.Option(metavar="MB", min=0.1, help="Largest file to accept, in megabytes.")
    ] = 20,
    allow_private: Annotated[
        bool,
        typer.Option("--allow-private", help="Also download from this machine and from private networks."),
    ] = False,
) -> None:
    """Download the images of a data set from their URLs; existing images are not downloaded again.

    After Ctrl-C, run the same command again to continue. Failed downloads and their reasons go to a parquet file.

    Example: `macrec fetch images amazon2018-instruments --data ~/data`
    """
    from macrec_pipeline.data.images.addresses import image_addresses, image_template_of
    from macrec_pipeline.data.images.downloads import FetchLimits
    from macrec_pipeline.data.images.fetch import fetch_images
    from macrec_pipeline.runtime.progress import TerminalProgress

    spec = load_dataset(dataset)
    template = image_template_of(spec, data.resolve())
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
        f"{addresses.height:,} items: {report.fetched:,} images downloaded, {report.present:,} already present, "
        f"{len(report.failures):,} failed, {report.without_url:,} without a URL.",
        highlight=False,
    )
    out.print(failures_table(report.failures))
    out.print(f"failures          {escape(str(report.failures_table))}", highlight=False, soft_wrap=True)


def require_files(spec: DatasetSpec, data: Path) -> None:
    """Check that all files of a data set exist, before anything starts.

    Raises:
        MissingFileError: files or columns are missing; names all of them.
    """
    from macrec_pipeline.data.readers.registry import validate_source

    problems = validate_source(spec, data)
    if problems:
        raise MissingFileError(f"The data set {spec.name} is not ready: {' '.join(problems)}")
