"""The MLflow run of an asset: metrics, artifacts and tags arrive, even if the store is unavailable for a while."""

import errno
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from macrec_pipeline.errors import StoreUnavailableError, TrackingError
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.tracking import AssetRun, Tracker, metric_progress
from macrec_pipeline.tracking.store import connect


@pytest.fixture
def run(tracker: Tracker):
    with tracker.asset_run(
        dataset="demo", asset="recommender", dagster_run_id="run-1", config=resolve_config("demo")
    ) as run:
        yield run


def history(home: Path, run: AssetRun, name: str) -> list[tuple[int, float]]:
    run.flush()
    points = connect(home).client.get_metric_history(run.run_id, name)
    return sorted((point.step, point.value) for point in points)


def count_batches(run: AssetRun, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of points in each batch that is sent from now on."""
    sizes: list[int] = []
    send = run._client.log_batch

    def counted(run_id: str, **content: Any) -> None:
        sizes.append(len(content["metrics"]))
        send(run_id, **content)

    monkeypatch.setattr(run._client, "log_batch", counted)
    return sizes


def test_metrics_are_kept_by_step(run: AssetRun, home: Path) -> None:
    """Each value is stored at its step; without a step it is stored at 0."""
    for step in (1, 2, 3):
        run.log_metrics({"loss": 1 / step, "hr_10": 0.1 * step}, step=step)
    run.log_metrics({"items": 600})
    assert history(home, run, "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert history(home, run, "items") == [(0, 600.0)]


def test_metrics_are_sent_in_batches(run: AssetRun, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand steps take a handful of requests, and no point is lost or sent twice."""
    sizes = count_batches(run, monkeypatch)
    for step in range(1000):
        run.log_metrics({"loss": step, "rate": -step}, step=step)
    assert history(home, run, "loss") == [(step, step) for step in range(1000)]
    assert len(history(home, run, "rate")) == 1000
    assert len(sizes) <= 6
    assert sum(sizes) == 2000


def test_more_points_than_one_request_may_have(run: AssetRun, home: Path) -> None:
    """A call with more metrics than MLflow accepts per request is split."""
    run.log_metrics({f"m_{index}": index for index in range(2300)})
    assert history(home, run, "m_2299") == [(0, 2299.0)]
    assert len(connect(home).client.get_run(run.run_id).data.metrics) == 2300


def test_values_that_are_not_finite_are_skipped(run: AssetRun, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """NaN and infinity never reach the store, and there is one warning per metric."""
    for step, value in enumerate((1.0, math.nan, math.inf, 2.0)):
        run.log_metrics({"loss": value, "fine": step}, step=step)
    assert history(home, run, "loss") == [(0, 1.0), (3, 2.0)]
    assert len(history(home, run, "fine")) == 4
    assert caplog.messages == ["recommender: metric loss is nan at step 1 and is skipped"]


@pytest.mark.parametrize("name", ["hr@10", "", " x", "a\nb", "-x", "x" * 201, "größe"])
def test_invalid_metric_names_are_rejected(run: AssetRun, name: str) -> None:
    """A name that the store would reject later is rejected at once."""
    with pytest.raises(TrackingError, match="is not a valid name of a metric"):
        run.log_metrics({name: 1.0})


def test_a_store_that_is_unavailable_for_a_moment(
    run: AssetRun, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch that cannot be sent causes one warning; its points are kept and sent with the next batch."""
    from mlflow.exceptions import MlflowException

    def unavailable(*_: Any, **__: Any) -> None:
        raise MlflowException("the server does not answer\nand here is a trace")

    with monkeypatch.context() as patch:
        patch.setattr(run._client, "log_batch", unavailable)
        run.log_metrics({f"m_{index}": index for index in range(600)})
        for step in range(600):  # the store is not tried again at each step
            run.log_metrics({"loss": step}, step=step)
        with pytest.raises(StoreUnavailableError, match=r"^recommender: .*: the server does not answer$"):
            run.flush()
    assert caplog.messages == ["recommender: metrics: the server does not answer; trying again in 15 seconds"]
    assert (home / "mlflow" / "unsent" / run.run_id / "messages.jsonl").is_file()
    assert history(home, run, "loss") == [(step, step) for step in range(600)]
    assert history(home, run, "m_0") == [(0, 0.0)]
    assert not list((home / "mlflow" / "unsent").iterdir())


def test_a_full_disk_of_the_store(
    run: AssetRun, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A plot that the store has no space for is kept in the home and sent later, and does not end the stage."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run._client, "log_artifact", full)
        run.log_bytes("plots/loss.png", b"\x89PNG")
    (copy,) = (home / "mlflow" / "unsent" / run.run_id / "files").rglob("*.png")
    assert copy.read_bytes() == b"\x89PNG"
    run.flush()
    assert "No space left on device" in caplog.messages[0]
    assert Path(connect(home).client.download_artifacts(run.run_id, "plots/loss.png")).read_bytes() == b"\x89PNG"
    assert not copy.exists()


def test_no_space_anywhere(run: AssetRun, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If points cannot be written to the home either, they stay in memory and training continues."""
    (home / "mlflow" / "unsent").write_text("in the way")
    with monkeypatch.context() as patch:
        patch.setattr(run._client, "log_batch", _out_of_space)
        for step in range(600):
            run.log_metrics({"loss": step}, step=step)
        with pytest.raises(TrackingError, match=r"The MLflow store is unavailable, and .*unsent.* cannot be written"):
            run.set_tags({"a": "b"})
    (home / "mlflow" / "unsent").unlink()
    assert history(home, run, "loss") == [(step, step) for step in range(600)]


def _out_of_space(*_: Any, **__: Any) -> None:
    from mlflow.exceptions import MlflowException

    raise MlflowException("(sqlite3.OperationalError) database or disk is full")


def test_a_slow_store_takes_a_small_share_of_the_time(run: AssetRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower the store, the less often it is called: about a twentieth of the time is spent on sending."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    calls: list[float] = []

    def slow(*_: Any, **__: Any) -> None:
        calls.append(clock[0])
        clock[0] += 4.0

    with monkeypatch.context() as patch:
        patch.setattr(run._client, "log_batch", slow)
        while clock[0] < 1000:
            clock[0] += 0.1
            run.log_metrics({"loss": 1.0, "rate": 2.0}, step=len(calls))
    assert len(calls) * 4.0 <= 0.06 * clock[0]


def test_data_that_the_store_rejects_is_moved_aside(
    tracker: Tracker, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The unsent data of a run that was deleted meanwhile does not block later runs."""
    config = resolve_config("demo")
    with tracker.asset_run(dataset="demo", asset="sasrec", dagster_run_id="run-1", config=config) as deleted:
        monkeypatch.setattr(deleted._client, "log_batch", _out_of_space)
        deleted.log_metrics({"loss": 1.0})
    monkeypatch.undo()
    connect(home).client.delete_run(deleted.run_id)
    with tracker.asset_run(dataset="demo", asset="items", dagster_run_id="run-2", config=config) as run:
        run.log_metrics({"loss": 2.0})
    rejected = home / "mlflow" / "unsent" / f"refused-{deleted.run_id}"
    assert "loss" in (rejected / "messages.jsonl").read_text()
    assert str(rejected) in caplog.messages[-1]
    assert history(home, run, "loss") == [(0, 2.0)]


def test_artifacts_are_stored_under_their_names(run: AssetRun, home: Path, tmp_path: Path) -> None:
    """Files, folders, bytes and text are stored under the given names."""
    folder = tmp_path / "report"
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "a.txt").write_text("a")
    (tmp_path / "one.json").write_text("{}")
    run.log_artifact(tmp_path / "one.json")
    run.log_artifact(tmp_path / "one.json", "below")
    run.log_artifact(folder, "report")
    run.log_bytes("plots/loss.png", b"\x89PNG")
    run.log_text("notes.txt", "größe")
    root = Path(connect(home).client.download_artifacts(run.run_id, ""))
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert names == {
        "config.json",
        "one.json",
        "below/one.json",
        "report/parts/a.txt",
        "plots/loss.png",
        "notes.txt",
    }
    assert (root / "plots" / "loss.png").read_bytes() == b"\x89PNG"
    assert (root / "notes.txt").read_text(encoding="utf-8") == "größe"


def test_invalid_artifacts_are_rejected(run: AssetRun, tmp_path: Path) -> None:
    """A missing file and a name that leads out of the run are rejected."""
    with pytest.raises(TrackingError, match=r"missing\.png cannot be logged because it does not exist"):
        run.log_artifact(tmp_path / "missing.png")
    for name in ("../x", "/etc/x", "", "a/../../x"):
        with pytest.raises(TrackingError, match="is not a valid name of an artifact"):
            run.log_bytes(name, b"")


def test_tags_are_strings(run: AssetRun, home: Path) -> None:
    """Tags are set on the run, as strings."""
    run.set_tags({"digest": "abc", "rows": "12"})
    tags = connect(home).client.get_run(run.run_id).data.tags
    assert (tags["digest"], tags["rows"]) == ("abc", "12")


class RecordedProgress:
    """A progress callback that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, stage: str, done: int, total: int, metrics=None) -> None:
        self.calls.append((stage, done, total, metrics))


def test_progress_becomes_metrics(run: AssetRun, home: Path) -> None:
    """The metrics of a stage are stored at the step `done`, and every call also reaches the other callback."""
    also = RecordedProgress()
    progress = metric_progress(run, also)
    progress("fit", 1, 3, {"loss": 3.0})
    progress("fit", 2, 3)
    progress("fit", 3, 3, {"loss": 1.0})
    assert history(home, run, "loss") == [(1, 3.0), (3, 1.0)]
    assert also.calls == [("fit", 1, 3, {"loss": 3.0}), ("fit", 2, 3, None), ("fit", 3, 3, {"loss": 1.0})]


def test_progress_is_thinned_out(run: AssetRun, home: Path) -> None:
    """Of 100,000 steps, about 500 evenly spaced points per metric are stored, including the last."""
    also = RecordedProgress()
    progress = metric_progress(run, also)
    for done in range(1, 100_001):
        # One metric is reported at each step, the other rarely and out of phase with the stored points.
        progress("fit", done, 100_000, {"loss": done} | ({"rate": done} if done % 1001 == 0 else {}))
    steps = [step for step, _ in history(home, run, "loss")]
    assert 490 <= len(steps) <= 502
    assert steps[-1] == 100_000
    assert max(after - before for before, after in pairwise(steps)) <= 200
    assert len(history(home, run, "rate")) == 99
    assert len(also.calls) == 100_000


def test_stages_are_thinned_out_separately(run: AssetRun, home: Path) -> None:
    """The points of one stage do not reduce those of another stage with the same metric."""
    progress = metric_progress(run, RecordedProgress())
    for stage, offset in (("text", 0.0), ("image", 0.5)):
        for done in range(1, 4):
            progress(stage, done, 3, {"rate": done + offset})
    assert len(history(home, run, "rate")) == 6
