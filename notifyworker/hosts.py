"""
Several hosts in one DSN: the first that answers and will do is taken, and one that is silent holds up nobody.

asyncpg tries them one after the other, all within one deadline. A host that has vanished says nothing, and uses it all
up: a fail-over to the next one would never be noticed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import zip_longest
from typing import Protocol, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

#: After so many seconds of silence the next host is asked as well.
SILENT_S = 0.5


class _Open(Protocol):
    def terminate(self) -> None:
        """End it at once."""


_Opened = TypeVar("_Opened", bound=_Open)


def each(dsn: str) -> list[str]:
    """Return a DSN a host, or the one that is given, if it names one host or can't be taken apart."""
    try:
        parts = urlsplit(dsn)
    except ValueError:
        return [dsn]
    login, at, netloc = parts.netloc.rpartition("@")
    options = parse_qsl(parts.query)
    named = {name: value.split(",") for name, value in options if name in {"host", "port"}}
    hosts = netloc.split(",")
    if not netloc and "host" in named:
        ports = named.pop("port", [""])
        hosts = [f"{host}:{port}".rstrip(":") for host, port in zip_longest(named.pop("host"), ports, fillvalue=ports[-1])]
    if len(hosts) == 1 or named or any("/" in host for host in hosts):
        return [dsn]
    query = urlencode([(name, value) for name, value in options if name not in {"host", "port"}])
    return [urlunsplit(parts._replace(netloc=f"{login}{at}{host}", query=query)) for host in hosts]


async def first(dsns: list[str], opened: Callable[[str], Awaitable[_Opened]]) -> _Opened:
    """
    Open the first that will do, in this order; a host that is silent for SILENT_S seconds is not waited for alone.

    Raises what the last one raised if none will do.
    """
    if len(dsns) == 1:
        return await opened(dsns[0])
    tries: list[asyncio.Future[_Opened]] = []
    try:
        while True:
            if len(tries) < len(dsns):
                tries.append(asyncio.ensure_future(opened(dsns[len(tries)])))
            going = {attempt for attempt in tries if not attempt.done()}
            if going:
                silent_s = SILENT_S if len(tries) < len(dsns) else None
                await asyncio.wait(going, timeout=silent_s, return_when=asyncio.FIRST_COMPLETED)
            for attempt in tries:
                if attempt.done() and attempt.exception() is None:
                    return tries.pop(tries.index(attempt)).result()
            if len(tries) == len(dsns) and all(attempt.done() for attempt in tries):
                return tries[-1].result()
    finally:
        await _forget(tries)


async def _forget(tries: list["asyncio.Future[_Opened]"]) -> None:
    """End what is still being tried, and what was opened beside the one that is taken."""
    for attempt in tries:
        attempt.cancel()
    for ended in await asyncio.gather(*tries, return_exceptions=True):
        if not isinstance(ended, BaseException):
            ended.terminate()
