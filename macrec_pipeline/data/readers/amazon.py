"""Readers `amazon2018` and `amazon2023`: the published Amazon review files become raw interactions and raw items.

    2018    `X.csv` holds `item,user,rating,timestamp` with times in seconds; `meta_X.json` holds one item per line.
            The item id of the metadata is `asin`.
    2023    `X.jsonl` holds one review per line with times in milliseconds; `meta_X.jsonl` holds one item per line.
            The item id of both is `parent_asin`.

Any file may be gzipped and end in `.gz`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from macrec_pipeline.data.readers.column_parsing import category_cells, compose_texts, id_cells, text_cells
from macrec_pipeline.data.readers.html_text import plain_text
from macrec_pipeline.data.readers.image_files import existing_images
from macrec_pipeline.data.readers.json_lines import Cells, JsonFields, json_line_tables
from macrec_pipeline.data.readers.rating_logs import rating_parts
from macrec_pipeline.data.readers.reader import Reader, SourceSample
from macrec_pipeline.data.readers.text_files import BLOCK_BYTES, require_file_or_gz
from macrec_pipeline.datasets import Amazon2018Source, Amazon2023Source
from macrec_pipeline.errors import MissingFileError
from macrec_pipeline.schemas import RAW_ITEMS

_SAMPLE_BYTES = 4 << 20  # of the metadata, read by `macrec datasets validate`
_REVIEW_SCHEMA = {"user_id": pl.String, "item_id": pl.String, "rating": pl.Float64, "timestamp": pl.Int64}
_CATEGORY_FIELDS = {"amazon2018": ("category",), "amazon2023": ("main_category", "categories")}
# Fields that mean little without their name; the other fields need no label.
_LABELS = {"brand": "Brand", "store": "Store", "category": "Categories", "categories": "Categories"}


@dataclass(frozen=True)
class AmazonReader(Reader):
    """Reads either edition of the Amazon reviews."""

    source: Amazon2018Source | Amazon2023Source
    data_dir: Path

    def interaction_parts(self) -> Iterator[pl.DataFrame]:
        """Yield the ratings (2018) or reviews (2023) as parts of `RAW_INTERACTIONS`.

        Raises:
            MissingFileError: neither the file nor its `.gz` exists.
            DataError: the file cannot be read to its end.
        """
        path, file = self._find(self._reviews_file())
        if isinstance(self.source, Amazon2018Source):
            return rating_parts(path, file, columns=("item_id", "user_id", "rating", "timestamp"))
        return (
            table.with_columns(pl.col("user_id", "item_id").map_batches(id_cells, return_dtype=pl.String))
            for table in json_line_tables(path, file, _review_cells, _REVIEW_SCHEMA)
        )

    def items(self) -> pl.DataFrame:
        """Return the metadata as `RAW_ITEMS`: texts without HTML, existing images, and image addresses.

        Raises:
            MissingFileError: neither the file nor its `.gz` exists.
            DataError: the file cannot be read to its end.
        """
        return pl.concat([RAW_ITEMS.empty(), *self._item_parts()])

    def sample(self, num_rows: int) -> SourceSample:
        """Return the first rows of both files."""
        log, items = next(iter(self.interaction_parts()), None), next(self._item_parts(_SAMPLE_BYTES), None)
        return SourceSample(
            () if log is None else (log.head(num_rows),), () if items is None else (items.head(num_rows),)
        )

    def item_id_parts(self) -> Iterator[pl.Series]:
        """Yield the ids of the metadata, part by part."""
        path, file = self._find(self._metadata_file())
        id_field = _ITEM_FIELDS[self.source.reader][0]
        for table in json_line_tables(
            path, file, lambda fields: (fields.identifier(id_field),), {"item_id": pl.String}
        ):
            yield id_cells(table["item_id"])

    def _item_parts(self, block_bytes: int = BLOCK_BYTES) -> Iterator[pl.DataFrame]:
        source = self.source
        path, file = self._find(self._metadata_file())
        text_fields: list[str] = list(source.texts)
        schema: dict[str, Any] = dict.fromkeys(("item_id", "title", *text_fields, "image_url"), pl.String)
        schema["found_categories"] = pl.List(pl.String)  # a text field may itself be named categories
        id_field, image_url = _ITEM_FIELDS[source.reader]
        parse: Callable[[JsonFields], Cells] = partial(
            _item_cells,
            id_field=id_field,
            image_url=image_url,
            text_fields=text_fields,
            category_fields=_CATEGORY_FIELDS[source.reader],
        )
        for table in json_line_tables(path, file, parse, schema, block_bytes=block_bytes):
            item_ids, title = id_cells(table["item_id"]), text_cells(table["title"])
            parts = [_labelled(name, text_cells(table[name])) for name in text_fields]
            columns = table.with_columns(
                item_ids.alias("item_id"),
                title.alias("title"),
                compose_texts(title, parts).alias("text"),
                category_cells(table["found_categories"]).alias("categories"),
                existing_images(item_ids, source.image_template, self.data_dir),
            )
            yield RAW_ITEMS.check(columns.select(*RAW_ITEMS.columns), file)

    def problems(self) -> list[str]:
        """Return the missing files. Missing images are not a problem, because they can be fetched."""
        problems = []
        for name in (self._reviews_file(), self._metadata_file()):
            try:
                self._find(name)
            except MissingFileError as error:
                problems.append(str(error))
        return problems

    def source_files(self) -> list[Path]:
        """Return the files of interactions and items. Raise `MissingFileError`."""
        return [self._find(name)[0] for name in (self._reviews_file(), self._metadata_file())]

    def image_template(self) -> str | None:
        """Return `source.image`, or its default below `source.folder`."""
        return self.source.image_template

    def _reviews_file(self) -> str:
        return f"{self.source.prefix}.{'csv' if isinstance(self.source, Amazon2018Source) else 'jsonl'}"

    def _metadata_file(self) -> str:
        return f"meta_{self.source.prefix}.{'json' if isinstance(self.source, Amazon2018Source) else 'jsonl'}"

    def _find(self, name: str) -> tuple[Path, str]:
        return require_file_or_gz(self.data_dir, f"{self.source.folder}/{name}", what=f"reader {self.source.reader}")


def _review_cells(fields: JsonFields) -> Cells:
    return (
        fields.identifier("user_id"),
        fields.identifier("parent_asin"),
        fields.number("rating"),
        fields.whole_number("timestamp"),
    )


def _item_cells(
    fields: JsonFields,
    *,
    id_field: str,
    image_url: Callable[[JsonFields], str | None],
    text_fields: list[str],
    category_fields: tuple[str, ...],
) -> Cells:
    """Return the cells of one line of metadata: item_id, title, the text fields, image_url and categories."""
    return (
        fields.identifier(id_field),
        _joined(fields, "title"),
        *(_joined(fields, name) for name in text_fields),
        image_url(fields),
        [plain_text(part) for name in category_fields for part in fields.texts(name)],
    )


def _joined(fields: JsonFields, name: str) -> str:
    separator = ", " if name in _LABELS else " "
    return separator.join(plain_text(part).strip() for part in fields.texts(name))


def _labelled(name: str, text: pl.Series) -> pl.Series:
    label = _LABELS.get(name)
    return text if label is None else f"{label}: " + text


def _image_url_2018(fields: JsonFields) -> str | None:
    """Return the first large image; `imageURL` holds only thumbnails of 40 pixels, so it is the fallback."""
    urls = fields.texts("imageURLHighRes") or fields.texts("imageURL")
    return urls[0].strip() if urls else None


def _image_url_2023(fields: JsonFields) -> str | None:
    """Return the main image, else the first one.

    `large` (500 pixels) comes before `hi_res`, because image encoders work at a lower resolution anyway.
    """
    images = sorted(fields.objects("images"), key=lambda image: image.get("variant") != "MAIN")
    candidates: list[Any] = [image.get(size) for image in images for size in ("large", "hi_res")]
    url = next((candidate for candidate in candidates if isinstance(candidate, str) and candidate.strip()), None)
    return None if url is None else url.strip().encode("utf-8", errors="replace").decode("utf-8")


_ITEM_FIELDS = {"amazon2018": ("asin", _image_url_2018), "amazon2023": ("parent_asin", _image_url_2023)}
