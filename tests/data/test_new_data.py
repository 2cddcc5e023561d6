"""New raw data is noticed by its content, once it is whole."""

import os
from pathlib import Path

import pytest

from macrec_pipeline.data.new_data import KnownFiles, find_changed_files
from macrec_pipeline.data.readers.registry import source_files
from macrec_pipeline.datasets import dataset_names, load_dataset
from macrec_pipeline.errors import MissingFileError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text("a")
    return path


def _looks(file: Path, known: KnownFiles, times: int = 2) -> tuple[KnownFiles, list[bool]]:
    """Looks in turn, each from what the one before wrote down."""
    verdicts = []
    for _ in range(times):
        known, new = find_changed_files([file], KnownFiles.from_json(known.to_json()))
        verdicts.append(new)
    return known, verdicts


def test_a_file_is_new_once_it_has_kept_still(file: Path) -> None:
    """Not at the first look, at the second, and never again."""
    known, verdicts = _looks(file, KnownFiles(), 4)
    assert verdicts == [False, True, False, False]
    assert known.arrivals == 1


def test_a_copy_that_is_under_way_is_not_taken(file: Path) -> None:
    """As long as it grows from look to look it is not even read."""
    known, _ = _looks(file, KnownFiles())
    before = known.digest
    for size in range(2, 6):
        file.write_text("b" * size)
        known, new = find_changed_files([file], known)
        assert not new
        assert known.digest == before
    known, verdicts = _looks(file, known)
    assert verdicts == [True, False]


def test_the_same_content_is_nothing_new(file: Path) -> None:
    """A file that is only touched, or copied again, starts nothing."""
    known, _ = _looks(file, KnownFiles())
    os.utime(file, ns=(1, 1))
    known, verdicts = _looks(file, known, 3)
    assert verdicts == [False, False, False]
    copy = file.with_name("copy")
    copy.write_text("a")
    os.utime(copy, ns=(1, 1))
    copy.replace(file)
    assert _looks(file, known, 3)[1] == [False, False, False]


def test_content_of_like_size_and_time_is_new(file: Path) -> None:
    """A file that is put in the place of another with the other's time, as rsync does, is another inode."""
    known, _ = _looks(file, KnownFiles())
    stat, other = file.stat(), file.with_name("other")
    other.write_text("b")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)
    assert _looks(file, known)[1] == [False, True]


def test_what_comes_back_is_new_again(file: Path) -> None:
    """A wrong delivery that is taken back: the third state has the first one's content and another number."""
    digests, numbers, known = [], [], KnownFiles()
    for content in ("a", "wrong", "a"):
        file.write_text(content)
        known, verdicts = _looks(file, known)
        assert verdicts == [False, True]
        digests.append(known.digest)
        numbers.append(known.arrivals)
    assert digests[0] == digests[2] != digests[1]
    assert numbers == [1, 2, 3]


def test_a_file_that_changes_while_it_is_read_is_not_taken(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read may be of both states, so it is looked at again."""
    known, _ = _looks(file, KnownFiles(), 1)
    monkeypatch.setattr("macrec_pipeline.data.new_data._digest", lambda files: file.write_text("while it was read"))
    known, verdicts = _looks(file, known, 1)
    assert verdicts == [False]
    assert known.seen == ()


@pytest.mark.parametrize("name", dataset_names())
def test_every_data_set_names_its_files_or_says_that_they_are_missing(name: str, tmp_path: Path) -> None:
    """In an empty folder the first file is named; with all of them there, those of interactions and items are given."""
    spec = load_dataset(name)
    for _ in range(5):
        try:
            files = source_files(spec, tmp_path)
        except MissingFileError as error:
            path = Path(str(error).split(" is not there")[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        else:
            break
    assert 2 <= len(files) <= 3
    assert set(files) == {path for path in tmp_path.rglob("*") if path.is_file()}
