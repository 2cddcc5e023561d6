"""Which hosts pictures may come from: those of the public internet, unless a person says that the own network is meant.

A catalogue's addresses are written by others. Without this, one of them could make this machine ask services that only
it can reach, as the metadata service of a cloud (169.254.169.254) or a printer of the office.
"""

import errno
import ipaddress
import socket
from typing import Any

import aiohttp

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# IPv6 addresses that stand for an IPv4 one behind a translator (RFC 6052).
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


class PrivateAddressError(OSError):
    """The address is not one of the public internet; one text for all, so that several of them stay one error."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "it leads into a private network: --allow-private allows that")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, also when IPv6 only wraps it.

    Loopback, link-local, RFC 1918, carrier-grade NAT, multicast, unspecified and reserved addresses do not.
    """
    found = _unwrapped(ipaddress.ip_address(address))
    return found.is_global and not found.is_multicast


def open_public_socket(address: tuple[Any, ...]) -> socket.socket:
    """The socket for a connection that is about to be made, whichever name or redirect led to it.

    This is the last moment before it: a name that is resolved anew cannot change the address any more.

    Raises:
        PrivateAddressError: it would leave the public internet.
    """
    family, kind, protocol, _, (host, *_) = address
    if not is_public(host):
        raise PrivateAddressError
    return socket.socket(family, kind, protocol)


async def refuse_private_literals(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Look at an address that is written as numbers before each request and redirect: behind a proxy nothing else can.

    Raises:
        aiohttp.ClientConnectorError: it is not of the public internet; its `os_error` is a `PrivateAddressError`.
    """
    try:
        public = is_public(request.url.host or "")
    except ValueError:  # a name
        public = (request.url.host or "").rstrip(".").lower() != "localhost"
    if not public:
        raise aiohttp.ClientConnectorError(request.connection_key, PrivateAddressError())
    return await handler(request)


def _unwrapped(address: _Address) -> _Address:
    if isinstance(address, ipaddress.IPv6Address):
        if address in _TRANSLATED:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address
