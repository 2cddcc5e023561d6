"""Private networks are not asked: not by their numbers, not by a name, not behind a redirect."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from aiohttp.resolver import DefaultResolver

from macrec_pipeline.data.images import downloads
from macrec_pipeline.data.images.downloads import FetchError, FetchLimits, download, open_session
from macrec_pipeline.data.images.fetch import fetch_images
from macrec_pipeline.data.images.public_hosts import PrivateAddressError, is_public, open_public_socket
from tests.data.picture_server import PictureServer, serving

_LIMITS = FetchLimits(timeout=2, attempts=3, first_wait=0.01)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without one."""
    monkeypatch.setattr(downloads, "getproxies", dict)


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with serving() as running:
        yield running


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),
        *("64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
    ],
)
def test_what_is_no_address_of_the_public_internet(address: str) -> None:
    """Loopback, link-local, private, shared, multicast and reserved ones, and IPv6 that wraps one of them."""
    assert not is_public(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(PrivateAddressError, match="private network"):
        open_public_socket((family, socket.SOCK_STREAM, 0, "", (address, 80)))


@pytest.mark.parametrize("address", ["1.1.1.1", "172.32.0.1", "193.168.1.1", "2606:4700::1111", "64:ff9b::101:101"])
def test_what_is(address: str) -> None:
    """Neighbours of the private ranges too."""
    assert is_public(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    open_public_socket((family, socket.SOCK_STREAM, 0, "", (address, 80))).close()


def test_loopback_is_refused_once_and_without_asking(server: PictureServer, tmp_path: Path) -> None:
    """The reason is in the table, another attempt is not made, and the server never hears of it."""
    addresses = pl.DataFrame({"item_id": ["1"], "image_url": [server.url("color?red")]})
    report = fetch_images(addresses, "shop/{item_id}.jpg", tmp_path, _LIMITS)
    assert [(reason, attempts) for _, _, reason, _, attempts in report.failures] == [("private_address", 1)]
    assert "--allow-private" in report.failures[0][3]
    assert not server.asked


def _reason(url: str) -> str:
    async def ask() -> str:
        async with open_session(_LIMITS) as session:
            with pytest.raises(FetchError) as caught:
                await download(session, url, _LIMITS)
            return caught.value.reason

    return asyncio.run(ask())


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "[::1]", "[::ffff:127.0.0.1]", "metadata.example"])
def test_names_and_wrapped_addresses_are_refused(
    host: str, server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a name that anyone can have made to point here."""
    _resolve_to(monkeypatch, "127.0.0.1")
    assert _reason(f"http://{host}:{server.server_address[1]}/color?red") == "private_address"
    assert not server.asked


def _resolve_to(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    async def resolve(_: DefaultResolver, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        return [{"hostname": host, "host": address, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    monkeypatch.setattr(DefaultResolver, "resolve", resolve)


def test_a_redirect_into_a_private_network_is_refused(server: PictureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a server that may be asked to one that may not: its address is judged like the first."""
    port = server.server_address[1]
    monkeypatch.setattr("macrec_pipeline.data.images.public_hosts.is_public", lambda address: address == "127.0.0.1")

    class Redirecting(server.RequestHandlerClass):  # type: ignore[name-defined,misc]
        def give_redirect(self) -> None:
            self.answer(status=302, Location=f"http://127.0.0.2:{port}/color?red")

    server.RequestHandlerClass = Redirecting
    assert _reason(server.url("redirect")) == "private_address"
    assert server.asked == {"/redirect": 1}


def test_behind_a_proxy_numbers_are_still_refused(monkeypatch: pytest.MonkeyPatch, server: PictureServer) -> None:
    """The connection is the proxy's then, which may be in the own network; an address in numbers is refused before."""
    monkeypatch.setattr(downloads, "getproxies", lambda: {"http": server.url("")})
    monkeypatch.setenv("http_proxy", server.url(""))
    monkeypatch.delenv("no_proxy", raising=False)
    assert _reason("http://169.254.169.254/latest") == "private_address"
    assert not server.asked
    assert _reason("http://pictures.example/missing") != "private_address"
    assert server.asked
