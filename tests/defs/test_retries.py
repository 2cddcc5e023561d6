"""Transient errors are retried with growing waits; all other errors fail at once."""

import errno
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import polars as pl
import pytest
import requests
from sqlalchemy.exc import OperationalError

from macrec_pipeline.data.readers import registry
from macrec_pipeline.datasets import DatasetSpec
from macrec_pipeline.defs.assets.interactions import raw_items
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.retries import MAX_RETRIES, is_transient, retry_transient_errors
from macrec_pipeline.errors import ConfigError, DataError, StorageError, TrackingError, TrainingError
from macrec_pipeline.tracking import open_tracking

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def _caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def _database(message: str) -> OperationalError:
    return OperationalError("SELECT 1", None, sqlite3.OperationalError(message))


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (OSError(errno.EIO, "a bad sector, or a cable"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (_caused_by(StorageError("x cannot be stored"), OSError(errno.ESTALE, "NFS")), True),
        (_caused_by(TrackingError("x"), _caused_by(RuntimeError(), requests.exceptions.ConnectionError())), True),
        (_caused_by(TrackingError("x"), _database("database is locked")), True),
        (_caused_by(TrackingError("x"), OperationalError("SELECT 1", None, Exception("server closed"))), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (_caused_by(StorageError("x cannot be stored"), OSError(errno.ENOSPC, "disk full")), False),
        (StorageError("items was changed after it was written"), False),
        (TrackingError("There is no models:/x@champion"), False),
        (_caused_by(TrackingError("x"), _database("database or disk is full")), False),
        (ConfigError("seed"), False),
        (DataError("a column"), False),
        (TrainingError("the loss is not finite"), False),
        (AssertionError(), False),
        (MemoryError(), False),
    ],
    ids=repr,
)
def test_only_some_errors_are_transient(error: Exception, transient: bool) -> None:
    """Network errors, locks and brief disk faults are transient; settings, data, a full disk and bugs are not."""
    assert is_transient(error) == transient


def test_a_tracking_server_that_does_not_respond_is_transient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error that MLflow really raises when nothing listens on the port is transient."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError) as raised:
        open_tracking(tmp_path)
    assert is_transient(raised.value)


class Reader:
    """Raises an error a given number of times before it reads."""

    def __init__(self, read: Callable[..., pl.DataFrame], error: Exception, *, times: int) -> None:
        self._read, self._error, self._left = read, error, times
        self.attempts = 0

    def __call__(self, spec: DatasetSpec, data: Path, **options: Any) -> pl.DataFrame:
        self.attempts += 1
        self._left -= 1
        if self._left >= 0:
            raise self._error
        return self._read(spec, data, **options)


@pytest.mark.parametrize(
    ("error", "times", "attempts", "succeeds"),
    [
        (OSError(errno.EIO, "Input/output error"), 2, 3, True),
        (OSError(errno.EIO, "Input/output error"), 99, 1 + MAX_RETRIES, False),
        (DataError("items.csv, line 3"), 99, 1, False),
    ],
)
def test_a_step_is_retried_only_for_a_transient_error(
    error: Exception,
    times: int,
    attempts: int,
    succeeds: bool,
    settings: Settings,
    partition: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Dagster counts the attempts, and the error that remains in the end is the asset's own."""
    reader = Reader(registry.read_raw_items, error, times=times)
    monkeypatch.setattr(registry, "read_raw_items", reader)
    monkeypatch.setenv("MACREC_RETRY_SECONDS", "0")

    def materialize() -> dg.ExecuteInProcessResult:
        return dg.materialize([raw_items], partition_key=partition, resources={"settings": settings}, run_config=QUIET)

    if succeeds:
        result = materialize()
        restarted = [event for event in result.all_events if event.event_type == dg.DagsterEventType.STEP_RESTARTED]
        assert len(restarted) == attempts - 1
        assert "raw_items           failed and will be retried in 0 s: [Errno 5] Input/output error" in caplog.messages
    else:
        with pytest.raises(type(error)) as raised:
            materialize()
        assert raised.value is error
    assert reader.attempts == attempts


@pytest.mark.parametrize(("retry_number", "wait"), [(0, 15), (1, 60), (2, 240)])
def test_waits_grow_fourfold(retry_number: int, wait: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries wait for 15 seconds, one minute and four minutes, so that a restarted server has time to come back."""
    monkeypatch.delenv("MACREC_RETRY_SECONDS", raising=False)
    context: Any = SimpleNamespace(retry_number=retry_number)
    with pytest.raises(dg.RetryRequested) as requested, retry_transient_errors(context, "items"):
        raise TimeoutError
    assert requested.value.seconds_to_wait == wait


RETRYING = {"run_retries": {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": True}}
"""The same as in docker-compose.yml."""


@pytest.mark.parametrize(
    ("error", "source", "will_retry"),
    [
        (DataError("items.csv, line 3"), "asset", "false"),
        (OSError(errno.EIO, "Input/output error"), "asset", "false"),  # the step has tried four times
        (OperationalError("INSERT", None, Exception("server closed the connection")), "event log", "true"),
    ],
)
def test_a_daemon_retries_a_run_that_no_asset_has_failed(
    error: Exception,
    source: str,
    will_retry: str,
    settings: Settings,
    partition: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If Dagster's database goes away while an event is written, the run is retried; after a wrong file it is not."""
    monkeypatch.setenv("MACREC_RETRY_SECONDS", "0")
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides=RETRYING) as instance:
        if source == "asset":
            monkeypatch.setattr(registry, "read_raw_items", Reader(registry.read_raw_items, error, times=99))
        else:
            store = instance.event_log_storage.store_event

            def store_or_fail(event: dg.EventLogEntry) -> None:
                if event.is_dagster_event and event.dagster_event_type == dg.DagsterEventType.ASSET_MATERIALIZATION:
                    raise error
                store(event)

            monkeypatch.setattr(instance.event_log_storage, "store_event", store_or_fail)
        result = dg.materialize(
            [raw_items],
            partition_key=partition,
            resources={"settings": settings},
            run_config=QUIET,
            instance=instance,
            raise_on_error=False,
        )
        assert not result.success
        run = instance.get_run_by_id(result.run_id)
        assert run is not None
        assert run.tags["dagster/will_retry"] == will_retry
