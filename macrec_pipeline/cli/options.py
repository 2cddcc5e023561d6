"""Arguments and options that several commands share."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from macrec_pipeline.cli.completion import complete_assignment, complete_dataset
from macrec_pipeline.home import Home, home_of


def _parse_home(value: object) -> Home:
    home = home_of(str(value))
    return replace(home, folder=home.folder.resolve())


DatasetArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        autocompletion=complete_dataset,
        help="Name of a data set; `macrec datasets` lists them.",
    ),
]
HomeOption = Annotated[
    Home,
    typer.Option(
        "--home",
        metavar="DIR",
        envvar="MACREC_HOME",
        parser=_parse_home,
        help="Folder for everything that runs produce: tables, models and records. Or s3://BUCKET/PREFIX for tables "
        "and models; records then go to the folder in MACREC_STATE.",
    ),
]
DataOption = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="DIR",
        envvar="MACREC_DATA",
        help="Folder with the input files. Paths in data set files are relative to it.",
    ),
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        autocompletion=complete_assignment,
        help="Change a setting for this run, as in recommender.num_epochs=5. Repeat for more; `macrec settings` lists "
        "the names.",
    ),
]
DEFAULT_HOME, DEFAULT_DATA = Home(Path(".macrec")), Path("data")
