"""A local HTTP server with every bad habit that servers of pictures have, for the tests of fetching."""

import gzip
import io
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from PIL import Image


def picture(color: str = "red", kind: str = "JPEG", size: tuple[int, int] = (32, 24)) -> bytes:
    """The bytes of a picture of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, kind)
    return stream.getvalue()


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says to be huge."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


class Handler(BaseHTTPRequestHandler):
    """Answers by path; `server.asked` counts the requests of each."""

    protocol_version = "HTTP/1.1"
    server: "PictureServer"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked[path] += 1
        name = path.strip("/").replace("-", "_")
        with suppress(OSError):  # whoever asked has gone
            getattr(self, f"give_{name}", self.give_missing)()

    def answer(
        self, body: bytes = b"", kind: str | None = "image/jpeg", status: int = 200, **headers: str | None
    ) -> None:
        self.send_response(status)
        named = {"Content-Length": str(len(body)), "Content-Type": kind}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in named.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, location: str) -> None:
        self.answer(status=302, Location=location)

    def first_asked(self) -> bool:
        return self.server.asked[self.path.partition("?")[0]] == 1

    def give_missing(self) -> None:
        self.answer(b"not here", "text/html", 404)

    def give_color(self) -> None:
        self.answer(picture(self.path.partition("?")[2]))

    def give_png_called_jpeg(self) -> None:
        self.answer(picture(kind="PNG"))

    def give_untyped(self) -> None:
        self.answer(picture(), None)

    def give_binary(self) -> None:
        self.answer(picture(), "binary/octet-stream")

    def give_slow(self) -> None:
        """A byte now and then, so that no pause between two is long."""
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(40):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def give_breaks_off(self) -> None:
        self.answer(picture()[:100], Content_Length="5000")
        self.close_connection = True

    def give_breaks_off_once(self) -> None:
        self.give_breaks_off() if self.first_asked() else self.answer(picture())

    def give_truncated(self) -> None:
        self.answer(picture(size=(400, 300))[:-900])

    def give_redirect(self) -> None:
        self.redirect("/color?blue")

    def give_to_file(self) -> None:
        self.redirect("file:///etc/hostname")

    def give_to_nowhere(self) -> None:
        self.redirect("http://[::1")

    def give_loop(self) -> None:
        self.redirect("/loop")

    def give_page(self) -> None:
        self.answer(b"<html>", "text/html; charset=utf-8")

    def give_page_called_jpeg(self) -> None:
        self.answer(b"<html><title>Sign in</title></html>")

    def give_postscript(self) -> None:
        self.answer(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")

    def give_empty(self) -> None:
        self.answer(b"")

    def give_busy_once(self) -> None:
        self.answer(status=429, Retry_After="0") if self.first_asked() else self.answer(picture())

    def give_busy_for_a_second(self) -> None:
        self.answer(status=429, Retry_After="1") if self.first_asked() else self.answer(picture())

    def give_pause(self) -> None:
        time.sleep(0.3)
        self.answer(picture())

    def give_away_once(self) -> None:
        self.answer(status=503) if self.first_asked() else self.answer(picture())

    def give_broken(self) -> None:
        self.answer(status=500)

    def give_packed(self) -> None:
        self.answer(gzip.compress(bytes(50_000_000)), Content_Encoding="gzip")

    def give_pixel_bomb(self) -> None:
        self.answer(png_bomb(60_000, 60_000), "image/png")

    def give_large_picture(self) -> None:
        self.answer(png_bomb(9_000, 8_000), "image/png")

    def give_announced(self) -> None:
        self.answer(b"x", Content_Length=str(10**9))

    def give_endless(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.end_headers()
        self.close_connection = True
        while True:
            self.wfile.write(bytes(1 << 16))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class PictureServer(ThreadingHTTPServer):
    """Counts what it is asked; its threads end with the test."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # a full queue loses connections, which is no habit that is tested here

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def handle_error(self, *_: object) -> None:
        """Connections that the other side closed are what is tested."""


@contextmanager
def serving() -> Iterator[PictureServer]:
    """A server on a free port."""
    server = PictureServer()
    run: Callable[[], None] = lambda: server.serve_forever(poll_interval=0.02)  # noqa: E731
    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
