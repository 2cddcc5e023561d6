"""The options that several commands have."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from macrec_pipeline.home import Home, home_of


def _home(value: object) -> Home:
    home = home_of(str(value))
    return replace(home, folder=home.folder.resolve())


HomeOption = Annotated[
    Home,
    typer.Option(
        "--home",
        metavar="DIR",
        envvar="MACREC_HOME",
        parser=_home,
        help="Folder of all state: tables, models, runs. Or s3://bucket/prefix for tables and models; the rest then "
        "lies in the folder MACREC_STATE.",
    ),
]
DataOption = Annotated[
    Path,
    typer.Option("--data", metavar="DIR", envvar="MACREC_DATA", help="Folder that data set files are relative to."),
]
DEFAULT_HOME, DEFAULT_DATA = Home(Path(".macrec")), Path("data")
