"""Cells with several image addresses."""

from pathlib import Path

import polars as pl
import pytest

from macrec_pipeline.data.images.addresses import image_addresses
from macrec_pipeline.data.readers.image_addresses import address_cells, separate_addresses
from macrec_pipeline.datasets import DatasetSpec


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("https://a/1.jpg", ["https://a/1.jpg"]),
        ("https://a/1.jpg, https://a/2.jpg", ["https://a/1.jpg", "https://a/2.jpg"]),
        ("https://a/1.jpg|HTTP://a/2.jpg;https://a/1.jpg", ["https://a/1.jpg", "HTTP://a/2.jpg"]),
        ("https://a/w_1,h_2/my photo.jpg https://a/2.jpg", ["https://a/w_1,h_2/my photo.jpg", "https://a/2.jpg"]),
        ("https://web.archive.org/web/2020/http://a/1.jpg", ["https://web.archive.org/web/2020/http://a/1.jpg"]),
        (" ,https://a/1.jpg,", ["https://a/1.jpg"]),
        ("no address", ["no address"]),
    ],
)
def test_addresses_are_separated(cell: str, expected: list[str]) -> None:
    """A separator counts only in front of another address, because addresses may contain commas and spaces."""
    assert separate_addresses(cell) == expected


def test_lists_become_cells_of_several_addresses() -> None:
    """Their addresses can be separated again; empty lists and nulls have none."""
    column = pl.Series([["http://a/1.jpg", " http://a/2.jpg "], [], None, [None, "http://a/3.jpg"]])
    cells = address_cells(column).to_list()
    assert cells == ["http://a/1.jpg http://a/2.jpg", None, None, "http://a/3.jpg"]
    assert separate_addresses(cells[0]) == ["http://a/1.jpg", "http://a/2.jpg"]


def test_the_addresses_of_all_rows_of_a_product_are_tried(tmp_path: Path) -> None:
    """An export of a shop has one row per variant, and each may have an image."""
    (tmp_path / "items.csv").write_text("id,name,photo\nA,Ball,http://x/2.jpg\nA,,http://x/1.jpg\nA,,\nB,Kite,\n")
    source = {
        "reader": "tables",
        "interactions": {"file": "log.csv", "user_id": "u", "item_id": "i", "timestamp": "t"},
        "items": {
            "file": "items.csv",
            "item_id": "id",
            "title": "name",
            "image_url": "photo",
            "image": "{item_id}.jpg",
        },
    }
    spec = DatasetSpec.model_validate({"name": "s", "title": "S", "source": source})
    addresses = image_addresses(spec, tmp_path, everything=True)
    assert addresses.rows() == [("A", "http://x/1.jpg http://x/2.jpg"), ("B", None)]
