"""Addresses of pictures -> files where the catalogue looks for them, and a table of those that could not be loaded.

A picture is written beside its place and moved there whole, so whatever is there is finished: the same call again
fetches only what is missing, after an interruption too. No file is written outside the pictures' folder.
"""

import asyncio
import errno
import io
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile

import aiohttp
import polars as pl
from filelock import FileLock, Timeout

from macrec_pipeline.data.images.downloads import FetchError, FetchLimits, check_image, download_patiently, open_session
from macrec_pipeline.data.readers.image_files import (
    PLACEHOLDER,
    WORK_FOLDER,
    existing_images,
    image_file_name,
    image_folder,
)
from macrec_pipeline.errors import DataError
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.schemas import FETCH_FAILURES

# A decoded picture takes many times its bytes, so few are decoded at once.
_NUM_DECODERS = 2
# Errors of the disk as a whole: the next picture would meet them too.
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass
class FetchReport:
    """What a fetch found and did.

    Attributes:
        folder: of the pictures.
        present: pictures that were there before.
        fetched: pictures loaded now.
        without_url: items that have neither a picture nor an address.
        failures: rows of `FETCH_FAILURES`, a picture each.
    """

    folder: Path
    present: int = 0
    fetched: int = 0
    without_url: int = 0
    failures: list[tuple[str, str, str, str, int]] = field(default_factory=list)

    @property
    def work_folder(self) -> Path:
        """Holds the lock, the parts of pictures and the table of failures."""
        return self.folder / WORK_FOLDER

    @property
    def failures_table(self) -> Path:
        """`FETCH_FAILURES` as parquet."""
        return self.work_folder / "failures.parquet"


def fetch_images(
    addresses: pl.DataFrame,
    template: str,
    data_dir: Path,
    limits: FetchLimits,
    progress: Progress = quiet_progress,
) -> FetchReport:
    """Load the pictures that are not there yet.

    The table of failures is written at the end, and at an interruption as well.

    Args:
        addresses: item_id and image_url, one row an item.
        template: where a picture belongs, relative to the data folder, with `{item_id}` in it.
        data_dir: the data folder.
        limits: how hard to try.
        progress: is told after each picture.

    Raises:
        DataError: another fetch is at work in the folder, or the disk cannot be written.
        KeyboardInterrupt: Ctrl-C; what is finished stays, and nothing is half written.
    """
    report = FetchReport(data_dir / image_folder(template))
    try:
        report.work_folder.mkdir(parents=True, exist_ok=True)
        with FileLock(report.work_folder / "lock", timeout=0):
            _fetch_missing(report, addresses, template, data_dir, limits, progress)
    except Timeout:
        raise DataError(f"Another fetch is at work in {report.folder}. Wait for its end, or stop it.") from None
    except OSError as error:
        raise DataError(
            f"{report.folder} cannot be written: {error}. What is finished is kept: run the command again once it can."
        ) from None
    return report


def _fetch_missing(
    report: FetchReport,
    addresses: pl.DataFrame,
    template: str,
    data_dir: Path,
    limits: FetchLimits,
    progress: Progress,
) -> None:
    for left_over in report.work_folder.glob("*.part"):
        left_over.unlink()
    missing = addresses.filter(existing_images(addresses["item_id"], template, data_dir).is_null())
    todo = missing.drop_nulls("image_url").select("item_id", "image_url")
    report.present, report.without_url = addresses.height - missing.height, missing.height - todo.height
    try:
        with warnings.catch_warnings(), ThreadPoolExecutor(_NUM_DECODERS, "pictures") as pool:
            # Pillow warns of sizes, which are judged here, and of metadata, which nobody reads.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            fetch = _Fetch(report, template, data_dir, limits, pool, progress, todo.height)
            asyncio.run(fetch.run(todo.iter_rows()))
    finally:
        table = pl.DataFrame(report.failures, schema=FETCH_FAILURES.empty().schema, orient="row").sort("item_id")
        content = io.BytesIO()
        FETCH_FAILURES.check(table).write_parquet(content)
        _write(content.getbuffer(), report.failures_table, report.work_folder)


@dataclass(frozen=True)
class _Fetch:
    """One run over a list of addresses; its coroutines share the list and the report."""

    report: FetchReport
    template: str
    data_dir: Path
    limits: FetchLimits
    pool: ThreadPoolExecutor
    progress: Progress
    total: int

    async def run(self, todo: Iterator[tuple[str, str]]) -> None:
        """Empty the list with as many workers as there may be connections."""
        self.progress("pictures", 0, self.total)
        async with open_session(self.limits) as session:
            workers = [asyncio.create_task(self._work(session, todo)) for _ in range(self.limits.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:  # the disk is full, or Ctrl-C: the others end before the session does
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, session: aiohttp.ClientSession, todo: Iterator[tuple[str, str]]) -> None:
        report = self.report
        for item_id, url in todo:
            try:
                data = await download_patiently(session, url, self.limits)
                await asyncio.get_running_loop().run_in_executor(self.pool, self._store, item_id, data)
                report.fetched += 1
            except FetchError as error:
                report.failures.append((item_id, url, error.reason, str(error), error.attempts))
            done = report.fetched + len(report.failures)
            self.progress("pictures", done, self.total, {"failed": len(report.failures)})

    def _store(self, item_id: str, data: bytes) -> None:
        """Put a picture in its place if it is one. Raises `FetchError`, or `OSError` if no other could be stored."""
        check_image(data, max_pixels=self.limits.max_pixels)
        target = self.data_dir / self.template.replace(PLACEHOLDER, image_file_name(item_id))
        root, parent = os.path.realpath(self.report.folder), os.path.realpath(target.parent)
        if parent != root and not parent.startswith(root + os.sep):  # a link among the pictures
            raise FetchError("outside_folder", f"{target.parent} leads out of the pictures' folder")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(data, target, self.report.work_folder)
        except OSError as error:
            if error.errno in _FATAL:
                raise
            raise FetchError("cannot_write", str(error)) from None


def _write(data: bytes | memoryview, target: Path, work_folder: Path) -> None:
    """All of it or nothing; the part is in `work_folder`, where the next run finds it after a kill."""
    with NamedTemporaryFile(dir=work_folder, suffix=".part", delete=False) as part:
        try:
            part.write(data)
            part.flush()
            Path(part.name).chmod(0o644)
            os.replace(part.name, target)  # noqa: PTH105 (both are paths of one file system)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
