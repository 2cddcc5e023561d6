"""Which errors of an asset are transient, and how long to wait before its step is tried again.

A network or server that does not respond, a locked database and a brief disk fault are transient, so the step requests
another attempt from Dagster. Wrong settings, wrong data, a full disk or a bug would fail in the same way
again, so the step and its run fail at once.

A step may also end without an error of its own: its process is killed, or Dagster's database goes away while an event
is written. Such a run is not marked here, and a daemon with `run_retries` enabled launches it again from that step.
"""

import errno
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dagster as dg

from macrec_pipeline.defs.dagster_private import RETRY_ON_STEP_FAILURE_TAG
from macrec_pipeline.errors import StorageError, TrackingError

logger = logging.getLogger(__name__)

MAX_RETRIES = 3
FIRST_WAIT = 15.0
"""Seconds before the second attempt. Each further wait is four times as long: 15 s, 1 min, 4 min."""

_NETWORK_ERRNOS = (errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTUNREACH)
_TRANSIENT_ERRNOS = frozenset(
    (errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, *_NETWORK_ERRNOS)
)
# MLflow's error codes for a store that cannot respond now.
_BUSY_ERROR_CODES = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


def is_transient(error: BaseException) -> bool:
    """Return whether another attempt may succeed where this one failed."""
    if isinstance(error, TrackingError):
        return _tracking_store_is_away(list(_error_chain(error)))
    if isinstance(error, StorageError):
        return any(_is_transient_os_error(link) for link in _error_chain(error))
    return _is_transient_os_error(error)


@contextmanager
def retry_transient_errors(context: dg.AssetExecutionContext, asset: str) -> Iterator[None]:
    """Ask Dagster to try the step again if the block fails with a transient error.

    After the last attempt, and for any other error, the run is marked so that the daemon does not launch it again.

    Raises:
        RetryRequested: instead of a transient error, while attempts are left. `MACREC_RETRY_SECONDS`, if it is set,
            replaces the first wait.
    """
    try:
        yield
    except Exception as error:
        if context.retry_number >= MAX_RETRIES or not is_transient(error):
            prevent_run_retry(context)
            raise
        wait = float(os.environ.get("MACREC_RETRY_SECONDS", FIRST_WAIT)) * 4**context.retry_number
        logger.warning("%-19s failed and will be retried in %.0f s: %s", asset, wait, error)
        raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=wait) from error


def prevent_run_retry(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> None:
    """Tell the daemon not to launch the run again, because it would fail in the same way."""
    context.instance.add_run_tags(context.run.run_id, {RETRY_ON_STEP_FAILURE_TAG: "false"})


def _is_transient_os_error(error: BaseException) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS
    )


def _tracking_store_is_away(chain: Sequence[BaseException]) -> bool:
    """Return whether the tracking store did not respond, judged by the errors of SQLAlchemy, requests and MLflow."""
    from requests.exceptions import ConnectionError as RequestsConnectionError
    from requests.exceptions import RetryError, Timeout
    from sqlalchemy.exc import OperationalError

    database_errors = [error for error in chain if isinstance(error, OperationalError)]
    if database_errors:
        # With SQLite only a lock is transient, not a full disk or a missing table. With a database server this error
        # means that the connection failed.
        causes = [error.orig for error in database_errors]
        return any(not isinstance(cause, sqlite3.Error) or "locked" in str(cause) for cause in causes)
    return any(
        isinstance(error, RequestsConnectionError | Timeout | RetryError)
        or _is_transient_os_error(error)
        or getattr(error, "error_code", None) in _BUSY_ERROR_CODES
        for error in chain
    )


def _error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what led to it, through explicit causes and implicit contexts."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
