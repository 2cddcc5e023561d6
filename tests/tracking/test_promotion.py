"""Promotion and rollback: the alias, the history and the tags afterwards, also if a process dies in between."""

import threading
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from macrec_pipeline import cli
from macrec_pipeline.errors import ChampionMovedError, TrackingError
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.tracking import Tracker
from macrec_pipeline.tracking.registry import EVALUATED_DIGEST_TAG, RegisteredVersion
from macrec_pipeline.tracking.store import connect


@pytest.fixture
def client(home: Path) -> MlflowClient:
    return connect(home).client


@pytest.fixture
def versions(tracker: Tracker, client: MlflowClient) -> list[int]:
    """Create four empty versions, of which the first is champion and the last is challenger."""
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


def test_the_challenger_is_promoted_and_rolled_back(
    tracker: Tracker, client: MlflowClient, versions: list[int]
) -> None:
    """The result names the old and the new champion with their metrics; the version records time and reason."""
    change = tracker.promote("demo", reason="better in spring")
    assert (change.name, change.champion.version, change.changed) == ("macrec-demo", 4, True)
    assert change.previous is not None
    assert (change.previous.version, change.champion.metrics) == (1, {"ndcg_10": 0.4})
    assert champion(client) == 4
    tag = client.get_model_version("macrec-demo", "4").tags["macrec.decision"]
    assert tag.endswith(": promoted over version 1. better in spring")
    rollback = tracker.rollback("demo")
    assert (rollback.champion.version, champion(client)) == (1, 1)
    assert client.get_model_version("macrec-demo", "1").tags["macrec.decision"].endswith("rolled back from version 4")
    assert client.get_registered_model("macrec-demo").aliases["challenger"] in {4, "4"}
    lines = client.get_model_version("macrec-demo", "4").description.splitlines()
    assert lines[:2] == ["Decisions, the newest last:", ""]
    assert lines[2].endswith(r"promoted over version 1\. better in spring")


def test_repeated_rollbacks_go_further_back(tracker: Tracker, client: MlflowClient, versions: list[int]) -> None:
    """After the champions 1, 2, 3 and 1, rollbacks lead to 3, 2 and 1, and then there is no previous champion."""
    for version in (2, 3, 1):
        tracker.promote("demo", version=version)
    for expected in (3, 2, 1):
        assert tracker.rollback("demo").champion.version == expected == champion(client)
    with pytest.raises(TrackingError, match="macrec-demo has no champion before version 1"):
        tracker.rollback("demo")


def test_promoting_the_champion_changes_nothing(tracker: Tracker, client: MlflowClient, versions: list[int]) -> None:
    """The champion does not enter the history again, so a rollback still has no previous champion."""
    assert not tracker.promote("demo", version=1).changed
    with pytest.raises(TrackingError, match="has no champion before"):
        tracker.rollback("demo")


def test_a_rollback_skips_deleted_versions(tracker: Tracker, client: MlflowClient, versions: list[int]) -> None:
    """If version 2 of the champions 1, 2, 3 was deleted, the rollback leads to version 1."""
    for version in (2, 3):
        tracker.promote("demo", version=version)
    client.delete_model_version("macrec-demo", "2")
    assert tracker.rollback("demo").champion.version == 1


def test_an_alias_moved_in_the_ui_is_part_of_the_history(
    tracker: Tracker, client: MlflowClient, versions: list[int]
) -> None:
    """A rollback also returns to a champion that got the alias in the UI, and from there to the one before."""
    tracker.promote("demo", version=2)
    client.set_registered_model_alias("macrec-demo", "champion", "3")
    tracker.promote("demo", version=4)
    assert [tracker.rollback("demo").champion.version for _ in range(3)] == [3, 2, 1]


def test_a_process_that_dies_after_moving_the_alias_loses_no_history(
    tracker: Tracker, client: MlflowClient, versions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new version is champion although the history lacks it, and it can be rolled back."""
    tracker.promote("demo", version=2)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_registered_model_tag", die)
        with pytest.raises(KeyboardInterrupt):
            tracker.promote("demo", version=3)
    assert champion(client) == 3
    assert tracker.rollback("demo").champion.version == 2


def test_the_oldest_decisions_are_dropped_from_a_long_description(
    tracker: Tracker, client: MlflowClient, versions: list[int]
) -> None:
    """PostgreSQL accepts at most 5,000 characters; the card and the newest decisions stay, and tags are complete."""
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
    ("dies_in", "champion_after", "next_champions"),
    [("set_registered_model_alias", 3, [2, 1]), ("set_model_version_tag", 2, [1]), ("second history", 2, [1])],
)
def test_a_rollback_that_dies_does_not_return_to_the_version_it_left(
    tracker: Tracker,
    client: MlflowClient,
    versions: list[int],
    monkeypatch: pytest.MonkeyPatch,
    dies_in: str,
    champion_after: int,
    next_champions: list[int],
) -> None:
    """If the rollback from 3 to 2 dies before or after it moves the alias, later rollbacks never lead back to 3."""
    for version in (2, 3):
        tracker.promote("demo", version=version)
    original, calls = MlflowClient.set_registered_model_tag, []

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    def die_at_second_call(*arguments: Any) -> None:
        calls.append(arguments)
        (die if len(calls) == 2 else original)(*arguments)

    with monkeypatch.context() as patched:
        if dies_in == "second history":
            patched.setattr(MlflowClient, "set_registered_model_tag", die_at_second_call)
        else:
            patched.setattr(MlflowClient, dies_in, die)
        with pytest.raises(KeyboardInterrupt):
            tracker.rollback("demo")
    assert champion(client) == champion_after
    assert [tracker.rollback("demo").champion.version for _ in next_champions] == next_champions


def test_a_consumer_always_finds_a_champion(tracker: Tracker, client: MlflowClient, versions: list[int]) -> None:
    """A consumer that reads the alias repeatedly while it moves back and forth always gets one of both versions."""
    seen: list[int] = []
    done = threading.Event()

    def read_alias() -> None:
        while not done.is_set():
            seen.append(champion(client))

    reader = threading.Thread(target=read_alias)
    reader.start()
    try:
        for _ in range(8):
            tracker.promote("demo")
            tracker.rollback("demo")
    finally:
        done.set()
        reader.join()
    assert set(seen) <= {1, 4}
    assert len(seen) > 8


@pytest.mark.parametrize(
    ("dataset", "version", "problem"),
    [
        ("demo", 9, "macrec-demo has no version 9. The versions are: 1, 2, 3, 4"),
        ("other", None, "There is no registered model macrec-other. The registered models are: macrec-demo"),
    ],
)
def test_errors_list_what_exists(
    tracker: Tracker, versions: list[int], dataset: str, version: int | None, problem: str
) -> None:
    """If a version or model does not exist, the message lists those that do."""
    with pytest.raises(TrackingError, match=problem):
        tracker.promote(dataset, version=version)


def test_no_challenger_and_no_champion(tracker: Tracker, client: MlflowClient, versions: list[int]) -> None:
    """Without the aliases, a person has to name a version."""
    for alias in ("challenger", "champion"):
        client.delete_registered_model_alias("macrec-demo", alias)
    with pytest.raises(TrackingError, match="has no challenger"):
        tracker.promote("demo")
    with pytest.raises(TrackingError, match=r"has no champion\. Choose one"):
        tracker.rollback("demo")
    assert tracker.promote("demo", version=2).previous is None


def test_the_commands_report_the_change(
    home: Path, versions: list[int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The commands print the old and the new champion with their metrics, and how to undo; errors are one line."""

    def run_command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_info:
            cli.main(arguments)
        assert isinstance(exit_info.value.code, int)
        return exit_info.value.code, *capsys.readouterr()

    status, out, _ = run_command("promote", "demo", "--home", str(home))
    assert status == 0
    assert "macrec-demo: version 4 is now @champion; it was version 1." in out
    assert "0.4000 now, 0.1000 before" in out
    assert "macrec rollback demo" in out
    assert "nothing changed" in run_command("promote", "demo", "--home", str(home))[1]
    status, out, _ = run_command("rollback", "demo", "--reason", "empty answers", "--home", str(home))
    assert "version 1 is now @champion; it was version 4." in out
    assert "macrec promote demo --version 4" in out
    status, _, err = run_command("rollback", "demo", "--home", str(home))
    assert (status, err.count("\n")) == (2, 1)
    status, _, err = run_command("promote", "demo", "--home", str(tmp_path / "nothing"))
    assert status == 2
    assert "There is no MLflow store in" in err
    assert not (tmp_path / "nothing").exists()


def test_refits_of_the_champion_do_not_displace_other_models(
    tracker: Tracker, client: MlflowClient, versions: list[int]
) -> None:
    """Versions 2, 3 and 4 are refits of one evaluated model. Rollbacks go back one refit, then to the other model."""
    for number in (2, 3, 4):
        client.set_model_version_tag("macrec-demo", str(number), EVALUATED_DIGEST_TAG, "abc")
    tracker.promote("demo", version=2)
    for number in (3, 4):
        version = RegisteredVersion("macrec-demo", number, f"models:/macrec-demo/{number}", (), "", "")
        change = tracker.promote_refit(version, "demo", over=number - 1, card="The card", reason="It was refused.")
        assert (change.champion.version, champion(client)) == (number, number)
    assert client.get_registered_model("macrec-demo").tags["macrec.champions"] == "[1, 3, 4]"
    found = client.get_model_version("macrec-demo", "4")
    assert found.tags["macrec.promotion"] == "refit of the champion"
    assert found.tags["macrec.decision"].endswith(": champion as the refit of version 3. It was refused.")
    assert found.description.startswith("The card\n")
    with pytest.raises(ChampionMovedError, match="The champion of macrec-demo is now version 4, not version 2"):
        tracker.promote_refit(version, "demo", over=2, card="", reason="")
    assert [tracker.rollback("demo").champion.version for _ in range(2)] == [3, 1]
