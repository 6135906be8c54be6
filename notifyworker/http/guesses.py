"""
How many wrong tokens an address may try: a short token must not be found by trying all.

The same wrong token again is a client that was not told of a new one, and no guess. Once an address has used up what it
has, the right token from there is refused as well, or the limit would tell it from the wrong ones.
"""

import asyncio
import hashlib
import ipaddress
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from notifyworker.http.problem import Problem
from notifyworker.observe import log

BURST = 10  # wrong tokens at once
REFILL_S = 6.0  # and one more after each time so long
ADDRESSES = 1000  # that are remembered, the latest


@dataclass(slots=True)
class _Address:
    left: float
    at: float
    wrong: deque[bytes] = field(default_factory=lambda: deque(maxlen=BURST))


class Guesses:
    """What each address has left. All of it belongs to the event loop."""

    def __init__(self) -> None:
        self._addresses: OrderedDict[str, _Address] = OrderedDict()

    def check(self, remote: str | None, given: bytes) -> None:
        """Raise Problem if this address may not try another token now."""
        known = self._addresses.get(_network(remote))
        if known is None or _digest(given) in known.wrong:
            return
        _refill(known)
        if known.left < 1:
            wait_s = max(1, round((1 - known.left) * REFILL_S))
            detail = f"too many wrong tokens came from this address; try again in {wait_s} s"
            raise Problem(429, "Too Many Requests", detail, headers={"Retry-After": str(wait_s)})

    def failed(self, remote: str | None, given: bytes) -> None:
        """Note a wrong token."""
        network, digest = _network(remote), _digest(given)
        known = self._addresses.get(network)
        if known is None:
            known = self._addresses[network] = _Address(float(BURST), asyncio.get_running_loop().time())
            if len(self._addresses) > ADDRESSES:
                self._addresses.popitem(last=False)
        self._addresses.move_to_end(network)
        if digest in known.wrong:
            return
        _refill(known)
        known.wrong.append(digest)
        known.left -= 1
        if known.left < 1:
            log.warning("sidecar_tokens_guessed", address=network, hint=f"it may try one every {REFILL_S:g} s from now on")


def _refill(known: _Address) -> None:
    now = asyncio.get_running_loop().time()
    known.left = min(float(BURST), known.left + (now - known.at) / REFILL_S)
    known.at = now


def _network(remote: str | None) -> str:
    """Return what one asker has: an IPv4 address, or the 64 bits of IPv6 that any host may vary."""
    try:
        address = ipaddress.ip_address((remote or "").partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)


def _digest(given: bytes) -> bytes:
    return hashlib.blake2b(given, digest_size=16).digest()
