"""The job that recommends for every user: with the chosen model, in shards, continuing after a kill."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from macrec_pipeline.config import DecodingConfig, PipelineConfig, RecommenderConfig
from macrec_pipeline.datasets import datasets_folder
from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.jobs import BATCH_RECOMMENDATIONS
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.runs.launch import LaunchRequest, launch
from macrec_pipeline.errors import DataError, TrackingError
from macrec_pipeline.presets import parse_overrides
from macrec_pipeline.recommender import RecommenderBundle, fit_recommender
from macrec_pipeline.storage import AssetStore
from macrec_pipeline.tracking import model_uri, open_tracking
from tests.defs.conftest import NUM_ITEMS, NUM_USERS
from tests.recommender.cyclic_catalogue import CPU, SMALL

# The second batch of recommendations kills the process, as the kernel does when memory runs out.
KILLED_IN_SECOND_SHARD = """
import os, signal, sys
from macrec_pipeline.presets import parse_overrides
from macrec_pipeline.recommender import RecommenderBundle
original, calls = RecommenderBundle.recommend_ids, []
def recommend_or_die(*arguments, **named):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **named)
RecommenderBundle.recommend_ids = recommend_or_die
from macrec_pipeline.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    """A barely trained bundle of this data set, with one item fewer than the catalogue has now."""
    for name in ("weights", "bundle"):
        (tmp_path / name).mkdir()
    codes = np.stack(np.unravel_index(np.arange(NUM_ITEMS), (4, 4)), axis=1).astype(np.int64)[: NUM_ITEMS - 1]
    histories = [(user + 2 * np.arange(6)) % (NUM_ITEMS - 1) for user in range(NUM_USERS)]
    config = RecommenderConfig.model_validate(SMALL)
    fitted = fit_recommender(histories, codes, codes, codebook_size=4, config=config, seed=5, device=CPU)
    fitted.save(tmp_path / "weights")
    RecommenderBundle.write(
        tmp_path / "bundle",
        recommender_folder=tmp_path / "weights",
        item_ids=[f"i{item:02d}" for item in range(NUM_ITEMS - 1)],
        popularity=np.arange(NUM_ITEMS - 1),
        text_codes=codes,
        image_codes=codes.copy(),
        codebook_size=4,
        decoding=DecodingConfig(beam_width=5).model_dump(mode="json"),
        catalogue=[{"title": "", "image_path": None}] * (NUM_ITEMS - 1),
        provenance={},
    )
    return tmp_path / "bundle"


@pytest.fixture
def registered(settings: Settings, partition: str, bundle_folder: Path) -> AssetStore:
    """A data set with histories and a champion."""
    home = settings.home_folder()
    launch(LaunchRequest(partition, home, settings.data_folder(), until="histories"), defs=defs)
    tracker, store = open_tracking(home), settings.store(partition)
    with tracker.asset_run(
        dataset=partition, asset="registered_model", dagster_run_id="1", config=PipelineConfig()
    ) as run:
        tracker.register(bundle_folder, dataset=partition, metrics={}, dagster_run_id="1", run_id=run.run_id)
    with store.new_folder("registered_model") as folder:
        (folder / "registration.json").write_text("{}", encoding="utf-8")
    return store


def _recommend(settings: Settings, partition: str, *overrides: str) -> None:
    request = LaunchRequest(
        partition, settings.home_folder(), settings.data_folder(), overrides=overrides, job=BATCH_RECOMMENDATIONS
    )
    launch(request, defs=defs)


@pytest.mark.slow
def test_a_killed_run_continues_after_its_last_finished_shard(
    registered: AssetStore, settings: Settings, partition: str, bundle_folder: Path
) -> None:
    """Every user gets the champion's items for the whole history, and finished shards are not computed again.

    The run that is killed has one process; the one that continues has two.
    """
    overrides = ["recommendations.users_per_shard=4", "recommendations.top_k=5"]
    arguments = [partition, *(word for override in overrides for word in ("--set", override))]
    folders = {"MACREC_HOME": settings.home or "", "MACREC_DATA": settings.data or ""}
    environment = {**os.environ, **folders, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED_IN_SECOND_SHARD, "recommend-all", *arguments]
    killed = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert not registered.has("recommendations")

    scratch = settings.home_folder() / partition / ".scratch" / "recommendations"
    (finished,) = (path.stat() for path in scratch.rglob("part-*.parquet"))

    _recommend(settings, partition, *overrides, "runtime.driver=processes", "runtime.workers=2")
    folder = registered.folder("recommendations")
    assert (folder / "part-00000.parquet").stat().st_ino == finished.st_ino
    assert sorted(path.name for path in folder.glob("part-*")) == [f"part-0000{shard}.parquet" for shard in range(3)]
    table = pl.read_parquet(folder / "part-*.parquet")
    users, item_ids = registered.read_table("histories"), registered.read_table("items")["item_id"]
    histories = [[item_ids[index] for index in history] for history in users["item_indices"]]
    expected = RecommenderBundle.load(bundle_folder).recommend_ids(histories, k=5)
    assert table["user_id"].to_list() == users["user_id"].to_list()
    assert table["item_ids"].to_list() == [answer.item_ids for answer in expected]
    details = registered.manifest("recommendations").details
    assert (details["model"], details["top_k"], details["users"]) == (f"models:/macrec-{partition}/1", 5, NUM_USERS)
    assert set(table["model"]) == {f"models:/macrec-{partition}/1"}
    assert not scratch.exists()


def test_settings_reach_the_model(registered: AssetStore, settings: Settings, partition: str) -> None:
    """Seen items are excluded if a setting says so. The error for an unknown model lists the existing ones."""
    with pytest.raises(
        TrackingError, match=rf"^models:/macrec-{partition}/7 does not exist.*newest version 1, @challenger is 1"
    ):
        _recommend(settings, partition, "recommendations.model=7")
    assert not registered.has("recommendations")
    _recommend(settings, partition, "recommendations.exclude_seen=true", "recommendations.top_k=3")
    table = pl.read_parquet(registered.folder("recommendations") / "part-*.parquet")
    item_ids = registered.read_table("items")["item_id"]
    for items, history in zip(table["item_ids"], registered.read_table("histories")["item_indices"], strict=True):
        assert len(items) == 3
        assert not set(items) & {item_ids[index] for index in history}


def test_everyone_gets_what_is_sold_today(registered: AssetStore, settings: Settings, partition: str) -> None:
    """Today's files count, whatever the last run left: new rows, all users, and what the catalogue has now."""
    data = Path(settings.data or "")
    log, items = data / "log.csv", data / "items.csv"
    newest = 1_600_100_000
    with log.open("a", encoding="utf-8") as file:
        file.write(f"one_item,i03,{newest - 2}\nstranger,nobody_knows,{newest - 1}\nu0,i07,{newest}\n")
    items.write_text(items.read_text(encoding="utf-8").replace("i05,Item 5\n", ""), encoding="utf-8")
    for name in ("interactions", "histories"):  # as a refresh that was killed may leave them
        registered.location(name).unlink()
    _recommend(settings, partition, "recommendations.top_k=5")
    table = pl.read_parquet(registered.folder("recommendations") / "part-*.parquet")
    rows = {row["user_id"]: row for row in table.iter_rows(named=True)}
    assert sorted(rows) == sorted(["one_item", "stranger", *(f"u{user}" for user in range(NUM_USERS))])
    assert "i05" not in table["item_ids"].explode().to_list()
    assert all(len(row["item_ids"]) == 5 for row in rows.values())
    assert rows["stranger"]["fallback"] == "popularity"
    assert {row["fallback"] for user, row in rows.items() if user != "stranger"} == {"none"}
    assert set(table["as_of"]) == {newest * 1000}
    assert set(table["model"]) == {f"models:/macrec-{partition}/1"}
    _recommend(settings, partition, "recommendations.top_k=5", "recommendations.exclude_seen=true")
    table = pl.read_parquet(registered.folder("recommendations") / "part-*.parquet")
    assert "i07" not in table.filter(pl.col("user_id") == "u0")["item_ids"].item().to_list(), "the newest row counts"


def test_the_stock_list_and_the_rules_of_users_are_read_at_each_run(
    registered: AssetStore, settings: Settings, partition: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is out of stock is recommended to no user, also not as fallback; rules hold for their own user only."""
    data, spec = Path(settings.data or ""), datasets_folder() / f"{partition}.yaml"
    with spec.open("a", encoding="utf-8") as file:
        file.write(
            "recommendations:\n"
            "  stock: {file: items.csv, item_id: item, quantity: stock}\n"
            "  rules: {file: rules.csv, user_id: user, allowed: only, excluded: never}\n"
        )
    with (data / "log.csv").open("a", encoding="utf-8") as file:
        file.write("stranger,unheard,1600100000\n")

    def write_stock(*out_of_stock: str) -> None:
        names = [f"i{item:02d}" for item in range(NUM_ITEMS)]
        rows = [f"{name},Item {name},{0 if name in out_of_stock else 2}" for name in names]
        (data / "items.csv").write_text("\n".join(["item,title,stock", *rows]) + "\n", encoding="utf-8")

    def recommended() -> dict[str, list[str]]:
        _recommend(settings, partition, "recommendations.top_k=11")
        table = pl.read_parquet(registered.folder("recommendations") / "part-*.parquet")
        return dict(table.select("user_id", "item_ids").iter_rows())

    write_stock("i03", "i07")
    (data / "rules.csv").write_text("user,never,only\nu0,i00|i01,\nu1,,i02|i03|i04\nunknown,i05,\n", encoding="utf-8")
    lists = recommended()
    known = {f"i{item:02d}" for item in range(NUM_ITEMS - 1)}  # the bundle lacks the newest item
    assert set(lists["u2"]) == set(lists["stranger"]) == known - {"i03", "i07"}
    assert set(lists["u0"]) == known - {"i03", "i07", "i00", "i01"}
    assert set(lists["u1"]) == {"i02", "i04"}
    assert "rules.csv: 1 of 3 users with rules are not in the log" in caplog.text

    write_stock("i04")
    (data / "rules.csv").write_text("user,never,only\nu2,i09,\n", encoding="utf-8")
    lists = recommended()
    assert set(lists["u0"]) == known - {"i04"}
    assert set(lists["u2"]) == known - {"i04", "i09"}

    before = registered.manifest("recommendations").digest
    write_stock(*known, f"i{NUM_ITEMS - 1:02d}")
    with pytest.raises(DataError, match=r"items.csv: none of the 0 items in stock is in the catalogue, so nothing"):
        recommended()
    assert registered.manifest("recommendations").digest == before, "the last recommendations stay"


@pytest.mark.parametrize(
    ("model", "uri"),
    [
        ("champion", "models:/macrec-demo@champion"),
        ("12", "models:/macrec-demo/12"),
        ("models:/other/3", "models:/other/3"),
    ],
)
def test_a_model_is_chosen_by_alias_version_or_uri(model: str, uri: str) -> None:
    """An alias or version refers to the data set's own registered model; a URI may name any model."""
    config = PipelineConfig.model_validate(parse_overrides([f"recommendations.model={model}"]))
    assert model_uri("demo", config.recommendations.model) == uri
