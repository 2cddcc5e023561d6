"""Fetching images from misbehaving servers: every stored image is complete, every failure has a reason."""

import dataclasses
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from filelock import FileLock
from PIL import Image

from macrec_pipeline.data.images.downloads import FetchLimits
from macrec_pipeline.data.images.fetch import fetch_images
from macrec_pipeline.data.readers.image_files import existing_images, image_file_name
from macrec_pipeline.errors import DataError
from macrec_pipeline.runtime.secret_addresses import address_without_secrets
from macrec_pipeline.schemas import FETCH_FAILURES
from tests.data.image_server import ImageServer, serving

_TEMPLATE = "shop/images/{item_id}.jpg"
_WORK = (".fetch/failures.parquet", ".fetch/lock")
# Responses are slow when other tests keep the processors busy, so the timeout is long. Only `slow` tests a short one.
_LIMITS = FetchLimits(
    timeout=60, attempts=2, first_wait=0.01, max_bytes=2_000_000, max_pixels=50_000_000, allow_private=True
)


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with serving() as running:
        yield running


def _addresses(rows: dict[str, str | None]) -> pl.DataFrame:
    return pl.DataFrame(
        {"item_id": list(rows), "image_url": list(rows.values())}, schema={"item_id": pl.String, "image_url": pl.String}
    ).sort("item_id")


def _failures(data_dir: Path) -> pl.DataFrame:
    return FETCH_FAILURES.check(pl.read_parquet(data_dir / "shop" / "images" / ".fetch" / "failures.parquet"))


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "path",
    ["color?red", "png-called-jpeg", "untyped", "binary", "redirect", "busy-once", "away-once", "breaks-off-once"],
)
def test_images_are_loaded(server: ImageServer, tmp_path: Path, path: str) -> None:
    """Images of any type are loaded, behind a redirect and after a transient error."""
    report = fetch_images(_addresses({"1": server.url(path)}), _TEMPLATE, tmp_path, _LIMITS)
    assert (report.fetched, report.failures) == (1, [])
    assert existing_images(pl.Series(["1"]), _TEMPLATE, tmp_path).to_list() == ["shop/images/1.jpg"]
    with Image.open(tmp_path / "shop" / "images" / "1.jpg") as stored:
        assert stored.size == (32, 24)
    assert _files(tmp_path / "shop" / "images") == {"1.jpg", *_WORK}
    assert _failures(tmp_path).is_empty()


def test_the_first_address_that_works_is_used(server: ImageServer, tmp_path: Path) -> None:
    """Later addresses are not asked; if all of them fail, one row has the reason of the first and the number."""
    works = f"{server.url('missing')}, {server.url('color?red')} {server.url('color?blue')}"
    fails = f"{server.url('missing')}|{server.url('page')}"
    report = fetch_images(_addresses({"1": works, "2": fails}), _TEMPLATE, tmp_path, _LIMITS)
    assert report.fetched == 1
    with Image.open(tmp_path / "shop" / "images" / "1.jpg") as stored:
        assert stored.convert("RGB").getpixel((3, 3))[0] > 200
    ((item_id, url, reason, message, attempts),) = report.failures
    assert (item_id, url, reason, attempts) == ("2", server.url("missing"), "http_404", 1)
    assert message.endswith("(1 more addresses of this item failed too)")


_FAILING_PATHS = {  # path -> reason, attempts
    "missing": ("http_404", 1),
    "broken": ("http_500", 2),
    "breaks-off": ("broken_off", 2),
    "truncated": ("not_decodable", 1),
    "to-file": ("not_http", 1),
    "to-nowhere": ("invalid_address", 1),
    "loop": ("redirects", 1),
    "page": ("content_type", 1),
    "page-called-jpeg": ("not_a_picture", 1),
    "postscript": ("not_a_picture", 1),
    "empty": ("not_a_picture", 1),
    "packed": ("content_encoding", 1),
    "pixel-bomb": ("too_many_pixels", 1),
    "large-image": ("too_many_pixels", 1),
    "announced": ("too_large", 1),
    "endless": ("too_large", 1),
}
_INVALID_ADDRESSES = {
    "file:///etc/hostname": "not_http",
    "ftp://127.0.0.1/x.jpg": "not_http",
    "data:image/png;base64,AAAA": "not_http",
    "javascript:alert(1)": "not_http",
    "http://[::1": "invalid_address",
    "http://127.0.0.1:99999999/x.jpg": "invalid_address",
    "no address at all": "invalid_address",
    "//127.0.0.1/x.jpg": "invalid_address",
    "http://[]@": "invalid_address",
    "http://": "invalid_address",
    "http://" + "x" * 5000 + ".example/": "invalid_address",
    "http://127.0.0.1:1/x.jpg": "connection",
}


def test_every_failure_has_its_reason(server: ImageServer, tmp_path: Path) -> None:
    """Nothing is raised, no partial file remains, and the table has the reason and the number of attempts."""
    addresses = _addresses({path: server.url(path) for path in _FAILING_PATHS} | {"fine": server.url("color?red")})
    report = fetch_images(addresses, _TEMPLATE, tmp_path, _LIMITS)
    table = _failures(tmp_path)
    failures = {
        path: (reason, attempts) for path, reason, attempts in table.select("item_id", "reason", "attempts").rows()
    }
    assert failures == _FAILING_PATHS
    assert report.fetched == 1
    assert {path: server.num_requests[f"/{path}"] for path in _FAILING_PATHS if path != "loop"} == {
        path: attempts for path, (_, attempts) in _FAILING_PATHS.items() if path != "loop"
    }
    assert _files(tmp_path) == {f"shop/images/{name}" for name in ("fine.jpg", *_WORK)}


def test_the_timeout_covers_the_whole_download(server: ImageServer, tmp_path: Path) -> None:
    """A server that keeps sending single bytes gets no more time than any other."""
    addresses = _addresses({"1": server.url("slow")})
    fetch_images(addresses, _TEMPLATE, tmp_path, dataclasses.replace(_LIMITS, timeout=0.5))
    assert _failures(tmp_path).select("reason", "attempts").rows() == [("timeout", 2)]


def test_invalid_addresses_have_a_reason(tmp_path: Path) -> None:
    """Other schemes are never opened, and no text in place of an address stops the run."""
    addresses = _addresses({str(number): url for number, url in enumerate(_INVALID_ADDRESSES)} | {"none": None})
    report = fetch_images(addresses, _TEMPLATE, tmp_path, _LIMITS)
    assert {url: reason for _, url, reason, _, _ in report.failures} == {
        address_without_secrets(url): reason for url, reason in _INVALID_ADDRESSES.items()
    }
    assert report.without_url == 1


_IDS = [
    "plain",
    "../../outside",
    "/etc/outside",
    "a/b",
    "a%2Fb",
    "a\\b",
    ".",
    "..",
    ".hidden",
    "nul\x00",
    "line\nbreak",
    "ünïcode 🎸 'quoted\"",
    "x" * 5000,
    "ü" * 5000,
    "%%" + "0" * 64,
    "~user",
    "-rf",
    "$(touch outside)",
    ".fetch",
    ".fetch/lock",
    ".fetch/failures.parquet",
]


@pytest.mark.parametrize("template", [_TEMPLATE, "shop/images/{item_id}", "shop/images/{item_id}/front.jpg"])
def test_every_id_finds_its_image_and_no_file_is_outside_the_folder(
    server: ImageServer, tmp_path: Path, template: str
) -> None:
    """Whatever the id, its image has a file of its own inside the image folder, and the catalogue finds it."""
    data_dir = tmp_path / "data"
    colors = {item_id: f"{number * 8:02x}0000" for number, item_id in enumerate(_IDS)}
    addresses = _addresses({item_id: server.url(f"color?%23{colors[item_id]}") for item_id in _IDS})
    _serve_exact_colors(server)
    report = fetch_images(addresses, template, data_dir, _LIMITS)
    assert report.failures == []
    paths = existing_images(addresses["item_id"], template, data_dir)
    assert paths.n_unique() == len(_IDS)
    for item_id, path in zip(addresses["item_id"], paths, strict=True):
        with Image.open(data_dir / path) as stored:
            assert f"{stored.convert('RGB').getpixel((0, 0))[0]:02x}0000" == colors[item_id]
    assert {path.split("/")[0] for path in _files(tmp_path)} == {"data"}
    assert all(path.startswith("shop/images/") for path in _files(data_dir))
    assert fetch_images(addresses, template, data_dir, _LIMITS).present == len(_IDS)


def _serve_exact_colors(server: ImageServer) -> None:
    """Make the server send PNG instead of JPEG, which does not preserve colours exactly."""

    class Exact(server.RequestHandlerClass):  # type: ignore[name-defined,misc]
        def send_color(self) -> None:
            stream = io.BytesIO()
            Image.new("RGB", (8, 8), "#" + self.path.partition("?%23")[2]).save(stream, "PNG")
            self.respond(stream.getvalue())

    server.RequestHandlerClass = Exact


def test_file_names_are_readable_where_possible() -> None:
    """An id of letters and digits is its own file name; an encoded name never equals the name of another id."""
    assert image_file_name("B0002E1G5C") == "B0002E1G5C"
    assert image_file_name("a/b") == "a%2Fb"
    assert image_file_name("a%2Fb") == "a%252Fb"
    assert image_file_name("..") == "%2E."
    assert len(image_file_name("x" * 5000)) == 66


def test_links_are_not_written_through(server: ImageServer, tmp_path: Path) -> None:
    """A link inside the image folder that leads out of it is refused."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "data" / "shop" / "images").mkdir(parents=True)
    (tmp_path / "data" / "shop" / "images" / "1").symlink_to(outside)
    addresses = _addresses({"1": server.url("color?red")})
    report = fetch_images(addresses, "shop/images/{item_id}/{item_id}/x.jpg", tmp_path / "data", _LIMITS)
    assert [reason for _, _, reason, _, _ in report.failures] == ["outside_folder"]
    assert list(outside.iterdir()) == []


def test_existing_images_are_not_requested_again(server: ImageServer, tmp_path: Path) -> None:
    """The second run requests only what is missing, and removes partial files of a killed run."""
    addresses = _addresses({"1": server.url("color?red"), "2": server.url("away-once"), "3": None})
    first = fetch_images(addresses, _TEMPLATE, tmp_path, FetchLimits(attempts=1, allow_private=True))
    assert (first.present, first.fetched, len(first.failures), first.without_url) == (0, 1, 1, 1)
    (tmp_path / "shop" / "images" / ".fetch" / "abc.part").write_bytes(b"half")
    second = fetch_images(addresses, _TEMPLATE, tmp_path, FetchLimits(attempts=1, allow_private=True))
    assert (second.present, second.fetched, len(second.failures), second.without_url) == (1, 1, 0, 1)
    assert server.num_requests == {"/color": 1, "/away-once": 2}
    assert _failures(tmp_path).is_empty()
    assert not (tmp_path / "shop" / "images" / ".fetch" / "abc.part").exists()


def test_progress_counts_every_address(server: ImageServer, tmp_path: Path) -> None:
    """Progress goes from none to all addresses and includes the number of failures."""
    calls: list[tuple[int, int, float]] = []
    fetch_images(
        _addresses({"1": server.url("color?red"), "2": server.url("missing")}),
        _TEMPLATE,
        tmp_path,
        _LIMITS,
        lambda stage, done, total, metrics=None: calls.append((done, total, (metrics or {}).get("failed", 0))),
    )
    assert [row[:2] for row in calls] == [(0, 2), (1, 2), (2, 2)]
    assert calls[-1][2] == 1


def test_retry_after_is_respected(server: ImageServer, tmp_path: Path) -> None:
    """A Retry-After that is longer than the configured wait takes precedence."""
    start = time.monotonic()
    assert fetch_images(_addresses({"1": server.url("busy-for-a-second")}), _TEMPLATE, tmp_path, _LIMITS).fetched == 1
    assert time.monotonic() - start >= 1


def test_several_images_are_fetched_at_once(server: ImageServer, tmp_path: Path) -> None:
    """Twelve images of 0.3 s each take far less time than one after the other."""
    start = time.monotonic()
    addresses = _addresses({str(number): server.url("pause") for number in range(12)})
    assert fetch_images(addresses, _TEMPLATE, tmp_path, FetchLimits(concurrency=12, allow_private=True)).fetched == 12
    assert time.monotonic() - start < 2.4


def test_a_second_fetch_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    """Two fetches would remove each other's partial files."""
    (tmp_path / "shop" / "images" / ".fetch").mkdir(parents=True)
    with (
        FileLock(tmp_path / "shop" / "images" / ".fetch" / "lock"),
        pytest.raises(DataError, match="Another fetch is running"),
    ):
        fetch_images(_addresses({"1": "http://127.0.0.1:1/"}), _TEMPLATE, tmp_path, _LIMITS)


def test_a_full_disk_stops_the_run_with_one_error(
    server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other image would fail too; complete images stay."""
    replace, full = os.replace, iter([False, True])

    def replace_until_full(source: str, target: Path) -> None:
        if target.suffix == ".jpg" and next(full, True):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_until_full)
    addresses = _addresses({str(number): server.url("color?red") for number in range(40)})
    with pytest.raises(DataError, match=r"cannot be written: .*No space left.*then run the command again"):
        fetch_images(addresses, _TEMPLATE, tmp_path, _LIMITS)
    assert len(list((tmp_path / "shop" / "images").glob("*.jpg"))) == 1
    assert not list((tmp_path / "shop" / "images").rglob("*.part"))


_SCRIPT = """
import polars as pl, sys
from pathlib import Path
from macrec_pipeline.data.images.downloads import FetchLimits
from macrec_pipeline.data.images.fetch import fetch_images
rows = [(f"{i:04}", sys.argv[2] + ("color?red" if i < 20 else "slow")) for i in range(60)]
addresses = pl.DataFrame(rows, schema=["item_id", "image_url"], orient="row")
limits = FetchLimits(concurrency=4, allow_private=True)
fetch_images(addresses, "shop/images/{item_id}.jpg", Path(sys.argv[1]), limits)
"""


def test_ctrl_c_leaves_complete_images_and_the_table(server: ImageServer, tmp_path: Path) -> None:
    """After an interruption every image can be decoded and no partial file remains."""
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path), server.url("")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "shop" / "images"
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.jpg"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0
    assert _files(folder) == {f"{number:04}.jpg" for number in range(20)} | set(_WORK)
    for path in folder.glob("*.jpg"):
        with Image.open(path) as stored:
            stored.load()
    assert _failures(tmp_path).is_empty()
