"""New source data is detected by its content, once the files are complete."""

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


def _check_repeatedly(file: Path, known: KnownFiles, times: int = 2) -> tuple[KnownFiles, list[bool]]:
    """Check several times, each from the JSON of the state before."""
    results = []
    for _ in range(times):
        known, new = find_changed_files([file], KnownFiles.from_json(known.to_json()))
        results.append(new)
    return known, results


def test_a_file_is_new_once_it_has_stopped_changing(file: Path) -> None:
    """A changed file is not new at the first check, is new at the second, and is never reported again."""
    known, results = _check_repeatedly(file, KnownFiles(), 4)
    assert results == [False, True, False, False]
    assert known.arrivals == 1


def test_an_incomplete_copy_is_not_used(file: Path) -> None:
    """As long as the file grows from check to check, it is not even read."""
    known, _ = _check_repeatedly(file, KnownFiles())
    before = known.digest
    for size in range(2, 6):
        file.write_text("b" * size)
        known, new = find_changed_files([file], known)
        assert not new
        assert known.digest == before
    known, results = _check_repeatedly(file, known)
    assert results == [True, False]


def test_the_same_content_is_not_new(file: Path) -> None:
    """A file that is only touched, or replaced by a copy, is not new."""
    known, _ = _check_repeatedly(file, KnownFiles())
    os.utime(file, ns=(1, 1))
    known, results = _check_repeatedly(file, known, 3)
    assert results == [False, False, False]
    copy = file.with_name("copy")
    copy.write_text("a")
    os.utime(copy, ns=(1, 1))
    copy.replace(file)
    assert _check_repeatedly(file, known, 3)[1] == [False, False, False]


def test_new_content_of_equal_size_and_time_is_new(file: Path) -> None:
    """A replaced file that keeps size and time, as rsync can do, has another inode."""
    known, _ = _check_repeatedly(file, KnownFiles())
    stat, other = file.stat(), file.with_name("other")
    other.write_text("b")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)
    assert _check_repeatedly(file, known)[1] == [False, True]


def test_earlier_content_that_comes_back_is_new(file: Path) -> None:
    """After a wrong delivery is undone, the content equals that of the first arrival, but the arrival is the third."""
    digests, arrivals, known = [], [], KnownFiles()
    for content in ("a", "wrong", "a"):
        file.write_text(content)
        known, results = _check_repeatedly(file, known)
        assert results == [False, True]
        digests.append(known.digest)
        arrivals.append(known.arrivals)
    assert digests[0] == digests[2] != digests[1]
    assert arrivals == [1, 2, 3]


def test_a_file_that_changes_while_it_is_read_is_not_used(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest may mix both states, so the file is checked again."""
    known, _ = _check_repeatedly(file, KnownFiles(), 1)
    monkeypatch.setattr("macrec_pipeline.data.new_data._digest", lambda files: file.write_text("while it was read"))
    known, results = _check_repeatedly(file, known, 1)
    assert results == [False]
    assert known.seen == ()


@pytest.mark.parametrize("name", dataset_names())
def test_every_data_set_reports_its_source_files(name: str, tmp_path: Path) -> None:
    """A missing file is named in the error; once all exist, the files of interactions and items are returned."""
    spec = load_dataset(name)
    for _ in range(5):
        try:
            files = source_files(spec, tmp_path)
        except MissingFileError as error:
            path = Path(str(error).split(" does not exist")[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        else:
            break
    assert 2 <= len(files) <= 3
    assert set(files) == {path for path in tmp_path.rglob("*") if path.is_file()}
