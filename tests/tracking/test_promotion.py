"""Promotion and rollback: what the alias, the history and the tags say after them, and after what goes wrong."""

import threading
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from macrec_pipeline import cli
from macrec_pipeline.errors import TrackingError
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.tracking import Tracker
from macrec_pipeline.tracking.store import connect


@pytest.fixture
def client(home: Path) -> MlflowClient:
    return connect(home).client


@pytest.fixture
def versions(tracker: Tracker, client: MlflowClient) -> list[int]:
    """Four versions that hold nothing, the first of them champion and the last challenger."""
    with tracker.asset_run(dataset="demo", asset="registered_model", dagster_run_id="r", config=resolve_config("demo")):
        pass
    client.create_registered_model("macrec-demo")
    for number in range(1, 5):
        tags = {"metric.ndcg_10": repr(number / 10)}
        client.create_model_version("macrec-demo", "file:///nowhere", tags=tags)
    client.set_registered_model_alias("macrec-demo", "champion", "1")
    client.set_registered_model_alias("macrec-demo", "challenger", "4")
    return [1, 2, 3, 4]


def champion(client: MlflowClient) -> int:
    return int(client.get_model_version_by_alias("macrec-demo", "champion").version)


def test_the_challenger_is_promoted_and_taken_back(tracker: Tracker, client: MlflowClient, versions: list[int]) -> None:
    """The decision says who was and is champion, with what figures; the version keeps when and why."""
    made = tracker.promote("demo", reason="better in spring")
    assert (made.name, made.champion.version, made.changed) == ("macrec-demo", 4, True)
    assert made.before is not None
    assert (made.before.version, made.champion.metrics) == (1, {"ndcg_10": 0.4})
    assert champion(client) == 4
    tag = client.get_model_version("macrec-demo", "4").tags["macrec.decision"]
    assert tag.endswith(": promoted over version 1. better in spring")
    back = tracker.rollback("demo")
    assert (back.champion.version, champion(client)) == (1, 1)
    assert client.get_model_version("macrec-demo", "1").tags["macrec.decision"].endswith("rolled back from version 4")
    assert client.get_registered_model("macrec-demo").aliases["challenger"] in {4, "4"}
    lines = client.get_model_version("macrec-demo", "4").description.splitlines()
    assert lines[:2] == ["Decisions, the newest last:", ""]
    assert lines[2].endswith(r"promoted over version 1\. better in spring")


def test_rollbacks_go_further_back_and_not_to_and_fro(
    tracker: Tracker, client: MlflowClient, versions: list[int]
) -> None:
    """1, 2, 3, then 1 again by hand: back to 3, to 2, to 1, and then there is nobody."""
    for version in (2, 3, 1):
        tracker.promote("demo", version=version)
    for expected in (3, 2, 1):
        assert tracker.rollback("demo").champion.version == expected == champion(client)
    with pytest.raises(TrackingError, match="No champion of macrec-demo came before version 1"):
        tracker.rollback("demo")


def test_to_promote_the_champion_changes_nothing(tracker: Tracker, client: MlflowClient, versions: list[int]) -> None:
    """It is no second reign, so a rollback still has nobody to go to."""
    assert not tracker.promote("demo", version=1).changed
    with pytest.raises(TrackingError, match="No champion"):
        tracker.rollback("demo")


def test_a_version_that_was_deleted_is_passed_over(tracker: Tracker, client: MlflowClient, versions: list[int]) -> None:
    """Of 1, 2, 3 the second is gone."""
    for version in (2, 3):
        tracker.promote("demo", version=version)
    client.delete_model_version("macrec-demo", "2")
    assert tracker.rollback("demo").champion.version == 1


def test_an_alias_moved_in_the_ui_is_part_of_the_history(
    tracker: Tracker, client: MlflowClient, versions: list[int]
) -> None:
    """Whoever moved it, the rollback goes to whom it was moved from by us, and from there to the one before."""
    tracker.promote("demo", version=2)
    client.set_registered_model_alias("macrec-demo", "champion", "3")
    tracker.promote("demo", version=4)
    assert [tracker.rollback("demo").champion.version for _ in range(3)] == [3, 2, 1]


def test_a_process_that_dies_after_the_alias_loses_no_history(
    tracker: Tracker, client: MlflowClient, versions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The champion is the new one, though nothing was written down of it, and can be rolled back."""
    tracker.promote("demo", version=2)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_registered_model_tag", die)
        with pytest.raises(KeyboardInterrupt):
            tracker.promote("demo", version=3)
    assert champion(client) == 3
    assert tracker.rollback("demo").champion.version == 2


def test_a_long_story_leaves_its_beginning_out_of_the_description(
    tracker: Tracker, client: MlflowClient, versions: list[int]
) -> None:
    """PostgreSQL takes 5,000 characters and refuses more; the card and the newest decisions stay, tags are whole."""
    client.update_model_version("macrec-demo", "2", description="**card**\n")
    for turn in range(12):
        tracker.promote("demo", version=2, reason=f"turn {turn} " + "& " * 2000)
        tracker.promote("demo", version=3)
    found = client.get_model_version("macrec-demo", "2")
    lines = found.description.splitlines()
    assert len(found.description) <= 5000
    assert lines[:4] == ["**card**", "", "Decisions, the newest last:", ""]
    assert "turn 11" in lines[-1]
    assert lines[-1].endswith(r"\.\.\.")
    assert found.tags["macrec.decision"].endswith("& " * 2000)
    assert len(client.get_model_version("macrec-demo", "3").description.splitlines()) == 2 + 12


@pytest.mark.parametrize(
    ("dies_in", "champion_then", "next_ones"),
    [("set_registered_model_alias", 3, [2, 1]), ("set_model_version_tag", 2, [1]), ("second history", 2, [1])],
)
def test_a_rollback_that_dies_does_not_come_back_to_what_was_left(
    tracker: Tracker,
    client: MlflowClient,
    versions: list[int],
    monkeypatch: pytest.MonkeyPatch,
    dies_in: str,
    champion_then: int,
    next_ones: list[int],
) -> None:
    """From 3 to 2, cut off before or after the alias moves: the next rollbacks go on backwards and never to 3."""
    for version in (2, 3):
        tracker.promote("demo", version=version)
    keep, calls = MlflowClient.set_registered_model_tag, []

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    def die_at_the_second(*arguments: Any) -> None:
        calls.append(arguments)
        (die if len(calls) == 2 else keep)(*arguments)

    with monkeypatch.context() as patched:
        if dies_in == "second history":
            patched.setattr(MlflowClient, "set_registered_model_tag", die_at_the_second)
        else:
            patched.setattr(MlflowClient, dies_in, die)
        with pytest.raises(KeyboardInterrupt):
            tracker.rollback("demo")
    assert champion(client) == champion_then
    assert [tracker.rollback("demo").champion.version for _ in next_ones] == next_ones


def test_a_consumer_always_finds_a_champion(tracker: Tracker, client: MlflowClient, versions: list[int]) -> None:
    """One that asks for the alias again and again, while it moves to and fro, gets the one or the other version."""
    seen: list[int] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            seen.append(champion(client))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(8):
            tracker.promote("demo")
            tracker.rollback("demo")
    finally:
        done.set()
        asking.join()
    assert set(seen) <= {1, 4}
    assert len(seen) > 8


@pytest.mark.parametrize(
    ("dataset", "version", "problem"),
    [
        ("demo", 9, "macrec-demo has no version 9. Those are: 1, 2, 3, 4"),
        ("other", None, "There is no registered model macrec-other. Those are: macrec-demo"),
    ],
)
def test_what_is_not_there_is_named(
    tracker: Tracker, versions: list[int], dataset: str, version: int | None, problem: str
) -> None:
    """The message has what there is instead."""
    with pytest.raises(TrackingError, match=problem):
        tracker.promote(dataset, version=version)


def test_no_challenger_and_no_champion(tracker: Tracker, client: MlflowClient, versions: list[int]) -> None:
    """Without an alias a person has to name a version."""
    for alias in ("challenger", "champion"):
        client.delete_registered_model_alias("macrec-demo", alias)
    with pytest.raises(TrackingError, match="has no challenger"):
        tracker.promote("demo")
    with pytest.raises(TrackingError, match="has no champion"):
        tracker.rollback("demo")
    assert tracker.promote("demo", version=2).before is None


def test_the_commands_say_what_they_did(
    home: Path, versions: list[int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Who, instead of whom, with which figures, and how to take it back; a home without a store is one line."""

    def ask(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    status, out, _ = ask("promote", "demo", "--home", str(home))
    assert status == 0
    assert "macrec-demo: version 4 is @champion now, version 1 was." in out
    assert "0.4000 now, 0.1000 before" in out
    assert "macrec rollback demo" in out
    assert "nothing is changed" in ask("promote", "demo", "--home", str(home))[1]
    status, out, _ = ask("rollback", "demo", "--reason", "empty answers", "--home", str(home))
    assert "version 1 is @champion now, version 4 was" in out
    assert "macrec promote demo --version 4" in out
    status, _, err = ask("rollback", "demo", "--home", str(home))
    assert (status, err.count("\n")) == (2, 1)
    status, _, err = ask("promote", "demo", "--home", str(tmp_path / "nothing"))
    assert status == 2
    assert "There is no MLflow store in" in err
    assert not (tmp_path / "nothing").exists()
