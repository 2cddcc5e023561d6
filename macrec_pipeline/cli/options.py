"""The options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    Path, typer.Option("--home", metavar="DIR", envvar="MACREC_HOME", help="Folder of all state: tables, models, runs.")
]
DataOption = Annotated[
    Path,
    typer.Option("--data", metavar="DIR", envvar="MACREC_DATA", help="Folder that data set files are relative to."),
]
DEFAULT_HOME, DEFAULT_DATA = Path(".macrec"), Path("data")
