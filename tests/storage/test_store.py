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


# A test that looks into the files asks for `folder_store`; what is damaged at a URL is in test_published.
@pytest.fixture
def folder_store(tmp_path: Path) -> AssetStore:
    return AssetStore(tmp_path, "demo")


def versions(store: AssetStore, asset: str) -> set[str]:
    """The versions on this machine, and what else is beside them."""
    folder = store.location(asset).parent / ".versions" / asset
    known = ("store.lock", "publishing.lock", "copying.lock", "previous")
    return {path.name for path in folder.iterdir() if path.name not in known}


def test_a_table_comes_back_as_it_was_written(store: AssetStore) -> None:
    """What is read equals what was written, and lies under the plain path that is documented."""
    store.write_table("interactions", ONE, details={"source": "here"})
    assert store.read_table("interactions").equals(ONE)
    assert store.manifest("interactions").details == {"source": "here"}
    assert (store.location("interactions") / "interactions.parquet").is_file()


def retired(*item_ids: str) -> pl.DataFrame:
    rows = [(item_id, [place], [place], False, True, 5) for place, item_id in enumerate(item_ids)]
    return pl.DataFrame(rows, schema=SIDE_TABLES["retired_ids"].columns, orient="row")


def test_a_side_table_is_swapped_in_with_its_table(store: AssetStore) -> None:
    """It is part of the digest, verified like the rest, checked against its schema, and left out without rows."""
    bare = store.write_table("interactions", ONE)
    assert store.write_table("interactions", ONE, beside={"retired_ids": retired()}).digest == bare.digest
    assert store.read_beside("interactions", "retired_ids").equals(retired())
    both = store.write_table("interactions", ONE, beside={"retired_ids": retired("a", "b")})
    assert both.files.keys() == {"interactions.parquet", "retired_ids.parquet"}
    assert store.read_beside("interactions", "retired_ids").equals(retired("a", "b"))
    with pytest.raises(SchemaError, match=r"retired_ids .*must be unique"):
        store.write_table("interactions", TWO, beside={"retired_ids": retired("a", "a")})
    assert store.manifest("interactions").digest == both.digest
    file = store.location("interactions") / "retired_ids.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"retired_ids\.parquet was changed"):
        store.read_beside("interactions", "retired_ids")


def test_the_digest_is_the_one_that_is_documented(store: AssetStore) -> None:
    """The digest is SHA-256 over the (name, SHA-256) pairs, sorted as text, computed here from the bytes written."""
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
    """Neither the chunks of a table in memory nor its details change the file or the digest."""
    chunked = pl.concat([ONE[:1], ONE[1:]], rechunk=False)
    first = AssetStore(tmp_path / "one", "demo").write_table("interactions", ONE, details={"run": 1})
    second = AssetStore(tmp_path / "two", "demo").write_table("interactions", chunked, details={"run": 2})
    assert first.digest == second.digest
    assert AssetStore(tmp_path / "one", "demo").write_table("interactions", TWO).digest != first.digest


def test_rewriting_the_same_content_keeps_the_version_and_updates_the_details(store: AssetStore) -> None:
    """A second write of equal bytes changes the details alone, and does not cost the version before."""
    store.write_table("interactions", ONE)
    store.write_table("interactions", TWO, details={"run": 1})
    before = versions(store, "interactions")
    store.write_table("interactions", TWO, details={"run": 2})
    assert versions(store, "interactions") == before
    assert store.manifest("interactions").details == {"run": 2}


def test_the_current_and_the_previous_version_are_kept(store: AssetStore) -> None:
    """A reader of the version before the newest is not disturbed; older ones are removed."""
    first = store.write_table("interactions", ONE)
    held = store.folder("interactions")
    second = store.write_table("interactions", TWO)
    assert (held / "interactions.parquet").is_file()
    third = store.write_table("interactions", THREE)
    assert not held.exists()
    assert versions(store, "interactions") == {second.digest[:16], third.digest[:16]}
    assert first.digest[:16] not in versions(store, "interactions")


def test_going_back_to_the_previous_version(store: AssetStore) -> None:
    """Writing the content of the version before serves it again, and keeps the other as previous."""
    first = store.write_table("interactions", ONE)
    second = store.write_table("interactions", TWO)
    store.write_table("interactions", ONE)
    assert store.read_table("interactions").equals(ONE)
    assert versions(store, "interactions") == {first.digest[:16], second.digest[:16]}


def test_a_missing_asset_says_what_to_run(store: AssetStore) -> None:
    """The message is the command that makes the asset."""
    assert not store.has("raw_items")
    with pytest.raises(
        StorageError,
        match=r"^raw_items of demo is not there yet: run `macrec run demo`, or the job full_pipeline in the UI\.$",
    ):
        store.read_table("raw_items")


@pytest.mark.parametrize("asset", ["../items", "items/../../x", "", "/etc/passwd", "Items", "nonsense", "."])
def test_an_unknown_asset_is_refused(store: AssetStore, asset: str) -> None:
    """Only the assets of the pipeline have a place, so that no name leads out of the folder."""
    for attempt in (store.location, store.has, store.folder, store.manifest, store.read_table):
        with pytest.raises(StorageError, match=r"is not .* of the store\. Use one of: "):
            attempt(asset)
    with pytest.raises(StorageError, match="is not a folder"), store.new_folder(asset):
        pass


@pytest.mark.parametrize("dataset", ["..", "a/b", "", "Demo", ".hidden", "a b", "-x", "demo\n"])
def test_a_data_set_name_that_is_no_name_is_refused(tmp_path: Path, dataset: str) -> None:
    """A data set's name is part of a path, so it may hold nothing else than its pattern."""
    with pytest.raises(StorageError, match="cannot be a data set"):
        AssetStore(tmp_path, dataset)


def test_tables_and_folders_are_not_mixed_up(store: AssetStore) -> None:
    """A table's name is refused for a folder and the other way round, naming those that fit."""
    with (
        pytest.raises(StorageError, match=r"'items' is not a folder of the store.*quantizer"),
        store.new_folder("items"),
    ):
        pass
    with pytest.raises(StorageError, match=r"'quantizer' is not a table of the store.*raw_items"):
        store.write_table("quantizer", ONE)


def test_a_wrong_schema_is_refused_at_the_write(store: AssetStore) -> None:
    """A table that breaks its schema leaves no trace, and the version before is still served."""
    store.write_table("interactions", ONE)
    before = versions(store, "interactions")
    with pytest.raises(SchemaError, match=r"interactions .*demo.*: columns are"):
        store.write_table("interactions", TWO.drop("rating"))
    assert versions(store, "interactions") == before
    assert store.read_table("interactions").equals(ONE)


def test_a_wrong_schema_is_refused_at_the_read(store: AssetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another schema names the file and what to run, as after an update of the package."""
    with monkeypatch.context() as patch:
        patch.setitem(TABLES, "interactions", TABLES["items"])
        store.write_table("interactions", TABLES["items"].empty())
    with pytest.raises(SchemaError, match=r"interactions\.parquet.*columns are.*run `macrec run demo`"):
        store.read_table("interactions")


def test_a_changed_byte_is_noticed(folder_store: AssetStore) -> None:
    """A damaged file is named, with what to run; writing it again repairs it."""
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
    assert not any(name.startswith("damaged") for name in versions(folder_store, "interactions"))


def test_missing_and_foreign_files_are_noticed(folder_store: AssetStore) -> None:
    """A file that is gone, one that was added and a manifest that is gone are each named."""
    with folder_store.new_folder("quantizer") as folder:
        (folder / "weights").mkdir()
        (folder / "weights" / "a.safetensors").write_bytes(b"a")
    path = folder_store.folder("quantizer")
    (path / "extra.txt").write_text("x")
    with pytest.raises(StorageError, match=r"extra\.txt is no part of what was written"):
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
def test_a_damaged_manifest_is_noticed(folder_store: AssetStore, change, problem: str) -> None:
    """A manifest that is cut off, of another asset or edited is refused, naming the file."""
    with folder_store.new_folder("quantizer") as folder:
        (folder / "a.json").write_text("{}")
    path = folder_store.folder("quantizer") / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(StorageError, match=rf"manifest\.json .*{problem}.*run `macrec run demo`"):
        folder_store.folder("quantizer")


def test_a_folder_is_committed_at_the_end_of_the_block(store: AssetStore) -> None:
    """Nothing is served inside the block; details filled inside it are kept; nested files are listed."""
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


def fill_and_interrupt(folder: Path) -> None:
    (folder / "a.json").write_text("new")
    raise KeyboardInterrupt


def test_an_error_in_the_block_leaves_nothing_behind(store: AssetStore) -> None:
    """A block that fails keeps the version before, and its half-filled folder is removed."""
    with store.new_folder("quantizer") as folder:
        (folder / "a.json").write_text("old")
    before = versions(store, "quantizer")
    with pytest.raises(KeyboardInterrupt), store.new_folder("quantizer") as folder:
        fill_and_interrupt(folder)
    assert versions(store, "quantizer") == before
    assert (store.folder("quantizer") / "a.json").read_text() == "old"


@pytest.mark.parametrize("asset", FOLDER_ASSETS)
def test_what_a_folder_may_not_hold(store: AssetStore, asset: str, tmp_path: Path) -> None:
    """An empty folder, a link, the manifest's name and details that are not JSON are refused, with nothing stored."""
    with pytest.raises(StorageError, match="holds no file"), store.new_folder(asset):
        pass
    with pytest.raises(StorageError, match="is a link"), store.new_folder(asset) as folder:
        (folder / "a").symlink_to(tmp_path)
    with pytest.raises(StorageError, match=r"manifest\.json is the store's own"), store.new_folder(asset) as folder:
        (folder / "manifest.json").write_text("{}")
    for value in (float("nan"), object()):
        with (
            pytest.raises(StorageError, match="plain, finite JSON"),
            store.new_folder(asset, details={"x": value}) as f,
        ):
            (f / "a").write_text("a")
    assert not store.has(asset)
    assert versions(store, asset) == set()


def test_something_else_in_the_place_of_the_link(folder_store: AssetStore, tmp_path: Path) -> None:
    """A folder or a link that the store did not make is never followed nor overwritten."""
    (tmp_path / "demo" / "interactions").mkdir(parents=True)
    with pytest.raises(StorageError, match="in the way"):
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


def test_a_version_that_is_gone(folder_store: AssetStore) -> None:
    """A link whose version was removed by hand is told, not a traceback."""
    folder_store.write_table("interactions", ONE)
    folder = folder_store.folder("interactions")
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(StorageError, match=r"is gone.*run `macrec run demo`"):
        folder_store.read_table("interactions")
    folder_store.write_table("interactions", TWO)
    assert folder_store.read_table("interactions").equals(TWO)


def test_a_home_can_be_moved(folder_store: AssetStore, tmp_path: Path) -> None:
    """A home that was moved or copied serves the same assets, since its links are relative."""
    folder_store.write_table("interactions", ONE)
    (tmp_path / "demo").rename(tmp_path / "elsewhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "other" / "demo")
    assert AssetStore(tmp_path / "other", "demo").read_table("interactions").equals(ONE)


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in the place of the home ends in one line that names it."""
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
# After the version is in place, before the link is swapped.
versions.AssetVersions._point = lambda self, link, target: os.kill(os.getpid(), signal.SIGKILL)
with store.new_folder("quantizer") as folder:
    (folder / "whole.bin").write_bytes(b"whole")
"""


@pytest.mark.parametrize("moment", ["filling", "publishing"])
def test_a_killed_writer_changes_nothing(folder_store: AssetStore, tmp_path: Path, moment: str) -> None:
    """After kill -9 in the middle of a write the old version is served; the next write works and cleans up."""
    with folder_store.new_folder("quantizer") as folder:
        (folder / "old.bin").write_bytes(b"old")
    died = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(tmp_path), moment], timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL
    assert (folder_store.folder("quantizer") / "old.bin").read_bytes() == b"old"
    assert len(versions(folder_store, "quantizer")) > 1
    with folder_store.new_folder("quantizer") as folder:
        (folder / "new.bin").write_bytes(b"new")
    assert (folder_store.folder("quantizer") / "new.bin").read_bytes() == b"new"
    left = versions(folder_store, "quantizer")
    assert len(left) == 2
    assert not any(name.startswith(("writing", "link", "damaged")) for name in left)


def test_a_living_writer_is_left_alone(store: AssetStore) -> None:
    """A second writer does not remove the folder that the first is still filling; the last to end is served."""
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
    """Four processes that write one asset at once all succeed, and leave one whole version served."""
    turns = 8 if url else 25
    command = [sys.executable, "-c", CONCURRENT_WRITERS, str(tmp_path), url or "", str(turns)]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    assert (store.folder("quantizer") / "a").read_text().endswith(f" {turns - 1}")
    assert len(versions(store, "quantizer")) == 2


def test_scratch_outlives_a_failure_and_goes_with_success(store: AssetStore) -> None:
    """A failed attempt leaves its checkpoint for the next one; no asset is made by it."""

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
def test_what_no_row_may_hold_is_not_written(tmp_path: Path, column: str, value: object, problem: str) -> None:
    """Neither as a whole nor in slices; the error names table, rule and row, and the table is not there."""
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
