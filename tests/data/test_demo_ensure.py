"""The demo shop as files: deterministic, written completely or not at all, and with the documented flaws."""

import hashlib
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.data.demo import ensure
from macrec_pipeline.data.demo.ensure import ensure_demo
from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items, validate_source
from macrec_pipeline.datasets import DatasetSpec, DemoSource
from macrec_pipeline.errors import DataError

_SMALL = DemoSource(reader="demo", folder="shop", num_items=60, num_users=25, seed=3)


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_parameters_give_the_same_bytes(tmp_path: Path) -> None:
    """Every file is identical in two folders, and another seed changes the log, the order of texts and the images."""
    first = _digests(ensure_demo(_SMALL, tmp_path / "one"))
    assert first == _digests(ensure_demo(_SMALL, tmp_path / "two"))
    other = _digests(ensure_demo(_SMALL.model_copy(update={"seed": 4}), tmp_path / "three"))
    assert all(first[name] != other[name] for name in ("items.csv", "interactions.csv"))
    assert sum(first.get(name) != digest for name, digest in other.items() if name.startswith("pictures/")) > 50


def test_the_shop_is_written_again_only_if_parameters_change(tmp_path: Path) -> None:
    """With the same parameters, an existing shop stays untouched; with others, the whole folder is replaced."""
    folder = ensure_demo(_SMALL, tmp_path)
    (folder / "mark").touch()
    assert ensure_demo(_SMALL, tmp_path) == folder
    assert (folder / "mark").exists()
    ensure_demo(_SMALL.model_copy(update={"num_users": 26}), tmp_path)
    assert not (folder / "mark").exists()
    assert json.loads((folder / "shop.json").read_text())["num_users"] == 26
    assert sorted(path.name for path in tmp_path.iterdir()) == [".shop.lock", "shop"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    """A half-written folder is neither taken for a shop nor left behind."""
    (tmp_path / ".shop.new" / "pictures").mkdir(parents=True)
    (tmp_path / ".shop.old").mkdir()
    ensure_demo(_SMALL, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".shop.lock", "shop"]


def test_a_failure_keeps_the_old_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If writing the new shop fails, the old one is still there and complete."""
    folder = ensure_demo(_SMALL, tmp_path)
    before = _digests(folder)

    def disk_full(source: DemoSource, folder: Path) -> None:
        (folder / "items.csv").write_text("item_id\n")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ensure, "write_shop", disk_full)
    with pytest.raises(DataError, match=r"No space left.*MACREC_DATA"):
        ensure_demo(_SMALL.model_copy(update={"seed": 9}), tmp_path)
    assert _digests(folder) == before


def test_a_folder_that_is_no_demo_shop_is_left_alone(tmp_path: Path) -> None:
    """A folder without the generator's parameters file is never replaced."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="is not a generated demo shop"):
        ensure_demo(_SMALL, tmp_path)
    assert (tmp_path / "shop" / "thesis.txt").read_text() == "mine"


def test_two_concurrent_processes_write_one_complete_shop(tmp_path: Path) -> None:
    """Two concurrent processes both succeed, and the files are those of a single process."""
    program = (
        "import sys; from pathlib import Path; from macrec_pipeline.data.demo.ensure import ensure_demo;"
        "from macrec_pipeline.datasets import DemoSource;"
        "source = DemoSource.model_validate_json(sys.argv[1]); ensure_demo(source, Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, _SMALL.model_dump_json(), str(tmp_path / "race")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert _digests(tmp_path / "race" / "shop") == _digests(ensure_demo(_SMALL, tmp_path / "alone"))


def test_after_waiting_for_the_lock_nothing_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two concurrent calls finds the shop that the first has written."""
    written: list[Path] = []

    def write_slowly(source: DemoSource, folder: Path) -> None:
        time.sleep(0.2)
        written.append(folder)

    monkeypatch.setattr(ensure, "write_shop", write_slowly)
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: ensure_demo(_SMALL, tmp_path), range(2)))
    assert folders == [tmp_path / "shop"] * 2
    assert len(written) == 1


@pytest.fixture(scope="module")
def full_shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetSpec, Path]:
    """The shop of `datasets/demo.yaml`, written to disk."""
    spec = DatasetSpec(name="demo", title="Demo", preset="demo", k_core=5, source=DemoSource(reader="demo"))
    data_dir = tmp_path_factory.mktemp("data")
    assert validate_source(spec, data_dir) == []
    ensure_demo(spec.source, data_dir)
    return spec, data_dir


def test_the_files_have_a_few_flaws(full_shop: tuple[DatasetSpec, Path]) -> None:
    """Each kind of flaw ends in quarantine, and little else does."""
    spec, data_dir = full_shop
    result = clean(read_raw_interactions(spec, data_dir), read_raw_items(spec, data_dir), spec.config().cleaning)
    reasons = dict(result.quarantine.group_by("reason").len().iter_rows())
    assert {"duplicate", "unknown_item", "missing_timestamp", "timestamp_out_of_range", "duplicate_item"} <= set(
        reasons
    )
    assert result.quarantine.height < 100
    assert result.items.height >= 595
    assert result.interactions["user_id"].n_unique() == 1500
    assert 19_000 < result.interactions.height < 23_000


def test_some_items_lack_an_image_or_a_text_but_none_lacks_both(full_shop: tuple[DatasetSpec, Path]) -> None:
    """2.5% of the items have no image and 2% no text, and the images of the others can be opened."""
    spec, data_dir = full_shop
    items = read_raw_items(spec, data_dir).unique("item_id")
    assert items["image_path"].null_count() == 15
    assert items["text"].null_count() == 12
    assert items.filter(pl.col("image_path").is_null() & pl.col("text").is_null()).is_empty()
    for path in items["image_path"].drop_nulls().head(20):
        with Image.open(data_dir / path) as image:
            assert image.format == "JPEG"
            assert image.size == (96, 96)
    assert items["text"].drop_nulls().n_unique() == 588


def test_a_data_folder_that_is_not_writable_is_an_error(tmp_path: Path) -> None:
    """The message names MACREC_DATA."""
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="MACREC_DATA"):
        ensure_demo(_SMALL, tmp_path / "file" / "data")
