"""The store: what is written is read back, versions are replaced atomically, and damage is reported."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from macrec_pipeline.errors import MacrecError, SchemaError, StorageError
from macrec_pipeline.schemas import EARLIEST_MS, INTERACTIONS, SIDE_TABLES, TABLES
from macrec_pipeline.storage import FOLDER_ASSETS, AssetStore


def interactions(*rows: tuple[str, str, int]) -> pl.DataFrame:
    return pl.DataFrame(
        [(user, item, None, EARLIEST_MS + time) for user, item, time in rows],
        schema=INTERACTIONS.columns,
        orient="row",
    )


ONE = interactions(("u1", "a", 1), ("u1", "b", 2))
TWO = interactions(("u1", "a", 1), ("u2", "b", 2))
THREE = interactions(("u1", "a", 1), ("u3", "b", 2))


# Tests that look into or damage files take `folder_store`; damage at a URL is tested in test_remote_versions.py.
@pytest.fixture
def folder_store(tmp_path: Path) -> AssetStore:
    return AssetStore(tmp_path, "demo")


def stored_versions(store: AssetStore, asset: str) -> set[str]:
    """Return the names of the asset's versions on this machine, and of any leftovers beside them."""
    folder = store.location(asset).parent / ".versions" / asset
    expected = ("store.lock", "publishing.lock", "copying.lock", "previous")
    return {path.name for path in folder.iterdir() if path.name not in expected}


def test_a_table_comes_back_as_it_was_written(store: AssetStore) -> None:
    """What is read equals what was written, and the file has the documented path."""
    store.write_table("interactions", ONE, details={"source": "here"})
    assert store.read_table("interactions").equals(ONE)
    assert store.manifest("interactions").details == {"source": "here"}
    assert (store.location("interactions") / "interactions.parquet").is_file()


def retired_ids(*item_ids: str) -> pl.DataFrame:
    rows = [(item_id, [code], [code], False, True, 5) for code, item_id in enumerate(item_ids)]
    return pl.DataFrame(rows, schema=SIDE_TABLES["retired_ids"].columns, orient="row")


def test_a_side_table_is_stored_in_the_same_version(store: AssetStore) -> None:
    """A side table is hashed, verified and checked against its schema like the table; one without rows is left out."""
    alone = store.write_table("interactions", ONE)
    assert store.write_table("interactions", ONE, beside={"retired_ids": retired_ids()}).digest == alone.digest
    assert store.read_beside("interactions", "retired_ids").equals(retired_ids())
    both = store.write_table("interactions", ONE, beside={"retired_ids": retired_ids("a", "b")})
    assert both.files.keys() == {"interactions.parquet", "retired_ids.parquet"}
    assert store.read_beside("interactions", "retired_ids").equals(retired_ids("a", "b"))
    with pytest.raises(SchemaError, match=r"retired_ids .*must be unique"):
        store.write_table("interactions", TWO, beside={"retired_ids": retired_ids("a", "a")})
    assert store.manifest("interactions").digest == both.digest
    file = store.location("interactions") / "retired_ids.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"retired_ids\.parquet was changed"):
        store.read_beside("interactions", "retired_ids")


def test_the_digest_is_computed_as_documented(store: AssetStore) -> None:
    """The digest is the SHA-256 of the sorted (name, SHA-256) pairs, computed here from the written bytes."""
    with store.new_folder("quantizer") as folder:
        (folder / "a").mkdir()
        (folder / "a" / "b.bin").write_bytes(b"b")
        (folder / "a.json").write_text("{}")
    pairs = [["a.json", hashlib.sha256(b"{}").hexdigest()], ["a/b.bin", hashlib.sha256(b"b").hexdigest()]]
    manifest = store.manifest("quantizer")
    assert manifest.digest == hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
    assert manifest.files == dict(pairs)
    assert store.folder("quantizer").name == manifest.digest[:16]


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    """Neither how a table is chunked in memory nor its details change the file or the digest."""
    chunked = pl.concat([ONE[:1], ONE[1:]], rechunk=False)
    first = AssetStore(tmp_path / "one", "demo").write_table("interactions", ONE, details={"run": 1})
    second = AssetStore(tmp_path / "two", "demo").write_table("interactions", chunked, details={"run": 2})
    assert first.digest == second.digest
    assert AssetStore(tmp_path / "one", "demo").write_table("interactions", TWO).digest != first.digest


def test_rewriting_the_same_content_keeps_the_version_and_updates_the_details(store: AssetStore) -> None:
    """A second write of equal bytes changes the details only, and the previous version is kept."""
    store.write_table("interactions", ONE)
    store.write_table("interactions", TWO, details={"run": 1})
    before = stored_versions(store, "interactions")
    store.write_table("interactions", TWO, details={"run": 2})
    assert stored_versions(store, "interactions") == before
    assert store.manifest("interactions").details == {"run": 2}


def test_the_current_and_the_previous_version_are_kept(store: AssetStore) -> None:
    """A reader of the previous version is not disturbed, while older versions are removed."""
    first = store.write_table("interactions", ONE)
    first_folder = store.folder("interactions")
    second = store.write_table("interactions", TWO)
    assert (first_folder / "interactions.parquet").is_file()
    third = store.write_table("interactions", THREE)
    assert not first_folder.exists()
    assert stored_versions(store, "interactions") == {second.digest[:16], third.digest[:16]}
    assert first.digest[:16] not in stored_versions(store, "interactions")


def test_writing_the_previous_content_makes_it_current_again(store: AssetStore) -> None:
    """The two versions swap places: the one that was current becomes the previous one."""
    first = store.write_table("interactions", ONE)
    second = store.write_table("interactions", TWO)
    store.write_table("interactions", ONE)
    assert store.read_table("interactions").equals(ONE)
    assert stored_versions(store, "interactions") == {first.digest[:16], second.digest[:16]}


def test_a_missing_asset_says_what_to_run(store: AssetStore) -> None:
    """The message names the command that creates the asset."""
    assert not store.has("raw_items")
    with pytest.raises(
        StorageError,
        match=r"^raw_items of demo does not exist yet: run `macrec run demo`, or the job full_pipeline in the UI\.$",
    ):
        store.read_table("raw_items")


@pytest.mark.parametrize("asset", ["../items", "items/../../x", "", "/etc/passwd", "Items", "nonsense", "."])
def test_an_unknown_asset_is_rejected(store: AssetStore, asset: str) -> None:
    """Only the names of the pipeline's assets are accepted, so no name leads out of the folder."""
    for method in (store.location, store.has, store.folder, store.manifest, store.read_table):
        with pytest.raises(StorageError, match=r"is not .* of the store\. Use one of: "):
            method(asset)
    with pytest.raises(StorageError, match="is not a folder"), store.new_folder(asset):
        pass


@pytest.mark.parametrize("dataset", ["..", "a/b", "", "Demo", ".hidden", "a b", "-x", "demo\n"])
def test_an_invalid_data_set_name_is_rejected(tmp_path: Path, dataset: str) -> None:
    """A data set's name becomes part of a path, so it must match its pattern."""
    with pytest.raises(StorageError, match="is not a valid name for a data set"):
        AssetStore(tmp_path, dataset)


def test_tables_and_folders_are_not_mixed_up(store: AssetStore) -> None:
    """A table's name is rejected for a folder and vice versa, and the error lists the valid names."""
    with (
        pytest.raises(StorageError, match=r"'items' is not a folder of the store.*quantizer"),
        store.new_folder("items"),
    ):
        pass
    with pytest.raises(StorageError, match=r"'quantizer' is not a table of the store.*raw_items"):
        store.write_table("quantizer", ONE)


def test_a_table_that_breaks_its_schema_is_not_written(store: AssetStore) -> None:
    """A table that breaks its schema leaves no trace, and the earlier version stays current."""
    store.write_table("interactions", ONE)
    before = stored_versions(store, "interactions")
    with pytest.raises(SchemaError, match=r"interactions .*demo.*: columns are"):
        store.write_table("interactions", TWO.drop("rating"))
    assert stored_versions(store, "interactions") == before
    assert store.read_table("interactions").equals(ONE)


def test_a_table_of_another_schema_is_not_read(store: AssetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an update of the package, the error names the file and the command to run."""
    with monkeypatch.context() as patch:
        patch.setitem(TABLES, "interactions", TABLES["items"])
        store.write_table("interactions", TABLES["items"].empty())
    with pytest.raises(SchemaError, match=r"interactions\.parquet.*columns are.*run `macrec run demo`"):
        store.read_table("interactions")


def test_a_changed_byte_is_detected(folder_store: AssetStore) -> None:
    """The error names the damaged file and the command to run, and writing the asset again repairs it."""
    folder_store.write_table("interactions", ONE)
    path = folder_store.folder("interactions") / "interactions.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StorageError, match=r"interactions\.parquet was changed after.*run `macrec run demo`"):
        folder_store.read_table("interactions")
    folder_store.write_table("interactions", ONE)
    assert folder_store.read_table("interactions").equals(ONE)
    folder_store.write_table("interactions", TWO)
    assert not any(name.startswith("damaged") for name in stored_versions(folder_store, "interactions"))


def test_missing_and_added_files_are_detected(folder_store: AssetStore) -> None:
    """A missing file, an added file and a missing manifest are each named."""
    with folder_store.new_folder("quantizer") as folder:
        (folder / "weights").mkdir()
        (folder / "weights" / "a.safetensors").write_bytes(b"a")
    path = folder_store.folder("quantizer")
    (path / "extra.txt").write_text("x")
    with pytest.raises(StorageError, match=r"extra\.txt is not part of the version that was written"):
        folder_store.folder("quantizer")
    (path / "extra.txt").unlink()
    (path / "weights" / "a.safetensors").unlink()
    with pytest.raises(StorageError, match=r"a\.safetensors is missing.*run `macrec run demo`"):
        folder_store.folder("quantizer")
    (path / "manifest.json").unlink()
    with pytest.raises(StorageError, match=r"manifest\.json is missing"):
        folder_store.manifest("quantizer")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: "{", "not a readable manifest"),
        (lambda text: "[]", "not a readable manifest"),
        (lambda text: text.replace('"asset": "quantizer"', '"asset": "recommender"'), "does not describe quantizer"),
        (lambda text: text.replace('"a.json"', '"b.json"'), "does not describe quantizer"),
    ],
)
def test_a_damaged_manifest_is_detected(folder_store: AssetStore, change, problem: str) -> None:
    """A manifest that is truncated, belongs to another asset, or was edited is rejected, and the error names it."""
    with folder_store.new_folder("quantizer") as folder:
        (folder / "a.json").write_text("{}")
    path = folder_store.folder("quantizer") / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(StorageError, match=rf"manifest\.json .*{problem}.*run `macrec run demo`"):
        folder_store.folder("quantizer")


def test_a_folder_becomes_a_version_at_the_end_of_the_block(store: AssetStore) -> None:
    """Within the block there is no version yet; details that the block fills are stored; nested files are listed."""
    details: dict[str, float] = {}
    with store.new_folder("recommender", details=details) as folder:
        (folder / "weights").mkdir()
        (folder / "weights" / "model.safetensors").write_bytes(b"123")
        (folder / "config.json").write_text("{}")
        details["epochs"] = 3
        assert not store.has("recommender")
    assert sorted(store.manifest("recommender").files) == ["config.json", "weights/model.safetensors"]
    assert store.manifest("recommender").details == {"epochs": 3}
    assert (store.location("recommender") / "config.json").read_text() == "{}"


def write_and_interrupt(folder: Path) -> None:
    (folder / "a.json").write_text("new")
    raise KeyboardInterrupt


def test_an_error_in_the_block_leaves_nothing_behind(store: AssetStore) -> None:
    """If the block fails, the version before stays current and the half-filled folder is removed."""
    with store.new_folder("quantizer") as folder:
        (folder / "a.json").write_text("old")
    before = stored_versions(store, "quantizer")
    with pytest.raises(KeyboardInterrupt), store.new_folder("quantizer") as folder:
        write_and_interrupt(folder)
    assert stored_versions(store, "quantizer") == before
    assert (store.folder("quantizer") / "a.json").read_text() == "old"


@pytest.mark.parametrize("asset", FOLDER_ASSETS)
def test_invalid_content_of_a_folder_is_rejected(store: AssetStore, asset: str, tmp_path: Path) -> None:
    """An empty folder, a link, a file with the manifest's name, and details that are not JSON are errors."""
    with pytest.raises(StorageError, match="holds no file"), store.new_folder(asset):
        pass
    with pytest.raises(StorageError, match="is a link"), store.new_folder(asset) as folder:
        (folder / "a").symlink_to(tmp_path)
    with pytest.raises(StorageError, match=r"the name manifest\.json is reserved"), store.new_folder(asset) as folder:
        (folder / "manifest.json").write_text("{}")
    for value in (float("nan"), object()):
        with (
            pytest.raises(StorageError, match="plain JSON with finite numbers"),
            store.new_folder(asset, details={"x": value}) as f,
        ):
            (f / "a").write_text("a")
    assert not store.has(asset)
    assert stored_versions(store, asset) == set()


def test_something_else_in_the_place_of_the_link(folder_store: AssetStore, tmp_path: Path) -> None:
    """A folder or a link that the store did not create is neither followed nor overwritten."""
    (tmp_path / "demo" / "interactions").mkdir(parents=True)
    with pytest.raises(StorageError, match="it is in the place of interactions"):
        folder_store.write_table("interactions", ONE)
    with pytest.raises(StorageError, match="not made by this store"):
        folder_store.read_table("interactions")
    (tmp_path / "demo" / "interactions").rmdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    for target in (str(outside), "../outside", ".versions/items/0123456789abcdef"):
        (tmp_path / "demo" / "interactions").unlink(missing_ok=True)
        (tmp_path / "demo" / "interactions").symlink_to(target)
        with pytest.raises(StorageError, match="not made by this store"):
            folder_store.read_table("interactions")


def test_a_version_that_was_removed_by_hand(folder_store: AssetStore) -> None:
    """The error names the missing folder and the command to run."""
    folder_store.write_table("interactions", ONE)
    folder = folder_store.folder("interactions")
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(StorageError, match=r"no longer exists.*run `macrec run demo`"):
        folder_store.read_table("interactions")
    folder_store.write_table("interactions", TWO)
    assert folder_store.read_table("interactions").equals(TWO)


def test_a_home_can_be_moved(folder_store: AssetStore, tmp_path: Path) -> None:
    """Links are relative, so a home that was moved or copied holds the same assets."""
    folder_store.write_table("interactions", ONE)
    (tmp_path / "demo").rename(tmp_path / "elsewhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "other" / "demo")
    assert AssetStore(tmp_path / "other", "demo").read_table("interactions").equals(ONE)


def test_a_home_that_is_not_writable(tmp_path: Path) -> None:
    """If a file is in the place of the home, the error names it."""
    (tmp_path / "home").write_text("not a folder")
    with pytest.raises(MacrecError, match=r"interactions cannot be stored: .*home"):
        AssetStore(tmp_path / "home", "demo").write_table("interactions", ONE)


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from macrec_pipeline.storage import AssetStore, versions
store = AssetStore(Path(sys.argv[1]), "demo")
if sys.argv[2] == "filling":
    with store.new_folder("quantizer") as folder:
        (folder / "half.bin").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
# After the version is in place, but before the link is swapped.
versions.AssetVersions._point = lambda self, link, target: os.kill(os.getpid(), signal.SIGKILL)
with store.new_folder("quantizer") as folder:
    (folder / "whole.bin").write_bytes(b"whole")
"""


@pytest.mark.parametrize("moment", ["filling", "publishing"])
def test_a_killed_writer_changes_nothing(folder_store: AssetStore, tmp_path: Path, moment: str) -> None:
    """After a kill -9 during a write, the old version is still current; the next write works and cleans up."""
    with folder_store.new_folder("quantizer") as folder:
        (folder / "old.bin").write_bytes(b"old")
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(tmp_path), moment], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (folder_store.folder("quantizer") / "old.bin").read_bytes() == b"old"
    assert len(stored_versions(folder_store, "quantizer")) > 1
    with folder_store.new_folder("quantizer") as folder:
        (folder / "new.bin").write_bytes(b"new")
    assert (folder_store.folder("quantizer") / "new.bin").read_bytes() == b"new"
    remaining = stored_versions(folder_store, "quantizer")
    assert len(remaining) == 2
    assert not any(name.startswith(("writing", "link", "damaged")) for name in remaining)


def test_a_living_writer_is_not_disturbed(store: AssetStore) -> None:
    """A second writer does not remove the folder that the first is still filling; the last to finish is current."""
    with store.new_folder("quantizer") as slow:
        (slow / "a").write_text("slow")
        with store.new_folder("quantizer") as fast:
            (fast / "a").write_text("fast")
        assert (store.folder("quantizer") / "a").read_text() == "fast"
        assert (slow / "a").read_text() == "slow"
    assert (store.folder("quantizer") / "a").read_text() == "slow"


CONCURRENT_WRITERS = """
import multiprocessing, sys
from pathlib import Path
from macrec_pipeline.storage import AssetStore

def write(writer, start):
    store = AssetStore(Path(sys.argv[1]), "demo", url=sys.argv[2] or None)
    start.wait()
    for turn in range(int(sys.argv[3])):
        with store.new_folder("quantizer") as folder:
            (folder / "a").write_text(f"{writer} {turn}")

context = multiprocessing.get_context("fork")
start = context.Barrier(4)
writers = [context.Process(target=write, args=(writer, start)) for writer in range(4)]
for writer in writers:
    writer.start()
for writer in writers:
    writer.join()
sys.exit(sum(writer.exitcode != 0 for writer in writers))
"""


@pytest.mark.parametrize("url", ["folder", "s3"], indirect=True)
def test_concurrent_writers(store: AssetStore, tmp_path: Path, url: str | None) -> None:
    """Four processes that write one asset concurrently all succeed, and one complete version is current."""
    turns = 8 if url else 25
    command = [sys.executable, "-c", CONCURRENT_WRITERS, str(tmp_path), url or "", str(turns)]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    assert (store.folder("quantizer") / "a").read_text().endswith(f" {turns - 1}")
    assert len(stored_versions(store, "quantizer")) == 2


def test_scratch_survives_a_failure_and_is_removed_after_success(store: AssetStore) -> None:
    """A failed attempt leaves its checkpoint for the next one, and creates no version of the asset."""

    def fail_half_way() -> None:
        with store.scratch("recommender") as folder:
            folder.mkdir(parents=True)
            (folder / "checkpoint").write_text("half way")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert not store.has("recommender")
    with store.scratch("recommender") as folder:
        assert (folder / "checkpoint").read_text() == "half way"
    assert not folder.exists()


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("user_id", "", "missing user_id"),
        ("timestamp", 631_151_999_999, "timestamp before 1990"),
        ("rating", float("inf"), "rating that is not finite"),
    ],
)
def test_a_table_with_forbidden_rows_is_not_written(tmp_path: Path, column: str, value: object, problem: str) -> None:
    """Neither as a whole nor in slices: the error names table, rule and row, and no version is stored."""
    rows = [("u", "a", None, 1_600_000_000_000)]
    table = pl.DataFrame(rows, schema=INTERACTIONS.columns, orient="row").with_columns(
        pl.lit(value, dtype=INTERACTIONS.columns[column]).alias(column)
    )
    store = AssetStore(tmp_path, "demo")
    for write in (
        lambda: store.write_table("interactions", table),
        lambda: store.write_slices("interactions", [table]),
    ):
        with pytest.raises(SchemaError, match=f"interactions .*: 1 x {problem}; the first: .*'row': 0"):
            write()
    assert not store.has("interactions")
