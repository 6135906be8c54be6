"""
What systemd wants to hear of a service with Type=notify: one datagram each, as sd_notify(3) says.

The packages that do so are not kept. Nothing is told unless NOTIFY_SOCKET is set, which systemd does for such a service.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

from notifyworker.observe import log


@contextlib.asynccontextmanager
async def told(stop: asyncio.Event) -> AsyncIterator[None]:
    """
    Tell that the service is ready, from now on that its event loop turns, and that it stops once `stop` is set.

    The watchdog hears of it at twice the rate that it asks for, until the block ends: also while the worker drains.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        yield
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.settimeout(0)  # a datagram that finds no room is left out
        service = _Service(to, "\0" + address[1:] if address.startswith("@") else address)
        service.tell("READY=1")
        tasks = [asyncio.create_task(work, name="notifyworker systemd") for work in (service.beat(), service.end(stop))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


class _Service:
    def __init__(self, to: socket.socket, address: str) -> None:
        self._to = to
        self._address = address

    def tell(self, text: str) -> None:
        try:
            self._to.sendto(text.encode(), self._address)
        except OSError as error:
            log.warning("systemd_not_told", what=text, error=f"{type(error).__name__}: {error.strerror}")

    async def beat(self) -> None:
        every_s = _watchdog_s() / 2
        while every_s:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(every_s)

    async def end(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.tell("STOPPING=1")


def _watchdog_s() -> float:
    """Within how many seconds the watchdog wants to hear of this very process; 0: it does not."""
    wanted, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    return int(wanted) / 1e6 if wanted.isascii() and wanted.isdigit() and pid in {"", str(os.getpid())} else 0.0
