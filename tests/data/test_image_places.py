"""Where the reader `tables` finds images: subfolders, several endings, and a column of files."""

from pathlib import Path
from typing import Any

import pytest

from macrec_pipeline.data.readers.registry import open_reader, read_raw_items, source_notices, validate_source
from macrec_pipeline.datasets import DatasetSpec


def _spec(**items: Any) -> DatasetSpec:
    source = {
        "reader": "tables",
        "interactions": {"file": "log.csv", "user_id": "u", "item_id": "i", "timestamp": "t"},
        "items": {"file": "items.csv", "item_id": "id", "title": "name", **items},
    }
    return DatasetSpec.model_validate({"name": "s", "title": "S", "source": source})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with images in subfolders, named by the beginning of the id, with two endings."""
    (tmp_path / "log.csv").write_text("u,i,t\n1,0101,5\n")
    (tmp_path / "items.csv").write_text("id,name,photo\n0101,Ball,010/0101.jpg\n0202,Kite,020/0202.png\n03,Top,\n")
    for name in ("010/0101.jpg", "020/0202.png", "outside.jpg"):
        path = tmp_path / "pics" / name if "/" in name else tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def _paths(data: Path, **items: Any) -> list[str | None]:
    assert validate_source(_spec(**items), data) == []
    return read_raw_items(_spec(**items), data)["image_path"].to_list()


def test_subfolders_and_endings_are_found(data: Path) -> None:
    """The beginning of the id names the subfolder, and a list of places has several endings."""
    places = ["pics/{item_id[:3]}/{item_id}.jpg", "pics/{item_id[:3]}/{item_id}.png"]
    assert _paths(data, image=places[0]) == ["pics/010/0101.jpg", None, None]
    assert _paths(data, image=places) == ["pics/010/0101.jpg", "pics/020/0202.png", None]
    assert open_reader(_spec(image=places, image_url="photo"), data).image_template() == places[0]


def test_a_column_names_the_files(data: Path) -> None:
    """The paths are below a folder, and must not lead out of it."""
    assert _paths(data, image_file="photo", image_folder="pics") == ["pics/010/0101.jpg", "pics/020/0202.png", None]
    (data / "items.csv").write_text("id,name,photo\n1,Ball,../outside.jpg\n2,Kite,/etc/hostname\n")
    assert _paths(data, image_file="photo", image_folder="pics") == [None, None]


def test_missing_images_are_counted_and_shown(data: Path) -> None:
    """The notice says how many of how many were found, and shows two addresses that were tried."""
    (notice,) = source_notices(_spec(image="pics/{item_id}.jpg"), data)
    assert notice.startswith("0 of 3 items have an image. Not found, for example: ")
    assert f"{data}/pics/0101.jpg, {data}/pics/0202.jpg." in notice
    (notice,) = source_notices(_spec(image_file="photo", image_folder="pics"), data)
    assert notice.startswith("2 of 3 items have an image.")
    assert "Examples: 03." in notice
    (data / "items.csv").write_text("id,name,photo\n0101,Ball,\n")
    assert source_notices(_spec(image="pics/{item_id[:3]}/{item_id}.jpg"), data) == []
    assert source_notices(_spec(), data) == []


def test_the_settings_are_checked(data: Path) -> None:
    """A column of files needs their folder, and takes the place of `image`; the folder and column must exist."""
    for changes, message in (
        ({"image_file": "photo"}, "belong together"),
        ({"image_file": "photo", "image_folder": "pics", "image": "{item_id}.jpg"}, "exclude each other"),
    ):
        with pytest.raises(ValueError, match=message):
            _spec(**changes)
    (problem,) = validate_source(_spec(image_file="photo", image_folder="nowhere"), data)
    assert "nowhere for the images does not exist (source.items.image_folder)" in problem
    (problem,) = validate_source(_spec(image_file="foto", image_folder="pics"), data)
    assert "no column 'foto'" in problem
