"""Readers `amazon2018` and `amazon2023`: the published Amazon review files -> raw interactions and raw items.

    2018    `X.csv` holds `item,user,rating,timestamp`, in seconds; `meta_X.json` an item a line, by `asin`
    2023    `X.jsonl` holds a review a line, in milliseconds; `meta_X.jsonl` an item a line; both by `parent_asin`

Any may end in `.gz`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from macrec_pipeline.data.readers.column_parsing import category_cells, id_cells, text_cells
from macrec_pipeline.data.readers.html_text import plain_text
from macrec_pipeline.data.readers.image_files import existing_images
from macrec_pipeline.data.readers.input_files import require_file_or_gz
from macrec_pipeline.data.readers.item_texts import compose_texts
from macrec_pipeline.data.readers.json_lines import Cells, JsonFields, json_line_tables
from macrec_pipeline.data.readers.rating_logs import rating_parts
from macrec_pipeline.datasets import Amazon2018Source, Amazon2023Source
from macrec_pipeline.errors import MissingFileError
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

AmazonSource = Amazon2018Source | Amazon2023Source

_REVIEW = {"user_id": pl.String, "item_id": pl.String, "rating": pl.Float64, "timestamp": pl.Int64}
_CATEGORIES = {"amazon2018": ("category",), "amazon2023": ("main_category", "categories")}
# Fields that say little without their name; the others speak for themselves.
_LABELS = {"brand": "Brand", "store": "Store", "category": "Categories", "categories": "Categories"}


def amazon_interaction_parts(source: AmazonSource, data_dir: Path) -> Iterator[pl.DataFrame]:
    """Read the ratings or reviews as parts of `RAW_INTERACTIONS`, one after the other.

    Raises:
        MissingFileError: neither the file nor its `.gz` is there.
        DataError: a file cannot be read to its end.
    """
    if isinstance(source, Amazon2018Source):
        path, file = _find(source, f"{source.prefix}.csv", data_dir)
        return rating_parts(path, file, columns=("item_id", "user_id", "rating", "timestamp"))
    path, file = _find(source, f"{source.prefix}.jsonl", data_dir)
    return (
        table.with_columns(pl.col("user_id", "item_id").map_batches(id_cells, return_dtype=pl.String))
        for table in json_line_tables(path, file, _review, _REVIEW)
    )


def read_amazon_interactions(source: AmazonSource, data_dir: Path) -> pl.DataFrame:
    """The parts as one `RAW_INTERACTIONS`; errors as there."""
    parts = amazon_interaction_parts(source, data_dir)
    return RAW_INTERACTIONS.check(pl.concat([RAW_INTERACTIONS.empty(), *parts]), source.folder)


def read_amazon_items(source: AmazonSource, data_dir: Path) -> pl.DataFrame:
    """Read the metadata as `RAW_ITEMS`: plain texts, the picture that is there, and the address of one that may not be.

    Raises:
        MissingFileError: neither the file nor its `.gz` is there.
        DataError: a file cannot be read to its end.
    """
    path, file = _find(source, _metadata_file(source), data_dir)
    names: list[str] = list(source.texts)
    schema: dict[str, Any] = dict.fromkeys(("item_id", "title", *names, "image_url"), pl.String)
    schema["found_categories"] = pl.List(pl.String)  # a text may be called categories
    item, image_url = _ITEM_FIELDS[source.reader]
    parse: Callable[[JsonFields], Cells] = partial(
        _item, item_id=item, image_url=image_url, texts=names, categories=_CATEGORIES[source.reader]
    )
    tables = []
    for table in json_line_tables(path, file, parse, schema):
        item_ids, title = id_cells(table["item_id"]), text_cells(table["title"])
        parts = [_labelled(name, text_cells(table[name])) for name in names]
        tables.append(
            table.with_columns(
                item_ids.alias("item_id"),
                title.alias("title"),
                compose_texts(title, parts).alias("text"),
                category_cells(table["found_categories"]).alias("categories"),
                existing_images(item_ids, source.image_template, data_dir),
            ).select(*RAW_ITEMS.columns)
        )
    return RAW_ITEMS.check(pl.concat([RAW_ITEMS.empty(), *tables]), file)


def amazon_files(source: AmazonSource, data_dir: Path) -> list[Path]:
    """The files of interactions and items. Raises `MissingFileError`."""
    return [_find(source, name, data_dir)[0] for name in (_reviews_file(source), _metadata_file(source))]


def amazon_problems(source: AmazonSource, data_dir: Path) -> list[str]:
    """What keeps these files from being read: those that are not there. Pictures may be missing: they are fetched."""
    problems = []
    for name in (_reviews_file(source), _metadata_file(source)):
        try:
            _find(source, name, data_dir)
        except MissingFileError as error:
            problems.append(str(error))
    return problems


def _reviews_file(source: AmazonSource) -> str:
    return f"{source.prefix}.{'csv' if isinstance(source, Amazon2018Source) else 'jsonl'}"


def _metadata_file(source: AmazonSource) -> str:
    return f"meta_{source.prefix}.{'json' if isinstance(source, Amazon2018Source) else 'jsonl'}"


def _find(source: AmazonSource, name: str, data_dir: Path) -> tuple[Path, str]:
    return require_file_or_gz(data_dir, f"{source.folder}/{name}", what=f"reader {source.reader}")


def _review(fields: JsonFields) -> Cells:
    return (
        fields.identifier("user_id"),
        fields.identifier("parent_asin"),
        fields.number("rating"),
        fields.whole("timestamp"),
    )


def _item(
    fields: JsonFields,
    *,
    item_id: str,
    image_url: Callable[[JsonFields], str | None],
    texts: list[str],
    categories: tuple[str, ...],
) -> Cells:
    """The cells of one line of metadata: item_id, title, the texts as asked for, image_url, categories."""
    return (
        fields.identifier(item_id),
        _join(fields, "title"),
        *(_join(fields, name) for name in texts),
        image_url(fields),
        [plain_text(part) for name in categories for part in fields.texts(name)],
    )


def _join(fields: JsonFields, name: str) -> str:
    separator = ", " if name in _LABELS else " "
    return separator.join(plain_text(part).strip() for part in fields.texts(name))


def _labelled(name: str, text: pl.Series) -> pl.Series:
    label = _LABELS.get(name)
    return text if label is None else f"{label}: " + text


def _image_url_2018(fields: JsonFields) -> str | None:
    """The first large picture; `imageURL` holds thumbnails of 40 pixels, which are better than nothing."""
    found = fields.texts("imageURLHighRes") or fields.texts("imageURL")
    return found[0].strip() if found else None


def _image_url_2023(fields: JsonFields) -> str | None:
    """The main picture, else the first; `large` (500 pixels) before `hi_res`: encoders look at less than that."""
    pictures = sorted(fields.objects("images"), key=lambda picture: picture.get("variant") != "MAIN")
    addresses: list[Any] = [picture.get(size) for picture in pictures for size in ("large", "hi_res")]
    found = next((address for address in addresses if isinstance(address, str) and address.strip()), None)
    return None if found is None else found.strip().encode("utf-8", errors="replace").decode("utf-8")


_ITEM_FIELDS = {"amazon2018": ("asin", _image_url_2018), "amazon2023": ("parent_asin", _image_url_2023)}
