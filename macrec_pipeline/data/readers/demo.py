"""Reader `demo`: generates a small shop in the data folder, then reads its files as tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from macrec_pipeline.data.demo.ensure import demo_tables, ensure_demo
from macrec_pipeline.data.readers.reader import Reader
from macrec_pipeline.data.readers.tables import TablesReader
from macrec_pipeline.datasets import DemoSource


@dataclass(frozen=True)
class DemoReader(Reader):
    """Reads the generated shop; generates it first if it does not exist with these parameters."""

    source: DemoSource
    data_dir: Path

    def interaction_parts(self) -> Iterator[pl.DataFrame]:
        """Yield the interaction log as parts of `RAW_INTERACTIONS`."""
        ensure_demo(self.source, self.data_dir)
        return self._tables().interaction_parts()

    def items(self) -> pl.DataFrame:
        """Return the catalogue as `RAW_ITEMS`."""
        ensure_demo(self.source, self.data_dir)
        return self._tables().items()

    def problems(self) -> list[str]:
        """Return nothing: the shop is generated, so it is always ready."""
        return []

    def source_files(self) -> list[Path]:
        """Return the files of interactions and items. Raise `MissingFileError` if the shop is not generated yet."""
        return self._tables().source_files()

    def _tables(self) -> TablesReader:
        return TablesReader(demo_tables(self.source), self.data_dir)
