"""One address -> the bytes of a picture that can be decoded, or the reason why there is none.

Neither the address nor the server is trusted: only http and https are followed, and not into private networks, nothing
is unpacked, and no answer is read longer than its limits in time, bytes and pixels allow.
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

# What an encoder can read later; without those for which Pillow would start another program.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
_UNTYPED = {"application/octet-stream", "binary/octet-stream", ""}
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_MAX_REDIRECTS = 5
_CHUNK = 1 << 16
_LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class FetchLimits:
    """How hard to try.

    Attributes:
        concurrency: addresses at once.
        timeout: seconds of one attempt from the connection to the last byte, however slowly they come.
        attempts: at most, for what may pass: lost connections, timeouts, the statuses 408, 425, 429 and 5xx.
        first_wait: seconds before the second attempt, doubled for each further one; Retry-After counts where it is
            longer, up to a minute.
        max_bytes: of one picture.
        max_pixels: of one picture, refused from its header; `image_encoder.max_pixels`.
        allow_private: whether an address or a redirect may lead to this machine or into a private network.
    """

    concurrency: int = 16
    timeout: float = 30.0
    attempts: int = 4
    first_wait: float = 1.0
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    allow_private: bool = False


class FetchError(Exception):
    """An address gave no picture; never leaves this stage.

    Attributes:
        reason: one word for the table of failures.
        wait: seconds that the server asks to wait, 0 if it does not say; None: another attempt would not help.
        attempts: how many there were.
    """

    def __init__(self, reason: str, detail: str, *, wait: float | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.wait = wait
        self.attempts = 1


@asynccontextmanager
async def open_session(limits: FetchLimits) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections that are kept between pictures; without cookies, and through the proxy of the environment.

    A proxy, which may itself be in a private network, resolves names by itself: it has to guard that network then.
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
    """One attempt. Raises `FetchError` for whatever address and server do."""
    if url.startswith("//"):  # aiohttp has no answer to an address without a scheme
        raise FetchError("invalid_address", "it has no scheme: put https: before it")
    try:
        async with session.get(url, max_redirects=_MAX_REDIRECTS) as response:
            _check_head(response, limits)
            return await _read(response, limits)
    except TimeoutError:
        raise FetchError("timeout", f"not finished after {limits.timeout:g} s", wait=0) from None
    except aiohttp.TooManyRedirects:
        raise FetchError("redirects", f"more than {_MAX_REDIRECTS}") from None
    except (aiohttp.NonHttpUrlClientError, aiohttp.NonHttpUrlRedirectClientError) as error:
        raise FetchError("not_http", f"only http and https are followed, got {str(error)[:200]}") from None
    except aiohttp.ClientPayloadError as error:
        raise FetchError("broken_off", _words(error), wait=0) from None
    # LookupError is what the parser of addresses raises for some brackets, as in http://[]@.
    except (aiohttp.InvalidURL, aiohttp.RedirectClientError, ValueError, LookupError) as error:
        raise FetchError("invalid_address", _words(error)) from None
    except (aiohttp.ClientError, OSError) as error:
        if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, PrivateAddressError):
            raise FetchError("private_address", str(error.os_error.strerror)) from None
        raise FetchError("connection", _words(error), wait=0) from None


async def download_patiently(session: aiohttp.ClientSession, url: str, limits: FetchLimits) -> bytes:
    """Attempts with growing waits between them. Raises the `FetchError` of the last one."""
    wait, attempt = limits.first_wait, 1
    while True:
        try:
            return await download(session, url, limits)
        except FetchError as error:
            error.attempts = attempt
            if error.wait is None or attempt >= limits.attempts:
                raise
            await asyncio.sleep(min(max(wait, error.wait), _LONGEST_WAIT))
        wait, attempt = 2 * wait, attempt + 1


def check_image(data: bytes, *, max_pixels: int) -> None:
    """Decode a picture to its end. Raises `FetchError`; a picture that is too large is refused before decoding."""
    try:
        Image.init()
        with Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN]) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise FetchError("too_many_pixels", f"{width} x {height} are more than {max_pixels}")
            picture.load()
    except FetchError:
        raise
    except Image.DecompressionBombError as error:
        raise FetchError("too_many_pixels", _words(error)) from None
    except UnidentifiedImageError:
        raise FetchError("not_a_picture", f"{len(data)} bytes that begin with {data[:16]!r}") from None
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise FetchError("not_decodable", _words(error)) from None


def _check_head(response: aiohttp.ClientResponse, limits: FetchLimits) -> None:
    if response.status != 200:
        wait = _retry_after(response) if response.status in _TRANSIENT else None
        raise FetchError(f"http_{response.status}", response.reason or "", wait=wait)
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if not kind.startswith("image/") and kind not in _UNTYPED:
        raise FetchError("content_type", f"the server says {kind[:100]!r}")
    packing = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packing not in ("identity", ""):  # unpacking could fill the memory, and no picture needs it
        raise FetchError("content_encoding", f"packed as {packing[:100]!r} although that was not accepted")
    if response.content_length is not None and response.content_length > limits.max_bytes:
        raise FetchError("too_large", f"{response.content_length} bytes announced, the limit is {limits.max_bytes}")


async def _read(response: aiohttp.ClientResponse, limits: FetchLimits) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        data += chunk
        if len(data) > limits.max_bytes:
            raise FetchError("too_large", f"more than {limits.max_bytes} bytes")
    return bytes(data)


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """Seconds of the header Retry-After; a date in it is not worth parsing, the own waits do as well."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdecimal() else 0.0


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
