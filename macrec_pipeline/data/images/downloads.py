"""Download one image from its address, or say why that is not possible.

Neither the address nor the server is trusted. Only http and https are followed, and not into private networks.
Compressed responses are refused, and no response is read beyond its limits in time, bytes and pixels.
"""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.request import getproxies

import aiohttp
from PIL import Image, UnidentifiedImageError

from macrec_pipeline import __version__
from macrec_pipeline.data.images.public_hosts import PrivateAddressError, open_public_socket, refuse_private_literals
from macrec_pipeline.runtime.text_sanitizing import one_line_error

# Formats that the image encoders can read. Formats for which Pillow would start another program are left out.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
_GENERIC_CONTENT_TYPES = {"application/octet-stream", "binary/octet-stream", ""}
_TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_MAX_REDIRECTS = 5
_CHUNK_BYTES = 1 << 16
_MAX_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class FetchLimits:
    """Limits of fetching.

    Attributes:
        concurrency: number of addresses that are loaded at the same time.
        timeout: seconds for one attempt, from the connection to the last byte, even if bytes keep arriving.
        attempts: maximum number of attempts after transient errors: lost connections, timeouts and the statuses 408,
            425, 429, 500, 502, 503 and 504.
        first_wait: seconds before the second attempt, doubled for each further one. A longer Retry-After takes
            precedence, up to one minute.
        max_bytes: maximum size of an image.
        max_pixels: maximum number of pixels of an image, checked in its header before it is decoded;
            `image_encoder.max_pixels`.
        allow_private: whether addresses and redirects may lead to this machine or into private networks.
    """

    concurrency: int = 16
    timeout: float = 30.0
    attempts: int = 4
    first_wait: float = 1.0
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    allow_private: bool = False


class FetchError(Exception):
    """No image could be loaded from an address. This error never leaves the package `images`.

    Attributes:
        reason: one word for the table of failures.
        retry_after: seconds that the server asks to wait before another attempt, 0 if it does not say; None if another
            attempt would not help.
        attempts: number of attempts.
    """

    def __init__(self, reason: str, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.retry_after = retry_after
        self.attempts = 1


@asynccontextmanager
async def open_session(limits: FetchLimits) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a session that reuses connections, sends no cookies and uses the proxy of the environment.

    A proxy may itself be in a private network and resolves names on its own, so then it must protect that network.
    """
    guarded = not limits.allow_private
    proxied = bool({"http", "https"} & getproxies().keys())
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=limits.concurrency, socket_factory=open_public_socket if guarded and not proxied else None
        ),
        middlewares=(refuse_private_literals,) if guarded else (),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=limits.timeout),
        headers={"User-Agent": f"macrec_pipeline/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"},
        auto_decompress=False,
        trust_env=True,
    ) as session:
        yield session


async def download(session: aiohttp.ClientSession, url: str, limits: FetchLimits) -> bytes:
    """Load one address in a single attempt. Raise `FetchError` if it fails for any reason."""
    if url.startswith("//"):  # aiohttp does not handle an address without a scheme
        raise FetchError("invalid_address", "the address has no scheme: put https: in front of it")
    try:
        async with session.get(url, max_redirects=_MAX_REDIRECTS) as response:
            _check_head(response, limits)
            return await _read_body(response, limits)
    except TimeoutError:
        raise FetchError("timeout", f"not finished after {limits.timeout:g} s", retry_after=0) from None
    except aiohttp.TooManyRedirects:
        raise FetchError("redirects", f"more than {_MAX_REDIRECTS} redirects") from None
    except (aiohttp.NonHttpUrlClientError, aiohttp.NonHttpUrlRedirectClientError) as error:
        raise FetchError(
            "not_http", f"only http and https are followed, got {one_line_error(error, max_length=200)}"
        ) from None
    except aiohttp.ClientPayloadError as error:
        raise FetchError("broken_off", _summary(error), retry_after=0) from None
    # The URL parser raises LookupError for some brackets, as in http://[]@.
    except (aiohttp.InvalidURL, aiohttp.RedirectClientError, ValueError, LookupError) as error:
        raise FetchError("invalid_address", _summary(error)) from None
    except (aiohttp.ClientError, OSError) as error:
        if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, PrivateAddressError):
            raise FetchError("private_address", str(error.os_error.strerror)) from None
        raise FetchError("connection", _summary(error), retry_after=0) from None


async def download_with_retries(session: aiohttp.ClientSession, url: str, limits: FetchLimits) -> bytes:
    """Load one address, with growing waits between attempts. Raises the `FetchError` of the last attempt."""
    wait, attempt = limits.first_wait, 1
    while True:
        try:
            return await download(session, url, limits)
        except FetchError as error:
            error.attempts = attempt
            if error.retry_after is None or attempt >= limits.attempts:
                raise
            await asyncio.sleep(min(max(wait, error.retry_after), _MAX_WAIT_SECONDS))
        wait, attempt = 2 * wait, attempt + 1


def check_image(data: bytes, *, max_pixels: int) -> None:
    """Decode an image completely. An image with too many pixels is refused before it is decoded.

    Raises:
        FetchError: the bytes are not an image, have too many pixels, or cannot be decoded.
    """
    try:
        Image.init()
        with Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise FetchError("too_many_pixels", f"{width} x {height} pixels, the limit is {max_pixels}")
            image.load()
    except FetchError:
        raise
    except Image.DecompressionBombError as error:
        raise FetchError("too_many_pixels", _summary(error)) from None
    except UnidentifiedImageError:
        raise FetchError("not_a_picture", f"{len(data)} bytes that begin with {data[:16]!r}") from None
    except Exception as error:  # decoders raise almost anything for damaged bytes
        raise FetchError("not_decodable", _summary(error)) from None


def _check_head(response: aiohttp.ClientResponse, limits: FetchLimits) -> None:
    if response.status != 200:
        retry_after = _retry_after(response) if response.status in _TRANSIENT_STATUSES else None
        raise FetchError(f"http_{response.status}", response.reason or "", retry_after=retry_after)
    content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if not content_type.startswith("image/") and content_type not in _GENERIC_CONTENT_TYPES:
        raise FetchError("content_type", f"the content type is {content_type[:100]!r}, expected an image")
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):  # unpacking could exhaust memory, and images gain nothing from it
        raise FetchError("content_encoding", f"compressed as {encoding[:100]!r} although only identity was accepted")
    if response.content_length is not None and response.content_length > limits.max_bytes:
        raise FetchError("too_large", f"{response.content_length} bytes announced, the limit is {limits.max_bytes}")


async def _read_body(response: aiohttp.ClientResponse, limits: FetchLimits) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        data += chunk
        if len(data) > limits.max_bytes:
            raise FetchError("too_large", f"more than {limits.max_bytes} bytes")
    return bytes(data)


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """Return the seconds of the Retry-After header, 0 without it. A date is ignored: the growing waits suffice."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdecimal() else 0.0


def _summary(error: BaseException) -> str:
    return one_line_error(error, max_length=300)
