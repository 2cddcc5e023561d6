"""Passwords and signatures of image addresses are used to load images, and are neither kept nor shown anywhere."""

from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from macrec_pipeline.data.images.addresses import image_addresses
from macrec_pipeline.data.images.downloads import FetchLimits
from macrec_pipeline.data.images.fetch import fetch_images
from macrec_pipeline.data.readers.guessing import guess_dataset, sample_table
from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items, validate_source
from macrec_pipeline.data.readers.text_files import read_delimited
from macrec_pipeline.datasets import DatasetSpec
from macrec_pipeline.errors import SchemaError
from macrec_pipeline.terminal import failures_table
from tests.data.image_server import serving

SECRET = "hunter2"
SIGNED = f"https://me:{SECRET}@cdn.example.com/1.jpg?X-Amz-Expires=60&X-Amz-Signature={SECRET}"
SHOWN = "https://cdn.example.com/1.jpg?..."


def shop(data_dir: Path, **interactions: str) -> DatasetSpec:
    """Write a shop whose first item has a signed address, and whose second has two."""
    (data_dir / "log.csv").write_text("user,item,time,picture\n" + "".join(f"u{n},i1,{n},{SIGNED}\n" for n in range(9)))
    two = f'"{SIGNED}, https://cdn.example.com/2.jpg?token={SECRET}"'
    (data_dir / "items.csv").write_text(
        f"item,name,picture\ni1,one,{SIGNED}\ni2,two,{two}\ni3,three,https://cdn.example.com/3.jpg?w=300\ni4,four,\n"
    )
    log = {"file": "log.csv", "user_id": "user", "item_id": "item", "timestamp": "time", "timestamp_unit": "s"}
    items = {"file": "items.csv", "item_id": "item", "title": "name", "image_url": "picture"}
    return DatasetSpec.model_validate(
        {
            "name": "shop",
            "title": "Shop",
            "source": {
                "reader": "tables",
                "interactions": log | interactions,
                "items": items | {"image": "images/{item_id}.jpg"},
            },
        }
    )


def test_the_catalogue_keeps_addresses_without_secrets(tmp_path: Path) -> None:
    spec = shop(tmp_path)
    assert read_raw_items(spec, tmp_path)["image_url"].to_list() == [
        SHOWN,
        f"{SHOWN} https://cdn.example.com/2.jpg?...",
        "https://cdn.example.com/3.jpg?w=300",
        None,
    ]


def test_images_are_fetched_from_the_whole_address(tmp_path: Path) -> None:
    spec = shop(tmp_path)
    first = image_addresses(spec, tmp_path, everything=True).row(0)
    assert first == ("i1", SIGNED)


def test_failures_have_no_secrets(tmp_path: Path) -> None:
    with serving() as server:
        host = server.url("").removeprefix("http://")
        urls = {
            "1": f"http://me:{SECRET}@{host}missing?sig={SECRET}",
            "2": f"ftp://me:{SECRET}@{host}missing?token={SECRET}",
            "3": f"http://me:{SECRET}@127.0.0.1:1/a?key={SECRET}",
            "4": f"http://me:{SECRET}@[/a?key={SECRET}",
            "5": f"//me:{SECRET}@{host}a?key={SECRET}",
            "6": f"{server.url('color?red')}#sig={SECRET}",
        }
        addresses = pl.DataFrame({"item_id": list(urls), "image_url": list(urls.values())})
        limits = FetchLimits(timeout=60, attempts=1, first_wait=0.01, allow_private=True)
        report = fetch_images(addresses, "images/{item_id}.jpg", tmp_path, limits)
        assert report.fetched == 1
        assert server.num_requests["/missing"] == 1
    table = pl.read_parquet(report.failures_table)
    assert table["image_url"].to_list() == [
        f"http://{host}missing?...",
        f"ftp://{host}missing?...",
        "http://127.0.0.1:1/a?...",
        "http://[/a?...",
        f"//{host}a?...",
    ]
    assert SECRET not in str(table.rows())
    console = Console(width=300)
    with console.capture() as shown:
        console.print(failures_table(report.failures))
    assert SECRET not in shown.get()
    for file in tmp_path.rglob("*"):
        assert SECRET not in file.name
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()


def test_an_unreadable_column_is_shown_without_secrets(tmp_path: Path) -> None:
    spec = shop(tmp_path, timestamp="picture")
    with pytest.raises(SchemaError, match=r"https://cdn\.example\.com/1\.jpg") as error:
        read_raw_interactions(spec, tmp_path)
    assert SECRET not in str(error.value) + str(validate_source(spec, tmp_path))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (f'1,"{SIGNED}" x\n'.encode(), "text follows a closing quote"),
        (f"1,{SIGNED} caf\xe9\n".encode("latin-1"), "not text in the encoding"),
        (f"1,me:{SECRET}@cdn.example.com/{'a' * 70}?sig={SECRET} caf\xe9\n".encode("latin-1"), "not text"),
    ],
)
def test_errors_about_a_row_have_no_secrets(tmp_path: Path, row: bytes, problem: str) -> None:
    (tmp_path / "x.csv").write_bytes(b"id,url\n" + row)
    with pytest.raises(SchemaError, match=problem) as error:
        read_delimited(tmp_path / "x.csv", "x.csv", separator=",", header=True)
    assert SECRET not in str(error.value)


def test_a_guessed_data_set_has_no_secrets(tmp_path: Path) -> None:
    shop(tmp_path)
    text = guess_dataset("shop", [sample_table(tmp_path / name, tmp_path) for name in ("log.csv", "items.csv")])
    assert SECRET not in text
    assert "first values: https://cdn.example.com/" in text
