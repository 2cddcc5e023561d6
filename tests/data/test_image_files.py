"""Pictures are found by item id and never outside their folder."""

from pathlib import Path

import polars as pl
import pytest

from macrec_pipeline.data.readers.image_files import existing_images, image_folder


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A data folder with one picture, and secrets in and beside it."""
    data = tmp_path / "data"
    (data / "shop" / "posters" / "sub").mkdir(parents=True)
    (data / "shop" / "posters" / "1.jpg").touch()
    (data / "shop" / "posters" / "sub" / "2.jpg").touch()
    (data / "shop" / "inside.jpg").touch()
    (tmp_path / "outside.jpg").touch()
    return data


def _found(ids: list[str | None], data: Path, template: str = "shop/posters/{item_id}.jpg") -> list[str | None]:
    return existing_images(pl.Series(ids, dtype=pl.String), template, data).to_list()


def test_paths_are_relative_and_absent_ones_null(shop: Path) -> None:
    """The path is relative to the data folder; without a file, or without an id, it is null."""
    assert _found(["1", "7", None, "sub/2"], shop) == [
        "shop/posters/1.jpg",
        None,
        None,
        "shop/posters/sub/2.jpg",
    ]


@pytest.mark.parametrize(
    "attack", ["../inside", "../../../outside", "/etc/hostname", "sub/../1", "1\x00", "x" * 5000, ".", ""]
)
def test_ids_cannot_reach_other_files(shop: Path, attack: str) -> None:
    """Whatever an id says, nothing outside the pictures' folder is named and nothing is raised."""
    assert _found([attack], shop) == [None]
    assert _found([str(shop.parent / "outside")], shop, "{item_id}.jpg") == [None]


def test_links_lead_nowhere_else_but_the_folder_may_be_one(shop: Path, tmp_path: Path) -> None:
    """A link among the pictures that leaves the folder is refused; a data set that is a link as a whole works."""
    (shop / "shop" / "posters" / "9.jpg").symlink_to(tmp_path / "outside.jpg")
    assert _found(["9"], shop) == [None]
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    (elsewhere / "linked").symlink_to(shop / "shop")
    assert _found(["1", "9"], elsewhere, "linked/posters/{item_id}.jpg") == ["linked/posters/1.jpg", None]


def test_folder_of_a_template() -> None:
    """It ends before the first part that depends on the item."""
    assert image_folder("a/b/{item_id}.jpg") == "a/b"
    assert image_folder("a/{item_id}/front.jpg") == "a"
    assert image_folder("{item_id}.jpg") == "."


def test_an_id_that_reads_like_another_ids_name_does_not_get_its_picture(shop: Path) -> None:
    """`a%2Fb.jpg` was fetched for `a/b`; the item `a%2Fb` has `a%252Fb.jpg`, and without that none."""
    posters = shop / "shop" / "posters"
    (posters / "a%2Fb.jpg").touch()
    assert _found(["a/b", "a%2Fb"], shop) == ["shop/posters/a%2Fb.jpg", None]
    (posters / "a%252Fb.jpg").touch()
    (posters / "100%.jpg").touch()  # the shop's own name, which is no other id's
    assert _found(["a%2Fb", "100%"], shop) == ["shop/posters/a%252Fb.jpg", "shop/posters/100%.jpg"]
