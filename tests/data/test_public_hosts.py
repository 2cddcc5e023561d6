"""No request reaches a private network, whether by IP address, by name or through a redirect."""

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
from tests.data.image_server import ImageServer, serving

_LIMITS = FetchLimits(timeout=2, attempts=3, first_wait=0.01)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the environment has no proxy."""
    monkeypatch.setattr(downloads, "getproxies", dict)


@pytest.fixture
def server() -> Iterator[ImageServer]:
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
def test_private_addresses_are_refused(address: str) -> None:
    """Loopback, link-local, private, shared, multicast and reserved addresses, also wrapped in IPv6."""
    assert not is_public(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(PrivateAddressError, match="private network"):
        open_public_socket((family, socket.SOCK_STREAM, 0, "", (address, 80)))


@pytest.mark.parametrize("address", ["1.1.1.1", "172.32.0.1", "193.168.1.1", "2606:4700::1111", "64:ff9b::101:101"])
def test_public_addresses_are_accepted(address: str) -> None:
    """Public addresses are accepted, including those directly next to the private ranges."""
    assert is_public(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    open_public_socket((family, socket.SOCK_STREAM, 0, "", (address, 80))).close()


def test_a_private_address_is_refused_without_a_request(server: ImageServer, tmp_path: Path) -> None:
    """The reason is in the table, there is no second attempt, and the server receives no request."""
    addresses = pl.DataFrame({"item_id": ["1"], "image_url": [server.url("color?red")]})
    report = fetch_images(addresses, "shop/{item_id}.jpg", tmp_path, _LIMITS)
    assert [(reason, attempts) for _, _, reason, _, attempts in report.failures] == [("private_address", 1)]
    assert "--allow-private" in report.failures[0][3]
    assert not server.num_requests


def _failure_reason(url: str) -> str:
    async def attempt() -> str:
        async with open_session(_LIMITS) as session:
            with pytest.raises(FetchError) as caught:
                await download(session, url, _LIMITS)
            return caught.value.reason

    return asyncio.run(attempt())


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "[::1]", "[::ffff:127.0.0.1]", "metadata.example"])
def test_names_and_wrapped_addresses_are_refused(
    host: str, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anyone can register a name that resolves to a private address."""
    _resolve_to(monkeypatch, "127.0.0.1")
    assert _failure_reason(f"http://{host}:{server.server_address[1]}/color?red") == "private_address"
    assert not server.num_requests


def _resolve_to(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    async def resolve(_: DefaultResolver, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        return [{"hostname": host, "host": address, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    monkeypatch.setattr(DefaultResolver, "resolve", resolve)


def test_a_redirect_into_a_private_network_is_refused(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target of a redirect is checked like the first address."""
    port = server.server_address[1]
    monkeypatch.setattr("macrec_pipeline.data.images.public_hosts.is_public", lambda address: address == "127.0.0.1")

    class Redirecting(server.RequestHandlerClass):  # type: ignore[name-defined,misc]
        def send_redirect(self) -> None:
            self.respond(status=302, Location=f"http://127.0.0.2:{port}/color?red")

    server.RequestHandlerClass = Redirecting
    assert _failure_reason(server.url("redirect")) == "private_address"
    assert server.num_requests == {"/redirect": 1}


def test_private_ip_addresses_are_refused_behind_a_proxy(monkeypatch: pytest.MonkeyPatch, server: ImageServer) -> None:
    """The proxy opens the connection and may itself be private; an IP address is checked before the request."""
    monkeypatch.setattr(downloads, "getproxies", lambda: {"http": server.url("")})
    monkeypatch.setenv("http_proxy", server.url(""))
    monkeypatch.delenv("no_proxy", raising=False)
    assert _failure_reason("http://169.254.169.254/latest") == "private_address"
    assert not server.num_requests
    assert _failure_reason("http://images.example/missing") != "private_address"
    assert server.num_requests
