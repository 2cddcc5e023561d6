"""Reader `demo`: generates a small shop in the data folder, then reads its files as tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from macrec_pipeline.data.demo.ensure import demo_tables, ensure_demo
from macrec_pipeline.data.readers.reader import Reader, SourceSample
from macrec_pipeline.data.readers.tables import TablesReader
from macrec_pipeline.datasets import DemoSource
from macrec_pipeline.errors import MissingFileError


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

    def sample(self, num_rows: int) -> SourceSample:
        """Return the first rows of the shop; no rows if it is not generated yet."""
        return self._tables().sample(num_rows) if self._is_there() else SourceSample((), ())

    def item_id_parts(self) -> Iterator[pl.Series]:
        """Yield the ids of the catalogue."""
        return self._tables().item_id_parts()

    def images_tried(self, items: pl.DataFrame) -> list[str] | None:
        """Return where the images of items without one were looked for."""
        return self._tables().images_tried(items)

    def _is_there(self) -> bool:
        try:
            self.source_files()
        except MissingFileError:
            return False
        return True

    def _tables(self) -> TablesReader:
        return TablesReader(demo_tables(self.source), self.data_dir)
