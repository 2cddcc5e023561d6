"""A local HTTP server that misbehaves in every way that image servers do, for the tests of fetching."""

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


def image_bytes(color: str = "red", kind: str = "JPEG", size: tuple[int, int] = (32, 24)) -> bytes:
    """Encode an image of a single colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, kind)
    return stream.getvalue()


def png_bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few hundred bytes whose header announces a huge image."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


class Handler(BaseHTTPRequestHandler):
    """Responds according to the path; `server.num_requests` counts the requests of each path."""

    protocol_version = "HTTP/1.1"
    server: "ImageServer"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.num_requests[path] += 1
        name = path.strip("/").replace("-", "_")
        with suppress(OSError):  # the client has closed the connection
            getattr(self, f"send_{name}", self.send_missing)()

    def respond(
        self, body: bytes = b"", kind: str | None = "image/jpeg", status: int = 200, **headers: str | None
    ) -> None:
        self.send_response(status)
        all_headers: dict[str, str | None] = {"Content-Length": str(len(body)), "Content-Type": kind}
        all_headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in all_headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, location: str) -> None:
        self.respond(status=302, Location=location)

    def is_first_request(self) -> bool:
        return self.server.num_requests[self.path.partition("?")[0]] == 1

    def send_missing(self) -> None:
        self.respond(b"not here", "text/html", 404)

    def send_color(self) -> None:
        self.respond(image_bytes(self.path.partition("?")[2]))

    def send_png_called_jpeg(self) -> None:
        self.respond(image_bytes(kind="PNG"))

    def send_untyped(self) -> None:
        self.respond(image_bytes(), None)

    def send_binary(self) -> None:
        self.respond(image_bytes(), "binary/octet-stream")

    def send_slow(self) -> None:
        """Send a byte now and then, so that no pause between two bytes is long."""
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(40):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def send_breaks_off(self) -> None:
        self.respond(image_bytes()[:100], Content_Length="5000")
        self.close_connection = True

    def send_breaks_off_once(self) -> None:
        self.send_breaks_off() if self.is_first_request() else self.respond(image_bytes())

    def send_truncated(self) -> None:
        self.respond(image_bytes(size=(400, 300))[:-900])

    def send_redirect(self) -> None:
        self.redirect("/color?blue")

    def send_to_file(self) -> None:
        self.redirect("file:///etc/hostname")

    def send_to_nowhere(self) -> None:
        self.redirect("http://[::1")

    def send_loop(self) -> None:
        self.redirect("/loop")

    def send_page(self) -> None:
        self.respond(b"<html>", "text/html; charset=utf-8")

    def send_page_called_jpeg(self) -> None:
        self.respond(b"<html><title>Sign in</title></html>")

    def send_postscript(self) -> None:
        self.respond(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")

    def send_empty(self) -> None:
        self.respond(b"")

    def send_busy_once(self) -> None:
        self.respond(status=429, Retry_After="0") if self.is_first_request() else self.respond(image_bytes())

    def send_busy_for_a_second(self) -> None:
        self.respond(status=429, Retry_After="1") if self.is_first_request() else self.respond(image_bytes())

    def send_pause(self) -> None:
        time.sleep(0.3)
        self.respond(image_bytes())

    def send_away_once(self) -> None:
        self.respond(status=503) if self.is_first_request() else self.respond(image_bytes())

    def send_broken(self) -> None:
        self.respond(status=500)

    def send_packed(self) -> None:
        self.respond(gzip.compress(bytes(50_000_000)), Content_Encoding="gzip")

    def send_pixel_bomb(self) -> None:
        self.respond(png_bomb(60_000, 60_000), "image/png")

    def send_large_image(self) -> None:
        self.respond(png_bomb(9_000, 8_000), "image/png")

    def send_announced(self) -> None:
        self.respond(b"x", Content_Length=str(10**9))

    def send_endless(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.end_headers()
        self.close_connection = True
        while True:
            self.wfile.write(bytes(1 << 16))

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class ImageServer(ThreadingHTTPServer):
    """Counts requests; its threads end with the test."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # a full queue loses connections, which is not tested here

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.num_requests: Counter[str] = Counter()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def handle_error(self, *_: object) -> None:
        """Ignore errors: the tests expect clients to close connections."""


@contextmanager
def serving() -> Iterator[ImageServer]:
    """Run a server on a free port."""
    server = ImageServer()
    run: Callable[[], None] = lambda: server.serve_forever(poll_interval=0.02)  # noqa: E731
    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
