"""Fetch images from their addresses to where the catalogue looks for them, with a table of the failures.

An image is first written to a work folder and moved to its place when it is complete, so every file that exists is
whole. Running the same call again, also after an interruption, fetches only what is missing. No file is written
outside the image folder.
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

from macrec_pipeline.data.images.downloads import (
    FetchError,
    FetchLimits,
    check_image,
    download_with_retries,
    open_session,
)
from macrec_pipeline.data.readers.image_addresses import separate_addresses
from macrec_pipeline.data.readers.image_files import (
    WORK_FOLDER,
    existing_images,
    fill_template,
    image_file_name,
    image_folder,
)
from macrec_pipeline.errors import DataError
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.runtime.secret_addresses import address_without_secrets, without_secrets
from macrec_pipeline.schemas import FETCH_FAILURES

# A decoded image takes many times the memory of its bytes, so only a few are decoded at the same time.
_NUM_DECODERS = 2
# Errors of the whole disk, which every following image would also meet.
_FATAL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass
class FetchReport:
    """What a fetch found and did.

    Attributes:
        folder: the image folder.
        present: number of images that already existed.
        fetched: number of images that were loaded.
        without_url: number of items that have neither an image nor an address.
        failures: rows of `FETCH_FAILURES`, one per image that could not be loaded.
    """

    folder: Path
    present: int = 0
    fetched: int = 0
    without_url: int = 0
    failures: list[tuple[str, str, str, str, int]] = field(default_factory=list)

    @property
    def work_folder(self) -> Path:
        """The folder of the lock, the incomplete images and the table of failures."""
        return self.folder / WORK_FOLDER

    @property
    def failures_table(self) -> Path:
        """The parquet file of the failures (`FETCH_FAILURES`)."""
        return self.work_folder / "failures.parquet"


def fetch_images(
    addresses: pl.DataFrame,
    template: str,
    data_dir: Path,
    limits: FetchLimits,
    progress: Progress = quiet_progress,
) -> FetchReport:
    """Load the images that do not exist yet.

    The table of failures is written at the end, also after an interruption.

    Args:
        addresses: item_id and image_url, one row per item. Of several addresses in one cell, the first that works is
            used.
        template: where an image belongs, relative to the data folder; contains `{item_id}`.
        data_dir: the data folder.
        limits: limits of fetching.
        progress: called after each image.

    Raises:
        DataError: another fetch is running in this folder, or the disk cannot be written.
        KeyboardInterrupt: after Ctrl-C. Complete images stay, and there are no incomplete ones.
    """
    report = FetchReport(data_dir / image_folder(template))
    try:
        report.work_folder.mkdir(parents=True, exist_ok=True)
        with FileLock(report.work_folder / "lock", timeout=0):
            _fetch_missing(report, addresses, template, data_dir, limits, progress)
    except Timeout:
        raise DataError(
            f"Another fetch is running in {report.folder}. Wait until it has finished, or stop it."
        ) from None
    except OSError as error:
        raise DataError(
            f"{report.folder} cannot be written: {error}. Complete images are kept: correct the cause, then run the "
            "command again."
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
    for incomplete in report.work_folder.glob("*.part"):
        incomplete.unlink()
    missing = addresses.filter(existing_images(addresses["item_id"], template, data_dir).is_null())
    pending = missing.drop_nulls("image_url").select("item_id", "image_url")
    report.present, report.without_url = addresses.height - missing.height, missing.height - pending.height
    try:
        with warnings.catch_warnings(), ThreadPoolExecutor(_NUM_DECODERS, "images") as pool:
            # Pillow warns of large sizes, which are checked here, and of metadata, which is not used.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            fetch = _Fetch(report, template, data_dir, limits, pool, progress, pending.height)
            asyncio.run(fetch.run(pending.iter_rows()))
    finally:
        table = pl.DataFrame(report.failures, schema=FETCH_FAILURES.empty().schema, orient="row").sort("item_id")
        content = io.BytesIO()
        FETCH_FAILURES.check(table).write_parquet(content)
        _write(content.getbuffer(), report.failures_table, report.work_folder)


@dataclass(frozen=True)
class _Fetch:
    """One run over a list of addresses. Its coroutines share the list and the report."""

    report: FetchReport
    template: str
    data_dir: Path
    limits: FetchLimits
    pool: ThreadPoolExecutor
    progress: Progress
    total: int

    async def run(self, pending: Iterator[tuple[str, str]]) -> None:
        """Fetch all pending images with one worker per allowed connection."""
        self.progress("images", 0, self.total)
        async with open_session(self.limits) as session:
            workers = [asyncio.create_task(self._work(session, pending)) for _ in range(self.limits.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:  # after a fatal error or Ctrl-C, the other workers must end before the session is closed
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, session: aiohttp.ClientSession, pending: Iterator[tuple[str, str]]) -> None:
        report = self.report
        for item_id, cell in pending:
            failures = []
            for url in (addresses := separate_addresses(cell)):
                try:
                    data = await download_with_retries(session, url, self.limits)
                    await asyncio.get_running_loop().run_in_executor(self.pool, self._store, item_id, data)
                except FetchError as error:
                    shown = address_without_secrets(url)
                    failures.append((item_id, shown, error.reason, without_secrets(str(error)), error.attempts))
                else:
                    report.fetched += 1
                    break
            if len(failures) == len(addresses):
                item_id, url, reason, message, attempts = failures[0]
                others = f" ({len(failures) - 1} more addresses of this item failed too)" if len(failures) > 1 else ""
                report.failures.append((item_id, url, reason, message + others, attempts))
            num_done = report.fetched + len(report.failures)
            self.progress("images", num_done, self.total, {"failed": len(report.failures)})

    def _store(self, item_id: str, data: bytes) -> None:
        """Check an image and move it to its place.

        Raises:
            FetchError: the bytes are not an image, or this image cannot be stored.
            OSError: no image can be stored.
        """
        check_image(data, max_pixels=self.limits.max_pixels)
        target = self.data_dir / fill_template(self.template, image_file_name(item_id))
        root, parent = os.path.realpath(self.report.folder), os.path.realpath(target.parent)
        if parent != root and not parent.startswith(root + os.sep):  # a symbolic link inside the image folder
            raise FetchError("outside_folder", f"{target.parent} leads out of the image folder")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(data, target, self.report.work_folder)
        except OSError as error:
            if error.errno in _FATAL_ERRORS:
                raise
            raise FetchError("cannot_write", str(error)) from None


def _write(data: bytes | memoryview, target: Path, work_folder: Path) -> None:
    """Write a whole file or nothing. If the process is killed, the next run removes the part in `work_folder`."""
    with NamedTemporaryFile(dir=work_folder, suffix=".part", delete=False) as part:
        try:
            part.write(data)
            part.flush()
            Path(part.name).chmod(0o644)
            os.replace(part.name, target)  # noqa: PTH105 (both paths are in the same file system)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
