"""`macrec fetch images`: from the published files to images that the catalogue finds."""

import json
from pathlib import Path

import polars as pl
import pytest

from macrec_pipeline.cli import main
from macrec_pipeline.data.readers.registry import read_raw_items
from macrec_pipeline.datasets import load_dataset
from tests.data.image_server import serving


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set in the 2018 format: five items that every user rated and one without ratings."""
    folder = tmp_path / "data" / "az"
    folder.mkdir(parents=True)
    ratings = [f"B{item},A{user},5.0,{1393545600 + item}" for user in range(5) for item in range(5)]
    (folder / "X.csv").write_text("\n".join(ratings))
    (tmp_path / "sets").mkdir()
    for name, source in {
        "az": "{reader: amazon2018, folder: az, prefix: X}",
        "ml": "{reader: movielens, folder: ml, layout: 1m}",
    }.items():
        (tmp_path / "sets" / f"{name}.yaml").write_text(f"name: {name}\ntitle: t\nsource: {source}\n")
    monkeypatch.setenv("MACREC_DATASETS", str(tmp_path / "sets"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "data"


def _fetch(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["fetch", "images", *arguments])
    return int(ended.value.code or 0)


def test_fetched_images_appear_in_the_catalogue(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images of items that remain after cleaning are fetched, failures have a reason, --all fetches the others too."""
    with serving() as server:
        items = [
            {"asin": f"B{number}", "title": "t", "imageURLHighRes": [server.url("color?red")]} for number in range(6)
        ]
        items[1]["imageURLHighRes"] = [server.url("missing")]
        items[2]["imageURLHighRes"] = []
        (shop / "az" / "meta_X.json").write_text("\n".join(map(json.dumps, items)))
        assert _fetch("az", "--data", str(shop)) == 0
        assert "private_address" in capsys.readouterr().out
        assert not server.num_requests
        assert _fetch("az", "--data", str(shop), "--allow-private") == 0
        output = capsys.readouterr().out
        assert "5 items: 3 images downloaded, 0 already present, 1 failed, 1 without a URL." in output
        assert "http_404" in output
        assert server.num_requests == {"/color": 3, "/missing": 1}
        assert _fetch("az", "--data", str(shop), "--all", "--allow-private") == 0
        assert "6 items: 1 images downloaded, 3 already present" in capsys.readouterr().out
    paths = read_raw_items(load_dataset("az"), shop)["image_path"]
    assert paths.to_list() == ["az/images/B0.jpg", None, None, *(f"az/images/B{number}.jpg" for number in (3, 4, 5))]
    table = pl.read_parquet(shop / "az" / "images" / ".fetch" / "failures.parquet")
    assert table.select("item_id", "reason").rows() == [("B1", "http_404")]


def test_a_data_set_without_addresses_says_what_to_add(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message on standard error names the data set and the setting or the missing file."""
    assert _fetch("ml", "--data", str(shop)) == 2
    assert "The data set ml has no image addresses (reader movielens)" in capsys.readouterr().err
    assert _fetch("az", "--data", str(shop)) == 2
    assert "meta_X.json does not exist" in capsys.readouterr().err
