"""Restrict image downloads to hosts of the public internet, unless private networks are allowed explicitly.

Other people write the addresses in a catalogue. Without this restriction, an address could make this machine send
requests to services that only it can reach, such as the metadata service of a cloud (169.254.169.254).
"""

import errno
import ipaddress
import socket
from typing import Any

import aiohttp

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# IPv6 addresses that stand for an IPv4 address behind a translator (RFC 6052).
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


class PrivateAddressError(OSError):
    """The address is not public.

    The text is always the same, so that aiohttp merges the errors of several addresses of one host.
    """

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "the address is in a private network; --allow-private permits that")


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet, also if it is an IPv4 address wrapped in IPv6.

    Loopback, link-local, RFC 1918, carrier-grade NAT, multicast, unspecified and reserved addresses are not public.
    """
    unwrapped = _unwrapped(ipaddress.ip_address(address))
    return unwrapped.is_global and not unwrapped.is_multicast


def open_public_socket(address: tuple[Any, ...]) -> socket.socket:
    """Create the socket for a connection to an address, whichever name or redirect led to it.

    The check happens after name resolution, directly before the connection, so resolving the name again cannot lead to
    another address.

    Raises:
        PrivateAddressError: the address is not public.
    """
    family, kind, protocol, _, (host, *_) = address
    if not is_public(host):
        raise PrivateAddressError
    return socket.socket(family, kind, protocol)


async def refuse_private_literals(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Check a host that is written as an IP address before each request and redirect.

    Behind a proxy this is the only possible check, because the proxy opens the connections.

    Raises:
        aiohttp.ClientConnectorError: the host is not public; its `os_error` is a `PrivateAddressError`.
    """
    try:
        public = is_public(request.url.host or "")
    except ValueError:  # the host is a name
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
