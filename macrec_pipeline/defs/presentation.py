"""How assets appear to a person, in Dagster and in the terminal: progress, table previews, columns, metrics."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import polars as pl

from macrec_pipeline.runtime.progress import TerminalProgress
from macrec_pipeline.runtime.text_sanitizing import as_markdown
from macrec_pipeline.schemas import TABLES

_MAX_CELL_LENGTH = 80


class AssetProgress:
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
        """Close the bar if it is still open."""
        self._bar.close()


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Format metrics for the terminal, as in "loss 0.1235, epoch 3"."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def table_metadata(asset: str) -> dict[str, Any]:
    """Return the columns of a table asset, which Dagster's catalogue shows even before the table exists."""
    schema = TABLES[asset]
    columns = [
        dg.TableColumn(
            name,
            str(dtype),
            description=schema.column_descriptions[name],
            constraints=dg.TableColumnConstraints(nullable=name in schema.nullable, unique=(name,) in schema.unique),
        )
        for name, dtype in schema.columns.items()
    ]
    return {"dagster/column_schema": dg.TableSchema(columns)}


def markdown(text: str) -> dg.MetadataValue[Any]:
    """Metadata that Dagster's catalogue renders as Markdown."""
    return dg.MetadataValue.md(text)


def preview(table: pl.DataFrame, columns: Sequence[str], *, rows: int = 5) -> dg.MetadataValue[Any]:
    """Return the first rows of some columns as a Markdown table; long texts are cut."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in table.select(columns).head(rows).iter_rows():
        lines.append("| " + " | ".join(as_markdown(_shorten(str(value))) for value in row) + " |")
    return markdown("\n".join(lines))


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_CELL_LENGTH else text[: _MAX_CELL_LENGTH - 3] + "..."
