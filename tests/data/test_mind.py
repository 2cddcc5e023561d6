"""Reader `mind`: clicks, histories and news of the Microsoft News data set."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from macrec_pipeline.data.readers import mind
from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items, validate_source
from macrec_pipeline.data.readers.source_preview import preview_source
from macrec_pipeline.datasets import DatasetSpec
from macrec_pipeline.errors import MissingFileError

_NOON = 1_573_560_000_000  # 2019-11-12 12:00 UTC
_MINUTE = 60_000


def _spec(**settings: Any) -> DatasetSpec:
    return DatasetSpec.model_validate(
        {"name": "m", "title": "M", "source": {"reader": "mind", "folder": "m", **settings}}
    )


def _write(data: Path, *lines: str, folder: str = "m", news: str = "N1\tnews\tus\tTitle\tAbout\tx\t[]\t[]\n") -> None:
    (data / folder).mkdir()
    (data / folder / "behaviors.tsv").write_text("".join(f"{line}\n" for line in lines))
    (data / folder / "news.tsv").write_text(news)


def _clicks(data: Path, **settings: Any) -> list[tuple[Any, ...]]:
    return read_raw_interactions(_spec(**settings), data).select("user_id", "item_id", "timestamp", "source_row").rows()


def test_clicks_are_interactions_and_shown_news_are_not(tmp_path: Path) -> None:
    """Each click has the time of its line; a line without a click gives no row."""
    _write(tmp_path, "1\tU1\t11/12/2019 12:00:00 PM\t\tN1-1 N2-0 N-3-1", "2\tU2\t11/12/2019 12:01:00 PM\t\tN1-0")
    assert _clicks(tmp_path) == [("U1", "N1", _NOON, 1), ("U1", "N-3", _NOON, 1)]


def test_the_history_of_the_first_line_comes_before_it(tmp_path: Path) -> None:
    """The first line is the earliest one, wherever it is in the files; later copies of the history do not count."""
    _write(tmp_path, "1\tU1\t11/12/2019 12:05:00 PM\tN1 N2 N9\tN3-1", "2\tU1\t11/12/2019 12:00:00 PM\tN1 N2\tN4-0")
    assert _clicks(tmp_path) == [
        ("U1", "N3", _NOON + 5 * _MINUTE, 1),
        ("U1", "N1", _NOON - 2 * _MINUTE, 2),
        ("U1", "N2", _NOON - _MINUTE, 2),
    ]
    assert _clicks(tmp_path, history=False) == [("U1", "N3", _NOON + 5 * _MINUTE, 1)]
    _write(tmp_path, "1\tU1\t11/12/2019 11:00:00 AM\tN8\tN7-1", folder="dev")
    assert _clicks(tmp_path, folder=["m", "dev"]) == [
        ("U1", "N3", _NOON + 5 * _MINUTE, 1),
        ("U1", "N8", _NOON - 61 * _MINUTE, 1),
        ("U1", "N7", _NOON - 60 * _MINUTE, 1),
    ]


def test_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The earliest line may be in another block than the history's user."""
    lines = [f"{n}\tU{n % 7}\t11/{12 + n % 9}/2019 12:00:00 PM\tN1 N2\tN{n}-1 N0-0" for n in range(50)]
    _write(tmp_path, *lines)
    whole = _clicks(tmp_path)
    line_blocks = mind.line_blocks
    monkeypatch.setattr(mind, "line_blocks", lambda path, file: line_blocks(path, file, block_bytes=100))
    assert _clicks(tmp_path) == whole
    assert len(whole) == 50 + 2 * 7


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("2\tU1\t11/12/2019 12:00:00 PM\tN1\tN1 N2", "wrong_type: the impression 'N1' has no 0 or 1 at its end"),
        ("2\tU1\t11/12/2019 12:00:00 PM\tN1", "wrong_number_of_cells: expected 5, separated by tabs"),
        ("2\tU1\t11/12/2019 12:00:00 PM\tN1\tN1-1\tx", "wrong_number_of_cells: expected 5, separated by tabs"),
    ],
)
def test_lines_that_cannot_be_read_are_rows_with_a_problem(tmp_path: Path, line: str, problem: str) -> None:
    """Nothing is dropped in silence: the test part has no labels, and a line may be cut off."""
    _write(tmp_path, "1\tU1\t11/12/2019 12:00:00 PM\t\tN1-1", line)
    rows = read_raw_interactions(_spec(), tmp_path)
    assert rows.select("item_id", "source_row", "problem").rows() == [("N1", 1, None), (None, 2, problem)]


def test_a_time_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    """Cleaning then moves the click to quarantine as `missing_timestamp`."""
    _write(tmp_path, "1\tU1\t2019-11-12\tN5\tN1-1")
    assert _clicks(tmp_path) == [("U1", "N1", None, 1)]


def test_news_have_texts_and_categories(tmp_path: Path) -> None:
    """The title begins the text, quotes are ordinary characters, and an empty abstract is left out."""
    news = 'N1\tnews\tnewsus\tThe "Fresh start\tA &amp; B\tx\t[]\t[]\nN2\tsports\tgolf\tOpen"\t\tx\t\t\n'
    _write(tmp_path, "1\tU1\t11/12/2019 12:00:00 PM\t\tN1-1", news=news)
    items = read_raw_items(_spec(), tmp_path)
    assert items.select("item_id", "title", "text", "categories", "source_row").rows() == [
        ("N1", 'The "Fresh start', 'The "Fresh start. A & B.', ["news", "newsus"], 1),
        ("N2", 'Open"', 'Open".', ["sports", "golf"], 2),
    ]


def test_missing_and_other_files_are_problems(tmp_path: Path) -> None:
    """Validation names the file, and what was expected in it."""
    with pytest.raises(MissingFileError, match=r"m/behaviors\.tsv\.gz is also accepted"):
        read_raw_interactions(_spec(), tmp_path)
    assert len(validate_source(_spec(), tmp_path)) == 2
    _write(tmp_path, "u,i,t")
    (problem,) = validate_source(_spec(), tmp_path)
    assert problem.startswith("m/behaviors.tsv: the first line has 1 cells, expected 5")


def test_packed_files_are_read_and_previewed(tmp_path: Path) -> None:
    """`behaviors.tsv.gz` takes the place of `behaviors.tsv`, and the preview has the first clicks."""
    _write(tmp_path, "1\tU1\t11/12/2019 12:00:00 PM\tN2\tN1-1")
    plain = tmp_path / "m" / "behaviors.tsv"
    plain.with_name("behaviors.tsv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    preview = preview_source(_spec(image="m/{item_id}.jpg"), tmp_path)
    assert preview.interactions["item_id"].to_list() == ["N2", "N1"]
    assert preview.images_tried == ("m/N1.jpg",)
    assert preview.match is not None
    assert preview.match.log_examples == ("N2",)
