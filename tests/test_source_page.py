"""The page of `macrec datasets validate`."""

from pathlib import Path

import pytest

from macrec_pipeline.cli import main

_YAML = """
name: shop
title: Shop
source:
  reader: tables
  interactions:
    {file: log, separator: ";", decimal: ",", user_id: u, item_id: i, timestamp: t, timestamp_unit: ms, rating: r}
  items: {file: items.csv, item_id: id, title: name, texts: [about], image_url: photo, image: "pics/{item_id}.jpg"}
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shop with a log of two days, ids without their zeros, HTML, and times in seconds instead of milliseconds."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "shop.yaml").write_text(_YAML)
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "1.csv").write_text("u;i;t;r\n[red]ann;15;1704103200000;4,5\nbob;16;1704103200000;good\n")
    (tmp_path / "log" / "2.csv").write_text("u;i;t;r\nann;15;1704103200;2\n")
    rows = 'id,name,about,photo\n0015,Ball,<p>Round &amp; <b>soft</b></p>,"https://x/1.jpg, https://x/2.jpg"\n'
    (tmp_path / "items.csv").write_text(rows + "0016,Kite,,\n0017,Top,,\n")
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "0015.jpg").write_text("x")
    monkeypatch.setenv("MACREC_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("COLUMNS", "90")
    return tmp_path


def _validate(shop: Path, capsys: pytest.CaptureFixture[str], *names: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["datasets", "validate", *names, "--data", str(shop)])
    return int(ended.value.code or 0), capsys.readouterr().out


def test_the_page_shows_how_each_column_was_understood(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids, times in UTC, ratings, texts without HTML, addresses, images and the share of ids that match."""
    status, out = _validate(shop, capsys, "shop")
    assert status == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in (
        "shop: ready",
        "Interactions: 3 rows, at most the first 1,000 of each of 2 files",
        "user_id 3 users: [red]ann, bob, ann",
        "rating 2 to 4.5, mean 3.25; 1 missing",
        "2 [red]ann 15 2024-01-01 10:00:00 4.5",
        "log/2.csv 1 1970-01-20 17:21:43 1970-01-20 17:21:43",
        "Items: the first 3 rows of items.csv",
        "text Ball. Round & soft.",
        "address https://x/1.jpg and 1 more",
        "image pics/0015.jpg",
        "Match: 0 of 3 interactions (0.0%) name an item of the catalogue (3 ids).",
        "only in the log in the catalogue",
        "15 0015",
        "They match without zeros in front: export both files with the same spelling.",
        f"Images: found for 1 of 3 items. Looked for below {shop.resolve()}, for example:",
        "pics/0016.jpg",
        "pics/0017.jpg",
    ):
        assert line in " ".join(lines)
    assert "check `timestamp_unit`" in out
    assert "'good' in row 3 of log/1.csv" in " ".join(lines)
    assert max(map(len, out.splitlines())) <= 90


def test_without_names_only_the_unusual_is_shown(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of many data sets stays readable, and the images and ids that do not match are still told."""
    status, out = _validate(shop, capsys)
    flat = " ".join(out.split())
    assert status == 0
    assert "Images were found for 1 of 3 items." in flat
    assert "Only the log has ids such as '15', '16'; the catalogue has '0015', '0016'." in flat
    assert "Round & soft" not in flat


def test_a_data_set_without_a_usable_row_is_not_ready(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit status says so, and the page still shows what was read."""
    (shop / "items.csv").write_text("id,name,about,photo\n,Ball,,\n")
    status, out = _validate(shop, capsys, "shop")
    assert status == 2
    assert "shop: not ready" in out
    assert "The catalogue has no usable row: 1 of the 1 rows that were read." in " ".join(out.split())
    assert "[red]ann" in out
