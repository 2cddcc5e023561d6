"""Images are found by item id, and never outside their folder."""

from pathlib import Path

import polars as pl
import pytest

from macrec_pipeline.data.readers.image_files import existing_images, image_folder


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A data folder with two images, and other files inside and beside it."""
    data = tmp_path / "data"
    (data / "shop" / "posters" / "sub").mkdir(parents=True)
    (data / "shop" / "posters" / "1.jpg").touch()
    (data / "shop" / "posters" / "sub" / "2.jpg").touch()
    (data / "shop" / "inside.jpg").touch()
    (tmp_path / "outside.jpg").touch()
    return data


def _image_paths(ids: list[str | None], data: Path, template: str = "shop/posters/{item_id}.jpg") -> list[str | None]:
    return existing_images(pl.Series(ids, dtype=pl.String), template, data).to_list()


def test_paths_are_relative_to_the_data_folder(shop: Path) -> None:
    """Without a file, or without an id, the path is null."""
    assert _image_paths(["1", "7", None, "sub/2"], shop) == [
        "shop/posters/1.jpg",
        None,
        None,
        "shop/posters/sub/2.jpg",
    ]


@pytest.mark.parametrize(
    "attack", ["../inside", "../../../outside", "/etc/hostname", "sub/../1", "1\x00", "x" * 5000, ".", ""]
)
def test_ids_cannot_reach_other_files(shop: Path, attack: str) -> None:
    """Whatever the id contains, no path outside the image folder is returned and nothing is raised."""
    assert _image_paths([attack], shop) == [None]
    assert _image_paths([str(shop.parent / "outside")], shop, "{item_id}.jpg") == [None]


def test_links_must_not_leave_the_image_folder(shop: Path, tmp_path: Path) -> None:
    """A link inside the image folder that leads out of it is ignored; the folder itself may be a link."""
    (shop / "shop" / "posters" / "9.jpg").symlink_to(tmp_path / "outside.jpg")
    assert _image_paths(["9"], shop) == [None]
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    (elsewhere / "linked").symlink_to(shop / "shop")
    assert _image_paths(["1", "9"], elsewhere, "linked/posters/{item_id}.jpg") == ["linked/posters/1.jpg", None]


def test_the_image_folder_is_the_fixed_part_of_the_template() -> None:
    """The image folder ends before the first part of the template that contains {item_id}."""
    assert image_folder("a/b/{item_id}.jpg") == "a/b"
    assert image_folder("a/{item_id}/front.jpg") == "a"
    assert image_folder("{item_id}.jpg") == "."


def test_an_id_that_looks_like_the_file_name_of_another_id_does_not_get_its_image(shop: Path) -> None:
    """`a%2Fb.jpg` belongs to the item `a/b`; the item `a%2Fb` only has `a%252Fb.jpg`."""
    posters = shop / "shop" / "posters"
    (posters / "a%2Fb.jpg").touch()
    assert _image_paths(["a/b", "a%2Fb"], shop) == ["shop/posters/a%2Fb.jpg", None]
    (posters / "a%252Fb.jpg").touch()
    (posters / "100%.jpg").touch()  # not the encoded name of any other id
    assert _image_paths(["a%2Fb", "100%"], shop) == ["shop/posters/a%252Fb.jpg", "shop/posters/100%.jpg"]
