"""Which peers are trusted proxies, and which client a request came from."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from service.core.errors import MalformedRequest
from service.core.problems import Problem

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_FORWARDED_FOR: Final = 1024


def parse_address(text: str) -> Address:
    """Return an IP address; a port behind it is dropped, an IPv4-mapped IPv6 address is the IPv4 one."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        raise MalformedRequest(Problem.CLIENT_ADDRESS_INVALID, got=text[:80]) from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


class TrustedProxies:
    """Who may call the service and is believed about the original request: the members of ``networks``.

    With ``unix_socket`` the service listens at a Unix socket, and whoever may open that socket is trusted.
    """

    def __init__(self, networks: tuple[Network, ...], *, unix_socket: bool = False) -> None:
        self.networks = networks
        self._unix_socket = unix_socket
        self.trusts = lru_cache(maxsize=1024)(self._trusts)

    def _contains(self, address: Address) -> bool:
        return any(address in network for network in self.networks)

    def _trusts(self, peer: str) -> bool:
        """Tell whether a peer is trusted, by its address; False for text that is not an address.

        The address is empty at a Unix socket, and also where a TCP connection was reset before the server asked for it.
        """
        if not peer:
            return self._unix_socket
        try:
            return self._contains(parse_address(peer))
        except MalformedRequest:
            return False

    def client_of(self, forwarded_for: bytes) -> str:
        """Return the client's address: the rightmost of X-Forwarded-For that is not a trusted proxy's.

        Members to the left of it can be forged by the client. Every member must be an address: an unreadable list is
        refused, not skipped. If all are trusted, the leftmost is the client's.
        """
        if len(forwarded_for) > MAX_FORWARDED_FOR:
            raise MalformedRequest(Problem.FORWARDED_FOR_TOO_LONG, size=len(forwarded_for))
        members = [parse_address(part.strip()) for part in forwarded_for.decode("latin-1").split(",")]
        untrusted = [address for address in members if not self._contains(address)]
        return str(untrusted[-1] if untrusted else members[0])


def is_loopback(host: str) -> bool:
    """Tell whether a URL's host name is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
