"""Which failures of a stage may pass by themselves, and how long to wait before it is tried again.

In: what a stage raised. Out: Dagster's request for another attempt, for a network or a server that does not answer, a
database that is locked or a disk that hiccups; anything else, such as wrong settings, wrong data, a full disk or a
fault of this package, would fail in the same way again and fails at once, and so does its run.

A step also dies of what no stage raised: its process was killed, or Dagster's database went away while an event was
written. Then its run says nothing here, and a daemon whose `run_retries` are on takes it up again from that step.
"""

import errno
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dagster as dg
from dagster._core.storage.tags import RETRY_ON_ASSET_OR_OP_FAILURE_TAG

from macrec_pipeline.errors import StorageError, TrackingError

logger = logging.getLogger(__name__)

MAX_RETRIES = 3
FIRST_WAIT = 15.0
"""Seconds before the second attempt; each further wait is four times as long: 15 s, a minute, four minutes."""

_NETWORK = (errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTUNREACH)
_PASSING = frozenset((errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, *_NETWORK))
# MLflow's words for a store that does not answer now.
_BUSY = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed where this one failed."""
    if isinstance(error, TrackingError):
        return _store_is_away(list(_behind(error)))
    if isinstance(error, StorageError):
        return any(_is_passing(link) for link in _behind(error))
    return _is_passing(error)


@contextmanager
def tried_again(context: dg.AssetExecutionContext, asset: str) -> Iterator[None]:
    """Have Dagster try the step again, after a wait, if the block fails with what may pass, and else leave the run be.

    Raises:
        RetryRequested: in place of such an error, while there are attempts left; `MACREC_RETRY_SECONDS` is the first
            wait if it is set.
    """
    try:
        yield
    except Exception as error:
        if context.retry_number >= MAX_RETRIES or not may_pass(error):
            leave_failed(context)
            raise
        wait = float(os.environ.get("MACREC_RETRY_SECONDS", FIRST_WAIT)) * 4**context.retry_number
        logger.warning("%-17s failed and is tried again in %.0f s: %s", asset, wait, error)
        raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=wait) from error


def leave_failed(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> None:
    """Tell the daemon that another run would fail in the same way."""
    context.instance.add_run_tags(context.run.run_id, {RETRY_ON_ASSET_OR_OP_FAILURE_TAG: "false"})


def _is_passing(error: BaseException) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or (isinstance(error, OSError) and error.errno in _PASSING)


def _store_is_away(chain: Sequence[BaseException]) -> bool:
    """Whether the tracking store did not answer, by what SQLAlchemy, requests and MLflow raise then."""
    from requests.exceptions import ConnectionError as NoConnection
    from requests.exceptions import RetryError, Timeout
    from sqlalchemy.exc import OperationalError

    database = [link for link in chain if isinstance(link, OperationalError)]
    if database:  # of SQLite a lock passes, a full disk or a missing table does not; of a server it is the connection
        return any(not isinstance(link.orig, sqlite3.Error) or "locked" in str(link.orig) for link in database)
    return any(
        isinstance(link, NoConnection | Timeout | RetryError)
        or _is_passing(link)
        or getattr(link, "error_code", None) in _BUSY
        for link in chain
    )


def _behind(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, also where nobody said so."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
