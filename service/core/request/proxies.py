"""Which addresses are our proxies', and whose the request was before it reached them."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from service.core.errors import MalformedRequest

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
        raise MalformedRequest("The client's address is not an IP address.", reason=repr(text[:80])) from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


class TrustedProxies:
    """The networks whose members may call the verify endpoints and are believed about the original request."""

    def __init__(self, networks: tuple[Network, ...]) -> None:
        self.networks = networks
        self.trusts = lru_cache(maxsize=1024)(self._trusts)

    def _contains(self, address: Address) -> bool:
        return any(address in network for network in self.networks)

    def _trusts(self, peer: str) -> bool:
        """Tell whether the peer stands in one of the networks; what is not an address does not."""
        try:
            return self._contains(parse_address(peer))
        except MalformedRequest:
            return False

    def client_of(self, forwarded_for: bytes) -> str:
        """Return the sender's address: the rightmost of X-Forwarded-For that is no trusted proxy's.

        Whatever stands to its left was written by strangers. Every member must be an address: an unreadable
        list is refused, not skipped. Where all are trusted, the leftmost is the sender's.
        """
        if len(forwarded_for) > MAX_FORWARDED_FOR:
            raise MalformedRequest("X-Forwarded-For is too long.", reason=f"{len(forwarded_for)} bytes")
        members = [parse_address(part.strip()) for part in forwarded_for.decode("latin-1").split(",")]
        strangers = [address for address in members if not self._contains(address)]
        return str(strangers[-1] if strangers else members[0])


def is_loopback(host: str) -> bool:
    """Tell whether a URL's host name stands for this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
