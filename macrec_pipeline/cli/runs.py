"""The commands that run the pipeline, or a part of it.

`macrec run`, `macrec refresh`, `macrec backtest`, `macrec recommend-all` and `macrec evaluate-champion`.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from macrec_pipeline.cli.data_sets import require_files
from macrec_pipeline.cli.options import DEFAULT_DATA, DEFAULT_HOME, DataOption, HomeOption
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
    show_finished_assets,
)

SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Override a setting; may be repeated."),
]
MEASURED = ("evaluation_report", "registered_model")  # after these the metrics are those of this run


def run(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A data set of `macrec datasets`.")],
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
    settings: SettingsOption = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="ASSET", help="Run this asset and all that it is made from.")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="ASSET", help="Run this asset alone, on what is there already.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last run, which failed or was killed, with its settings.")
    ] = False,
) -> None:
    """Run the pipeline on one data set, then show its metrics and where everything is.

    Example: `macrec run demo --set recommender.num_epochs=3`
    """
    if until and only:
        raise ConfigError("--until and --only cannot go together.")
    if resume and (settings or until or only):
        raise ConfigError("--resume goes on with what the last run was asked for: leave out --set, --until and --only.")
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
        url=home.url,
    )
    launch(request, defs=defs)
    _show_results(dataset, home, measured=(only or until or MEASURED[-1]) in MEASURED)


def refresh(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A data set that has been run before.")],
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
    settings: SettingsOption = None,
) -> None:
    """Take in new interactions: items keep their IDs, training starts from the weights of before.

    Example: `macrec refresh demo`
    """
    from macrec_pipeline.defs.jobs import REFRESH, SETTINGS

    spec = load_dataset(dataset)
    spec.config(parse_overrides([*SETTINGS[REFRESH], *(settings or [])]))
    require_files(spec, data.resolve())
    _launch(dataset, home, data, settings, job=REFRESH)
    _show_results(dataset, home, measured=True)


def backtest(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A data set of `macrec datasets`.")],
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
    folds: Annotated[int, typer.Option(min=1, max=50, help="Test periods, one after the other.")] = 3,
    test_share: Annotated[float, typer.Option(min=0.001, max=0.9, help="Share of the interactions in each.")] = 0.1,
    settings: SettingsOption = None,
) -> None:
    """Train and evaluate at several moments of the log, each as if it were today, and show how the results spread.

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
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A data set with a registered model.")],
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
    settings: SettingsOption = None,
) -> None:
    """Write what every user of a data set is recommended by its champion, as parquet files.

    A command that was cut off goes on after its last finished file.

    Example: `macrec recommend-all demo --set recommendations.top_k=50`
    """
    from macrec_pipeline.defs.jobs import BATCH_RECOMMENDATIONS

    load_dataset(dataset).config(parse_overrides(settings or []))
    _launch(dataset, home, data, settings, job=BATCH_RECOMMENDATIONS)
    files = home.folder / dataset / "recommendations" / "part-*.parquet"
    console().print(f"recommendations   {escape(str(files))}", highlight=False, soft_wrap=True)


def evaluate_champion(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Whose champion, macrec-DATASET@champion.")],
    home: HomeOption = DEFAULT_HOME,
    data: DataOption = DEFAULT_DATA,
    settings: SettingsOption = None,
) -> None:
    """Read the newest files and say what the champion is worth on them, beside the most popular items.

    Nothing is trained or promoted. Example: `macrec evaluate-champion demo`
    """
    from macrec_pipeline.defs.jobs import EVALUATE_CHAMPION

    spec = load_dataset(dataset)
    spec.config(parse_overrides(settings or []))
    require_files(spec, data.resolve())
    _launch(dataset, home, data, settings, job=EVALUATE_CHAMPION)
    path = home.folder / dataset / "champion_evaluation" / "evaluation.json"
    console().print(champion_lines(dataset, json.loads(path.read_text(encoding="utf-8"))), highlight=False)


def _launch(dataset: str, home: Home, data: Path, settings: list[str] | None, *, job: str) -> None:
    quieten_libraries()
    show_finished_assets()
    from macrec_pipeline.definitions import defs
    from macrec_pipeline.defs.runs.launch import LaunchRequest, launch

    overrides = tuple(settings or ())
    launch(LaunchRequest(dataset, home.folder, data.resolve(), overrides, job=job, url=home.url), defs=defs)


def _show_results(dataset: str, home: Home, *, measured: bool) -> None:
    from macrec_pipeline.tracking.store import tracking_uri, without_password

    out = console()
    folder = home.folder / dataset
    metrics, report = folder / "evaluation_report" / "metrics.json", folder / "evaluation_report" / "report.html"
    registration = folder / "registered_model" / "registration.json"
    if home.url:
        _bring_up_to_date(home, dataset)
    if measured and metrics.is_file():
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
    out.print("Look at all of it with `macrec ui`.", highlight=False)


def _bring_up_to_date(home: Home, dataset: str) -> None:
    """Another machine may have made what is shown since this one has copied it."""
    from macrec_pipeline.storage import AssetStore

    store = AssetStore(home.folder, dataset, url=home.url)
    for asset in MEASURED:
        if store.has(asset):
            store.folder(asset)
