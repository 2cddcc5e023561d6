"""The commands that run the pipeline or a part of it.

`macrec run`, `macrec refresh`, `macrec backtest`, `macrec recommend-all`, `macrec evaluate-champion` and
`macrec prune`.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from macrec_pipeline.cli.completion import ASSETS, complete_asset
from macrec_pipeline.cli.datasets import require_files
from macrec_pipeline.cli.options import (
    DEFAULT_DATA,
    DEFAULT_HOME,
    DataOption,
    DatasetArgument,
    HomeOption,
    SettingsOption,
)
from macrec_pipeline.datasets import load_dataset
from macrec_pipeline.errors import ConfigError
from macrec_pipeline.home import Home
from macrec_pipeline.presets import parse_overrides
from macrec_pipeline.terminal import (
    WIDE,
    backtest_table,
    champion_lines,
    console,
    metrics_table,
    quieten_libraries,
    removals_table,
    show_finished_assets,
)

ResumedRunOption = Annotated[
    str | None,
    typer.Option(
        "--resume-run",
        metavar="RUN_ID",
        help="Like --resume, for the run with this ID or its first eight characters. --resume lists the runs.",
    ),
]
_ASSET_LIST = ", ".join(ASSETS)
# After these assets the metrics on disk are those of the run that just ended.
_ASSETS_WITH_METRICS = ("evaluation_report", "registered_model")


def run(
    dataset: DatasetArgument,
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
    settings: SettingsOption = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            metavar="ASSET",
            autocompletion=complete_asset,
            help=f"Stop after this asset: run it and everything it depends on. One of: {_ASSET_LIST}.",
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="ASSET",
            autocompletion=complete_asset,
            help=f"Run only this asset, on the inputs of earlier runs. One of: {_ASSET_LIST}.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the last `macrec run`, which failed or was stopped, with its settings."
        ),
    ] = False,
    resume_run: ResumedRunOption = None,
) -> None:
    """Run the pipeline on a data set, from its files to a registered model, and show the metrics.

    Examples:

    - `macrec run demo`
    - `macrec run demo --set recommender.num_epochs=3 --set seed=7`: settings changed for this run
    - `macrec run movielens-100k --data ~/data --until histories`: see what cleaning keeps, before training
    - `macrec run demo --resume`: continue after a failure or Ctrl-C
    - `macrec run demo --resume-run 3f2a91c4`: continue an earlier run
    """
    resume = resume or resume_run is not None
    if until and only:
        raise ConfigError("--until and --only exclude each other: leave one of them out.")
    if resume and (settings or until or only):
        raise ConfigError("--resume repeats the options of the last run: leave out --set, --until and --only.")
    spec = load_dataset(dataset)
    spec.config(parse_overrides(settings or []))
    if not (only or resume):
        require_files(spec, data.resolve())
    quieten_libraries()
    show_finished_assets()
    from macrec_pipeline.definitions import defs
    from macrec_pipeline.defs.runs.launch import LaunchRequest, launch

    request = LaunchRequest(
        dataset,
        home.folder,
        data.resolve(),
        overrides=tuple(settings or ()),
        until=until,
        only=only,
        resume=resume,
        resumed_run=resume_run,
        url=home.url,
    )
    launch(request, defs=defs)
    last_asset = only or until or "registered_model"
    _show_results(dataset, home, has_new_metrics=last_asset in _ASSETS_WITH_METRICS)


def refresh(
    dataset: DatasetArgument,
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
    settings: SettingsOption = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the last `macrec refresh`, which failed or was stopped, with its settings."
        ),
    ] = False,
    resume_run: ResumedRunOption = None,
) -> None:
    """Update the model after new interactions: known items keep their IDs, training continues from the last weights.

    The data set must have been run before.

    Examples:

    - `macrec refresh demo`
    - `macrec refresh demo --resume`: continue after a failure or Ctrl-C
    """
    from macrec_pipeline.defs.jobs import JOB_OVERRIDES, REFRESH

    resume = resume or resume_run is not None
    if resume and settings:
        raise ConfigError("--resume repeats the options of the last run: leave out --set.")
    spec = load_dataset(dataset)
    spec.config(parse_overrides([*JOB_OVERRIDES[REFRESH], *(settings or [])]))
    if not resume:
        require_files(spec, data.resolve())
    _launch(dataset, home, data, settings, job=REFRESH, resume=resume, resumed_run=resume_run)
    _show_results(dataset, home, has_new_metrics=True)


def backtest(
    dataset: DatasetArgument,
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
    folds: Annotated[
        int, typer.Option(metavar="NUMBER", min=1, max=50, help="Number of consecutive test periods.")
    ] = 3,
    test_share: Annotated[
        float,
        typer.Option(metavar="SHARE", min=0.001, max=0.9, help="Share of all interactions in each test period."),
    ] = 0.1,
    settings: SettingsOption = None,
) -> None:
    """Train and evaluate at several points in time, and show how much the results vary.

    At each point, later interactions are treated as if they had not happened yet.

    Example: `macrec backtest demo --folds 4 --test-share 0.05`
    """
    spec = load_dataset(dataset)
    require_files(spec, data.resolve())
    quieten_libraries()
    show_finished_assets()
    from macrec_pipeline.definitions import defs
    from macrec_pipeline.defs.runs.backtest import backtest_folders, run_backtest
    from macrec_pipeline.defs.runs.launch import LaunchRequest

    request = LaunchRequest(dataset, home.folder, data.resolve(), overrides=tuple(settings or ()))
    document = run_backtest(request, spec, num_folds=folds, test_share=test_share, defs=defs)
    out = console()
    out.print(backtest_table(document))
    results = backtest_folders(request.home, dataset).results
    out.print(f"reports           {escape(str(results))}", highlight=False, soft_wrap=True)


def recommend_all(
    dataset: DatasetArgument,
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
    settings: SettingsOption = None,
) -> None:
    """Recommend items for every user of a data set with its champion, as parquet files.

    After an interruption, run the same command again: it resumes after the last finished file.

    Example: `macrec recommend-all demo --set recommendations.top_k=50`
    """
    from macrec_pipeline.defs.jobs import BATCH_RECOMMENDATIONS

    load_dataset(dataset).config(parse_overrides(settings or []))
    _launch(dataset, home, data, settings, job=BATCH_RECOMMENDATIONS)
    files = home.folder / dataset / "recommendations" / "part-*.parquet"
    console().print(f"recommendations   {escape(str(files))}", highlight=False, soft_wrap=True)


def evaluate_champion(
    dataset: DatasetArgument,
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
    settings: SettingsOption = None,
) -> None:
    """Evaluate the champion on the newest data, compared with recommending the most popular items.

    Nothing is trained or promoted.

    Example: `macrec evaluate-champion demo`
    """
    from macrec_pipeline.defs.jobs import EVALUATE_CHAMPION

    spec = load_dataset(dataset)
    spec.config(parse_overrides(settings or []))
    require_files(spec, data.resolve())
    _launch(dataset, home, data, settings, job=EVALUATE_CHAMPION)
    path = home.folder / dataset / "champion_evaluation" / "evaluation.json"
    console().print(champion_lines(dataset, json.loads(path.read_text(encoding="utf-8"))), highlight=False)


def prune(
    dataset: DatasetArgument,
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be removed, with sizes and reasons.")
    ] = False,
) -> None:
    """Remove old model versions, runs, events and backtests, as the data set's section `retention` says.

    The champion, the challenger and what they need are never removed.

    Examples:

    - `macrec prune demo --dry-run`: see what would be removed
    - `macrec prune demo`
    """
    load_dataset(dataset)
    if not home.folder.is_dir():
        raise ConfigError(f"There is no folder {home.folder}. Run `macrec run {dataset}` first, or choose with --home.")
    quieten_libraries()
    from macrec_pipeline.defs.resources import Settings
    from macrec_pipeline.defs.retention import PRUNE, plan, read_report
    from macrec_pipeline.defs.runs.launch import open_instance

    if dry_run:
        with open_instance(home.folder) as instance:
            report = plan(instance, Settings(home=home.url or str(home.folder), data=str(data.resolve())), dataset)
    else:
        _launch(dataset, home, data, None, job=PRUNE)
        report = read_report(home.folder, dataset)
    out = console()
    if report.removals:
        out.print(removals_table(report))
    size = f"{report.freed_bytes / 1e6:,.1f} MB"
    number = len(report.removals)
    if dry_run:
        out.print(f"Would remove {number:,} things and free {size}. To remove them, leave out --dry-run.")
    else:
        out.print(f"Removed {number:,} things and freed {size}.")
    for note in report.notes:
        out.print(escape(note), highlight=False, soft_wrap=True)


def _launch(
    dataset: str,
    home: Home,
    data: Path,
    settings: list[str] | None,
    *,
    job: str,
    resume: bool = False,
    resumed_run: str | None = None,
) -> None:
    quieten_libraries()
    show_finished_assets()
    from macrec_pipeline.definitions import defs
    from macrec_pipeline.defs.runs.launch import LaunchRequest, launch

    overrides = tuple(settings or ())
    request = LaunchRequest(
        dataset,
        home.folder,
        data.resolve(),
        overrides,
        job=job,
        resume=resume,
        resumed_run=resumed_run,
        url=home.url,
    )
    launch(request, defs=defs)


def _show_results(dataset: str, home: Home, *, has_new_metrics: bool) -> None:
    """Print the metrics, if the run computed them, and where its results are."""
    from macrec_pipeline.tracking.store import tracking_uri, without_password

    out = console()
    folder = home.folder / dataset
    metrics, report = folder / "evaluation_report" / "metrics.json", folder / "evaluation_report" / "report.html"
    registration = folder / "registered_model" / "registration.json"
    if home.url:
        _update_local_copies(home, dataset)
    if has_new_metrics and metrics.is_file():
        document = json.loads(metrics.read_text(encoding="utf-8"))
        out.print(metrics_table(document, with_intervals=out.width >= WIDE))
        out.print(f"report            {escape(str(report))}", highlight=False, soft_wrap=True)
    out.print(f"tables, models    {escape(f'{home}/{dataset}')}", highlight=False, soft_wrap=True)
    uri = without_password(tracking_uri(home.folder))
    out.print(f"MLflow store      {escape(uri)}", highlight=False, soft_wrap=True)
    if registration.is_file():
        version = json.loads(registration.read_text(encoding="utf-8"))
        aliases = ", ".join(f"@{alias}" for alias in version["aliases"])
        out.print(f"registered model  {escape(version['uri'])} ({aliases})", highlight=False, soft_wrap=True)
        if "decision" in version:
            out.print(f"promotion         {escape(version['decision'])}", highlight=False, soft_wrap=True)
        if "champion_decision" in version:
            out.print(f"champion          {escape(version['champion_decision'])}", highlight=False, soft_wrap=True)
    out.print("To look at all of it, run `macrec ui`.", highlight=False)


def _update_local_copies(home: Home, dataset: str) -> None:
    """Copy the assets shown at the end of a run again if another machine has published newer versions."""
    from macrec_pipeline.storage import AssetStore

    store = AssetStore(home.folder, dataset, url=home.url)
    for asset in _ASSETS_WITH_METRICS:
        if store.has(asset):
            store.folder(asset)
