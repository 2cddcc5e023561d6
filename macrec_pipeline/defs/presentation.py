"""What a person sees of an asset at work, in Dagster and in the terminal: progress, previews, columns, figures."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import polars as pl

from macrec_pipeline.runtime.progress import TerminalProgress
from macrec_pipeline.runtime.text_sanitizing import as_markdown
from macrec_pipeline.schemas import TABLES


class VisibleProgress:
    """Shows one asset's progress as a bar in the terminal and, at each quarter, as a line in Dagster's log."""

    def __init__(self, log: logging.Logger, *, interactive: bool) -> None:
        self._bar = TerminalProgress(interactive=interactive)
        self._log = log
        self._stage = ""
        self._quarter = 0

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """See `runtime.progress.Progress`."""
        self._bar(stage, done, total, metrics)
        if stage != self._stage:
            self._stage, self._quarter = stage, 0
        if total and 4 * done // total > self._quarter:
            self._quarter = 4 * done // total
            values = " ".join(f"{name}={value:.4g}" for name, value in (metrics or {}).items())
            self._log.info(f"{stage}: {done}/{total} {values}".rstrip())

    def close(self) -> None:
        """End the bar that is still open."""
        self._bar.close()


def in_words(values: Mapping[str, float]) -> str:
    """A row of a training log for the terminal."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def table_metadata(asset: str) -> dict[str, Any]:
    """The columns of a table asset, as Dagster's catalogue shows them before it has ever been made."""
    schema = TABLES[asset]
    columns = [
        dg.TableColumn(
            name,
            str(dtype),
            constraints=dg.TableColumnConstraints(nullable=name in schema.nullable, unique=(name,) in schema.unique),
        )
        for name, dtype in schema.columns.items()
    ]
    return {"dagster/column_schema": dg.TableSchema(columns)}


def markdown(text: str) -> dg.MetadataValue[Any]:
    """Text that Dagster's catalogue shows as markdown."""
    return dg.MetadataValue.md(text)


def preview(table: pl.DataFrame, columns: Sequence[str], *, rows: int = 5) -> dg.MetadataValue[Any]:
    """The first rows of some columns as a markdown table, long texts cut."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in table.select(columns).head(rows).iter_rows():
        cells = (str(value) for value in row)
        short = (cell if len(cell) <= 80 else cell[:77] + "..." for cell in cells)
        lines.append("| " + " | ".join(map(as_markdown, short)) + " |")
    return markdown("\n".join(lines))
