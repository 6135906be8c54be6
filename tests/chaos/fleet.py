"""
Worker processes, each behind a proxy of its own, and what can be done to them from outside.

They are the command line's own, `notifyworker worker chaos.app:worker`, but forked from a server that has imported the
package already: a start costs a few milliseconds of CPU in place of most of a second.
"""

import asyncio
import contextlib
import ctypes
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from typing import Any, Self

from chaos.ledger import Ledger
from chaos.proxy import Proxy
from chaos.thread import ProxyThread

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["notifyworker.cli.app", "notifyworker.cli.worker", "notifyworker.lifespan", "chaos.fleet", "aiohttp.web"]
)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker lives: on this machine itself, unless it has namespaces; of this package, unless it has a program."""

    #: Files in /proc of those to join.
    namespaces: Sequence[str] = ()
    #: What is executed in place of this package: another version, or one that wants another environment from its start.
    program: Sequence[str] = ()


def _live(environment: dict[str, str], log_file: str, place: Place) -> None:
    """In the child: be the command line's worker, and end when the harness does."""
    os.environ.clear()
    os.environ.update(environment)
    log = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    libc = ctypes.CDLL(None, use_errno=True)
    for name in place.namespaces:
        namespace = os.open(name, os.O_RDONLY)
        if libc.setns(namespace, 0) != 0:
            raise OSError(ctypes.get_errno(), name)
        os.close(namespace)
    if place.program:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the fork server ends when the harness does
        os.execv(place.program[0], place.program)
    harness = multiprocessing.parent_process()
    assert harness is not None

    def end_with_it() -> None:
        multiprocessing.connection.wait([harness.sentinel])
        os._exit(70)

    threading.Thread(target=end_with_it, daemon=True).start()
    from notifyworker.cli import main

    main(["worker", "chaos.app:worker"])


class Member:
    """One place in the fleet: a proxy, and the worker process that is behind it now."""

    def __init__(self, name: str, database: str, ledger: Ledger, settings: dict[str, Any]) -> None:
        self.name = name
        self.log_file = ledger.directory.parent / f"{name}.log"
        self.settings = settings
        self.place = Place()
        self.proxy: Proxy
        self._process: ForkServerProcess | None = None
        self.is_frozen = False
        #: How often a worker was started here.
        self.starts = 0
        self._database = database
        self._ledger = ledger
        self._ended = asyncio.Event()

    async def open(self, thread: ProxyThread, server_port: int) -> Self:
        """Open the proxy, and start a worker."""
        self.proxy = await Proxy(self.name, thread, server_port).start()
        self.start()
        return self

    @property
    def pid(self) -> int:
        """Of the present process."""
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the present process lives, if only frozen."""
        return self._process is not None and not self._ended.is_set()

    @property
    def dsn(self) -> str:
        """How its worker reaches the database."""
        return f"postgresql://postgres@127.0.0.1:{self.proxy.port}/{self._database}"

    def start(self) -> None:
        """Start a worker."""
        environment = self.environment(self.dsn)
        self.is_frozen = False
        self.starts += 1
        self.log_file.touch()
        self._ended = asyncio.Event()
        self._process = _FORKS.Process(target=_live, args=(environment, str(self.log_file), self.place), name=self.name)
        self._process.start()
        watch = (self._process, self._ended, asyncio.get_running_loop())
        threading.Thread(target=self._watch, args=watch, name=f"chaos {self.name}", daemon=True).start()

    def environment(self, dsn: str) -> dict[str, str]:
        """What a worker of this place finds there."""
        given = {"dsn": dsn, "log_format": "json", "sidecar": "false", **self.settings}
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NOTIFYWORKER_", "PG"))},
            **{f"NOTIFYWORKER_{name.upper()}": str(value) for name, value in given.items()},
            "CHAOS_LEDGER": str(self._ledger.directory),
        }

    def _watch(self, process: ForkServerProcess, ended: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: write down a process's end the moment it is known."""
        multiprocessing.connection.wait([process.sentinel])
        self._ledger.note("exit", pid=process.pid)
        with contextlib.suppress(RuntimeError):  # the harness is over
            loop.call_soon_threadsafe(ended.set)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the present process, if it lives. Thread-safe: what the proxy's rules do."""
        if number == signal.SIGSTOP:
            self.is_frozen = True
            self._ledger.note("freeze", pid=self.pid)  # before it is: nothing it does later may be taken for thawed
        if number == signal.SIGCONT:
            self._ledger.note("thaw", pid=self.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        if number == signal.SIGCONT:
            self.is_frozen = False

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)

    async def ended(self, within_s: float) -> int:
        """Wait for the end of the present process, and return its exit code. TimeoutError after `within_s`."""
        async with asyncio.timeout(within_s):
            await self._ended.wait()
        assert self._process is not None
        code = self._process.exitcode
        assert code is not None
        return code

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the log tells under this name, of all processes that were here."""
        with self.log_file.open("rb") as file:
            lines = [json.loads(line) for line in file if line.startswith(b"{") and line.endswith(b"}\n")]
        return [line for line in lines if line["event"] == name]

    async def close(self) -> None:
        """End process and proxy, whatever state they are in."""
        if self._process is not None and self.is_running:
            self._process.kill()
            await self.ended(20)
        await self.proxy.stop()


class Fleet:
    """All members."""

    def __init__(self, database: str, server_port: int, thread: ProxyThread, ledger: Ledger) -> None:
        self.members: list[Member] = []
        self._database = database
        self._server_port = server_port
        self._thread = thread
        self._ledger = ledger
        self._keeper: asyncio.Task[None] | None = None

    async def add(self, settings: dict[str, Any]) -> Member:
        """Start one more worker."""
        member = Member(f"worker{len(self.members)}", self._database, self._ledger, settings)
        self.members.append(member)
        return await member.open(self._thread, self._server_port)

    def keep_up(self) -> None:
        """From now on, start a worker wherever one has ended, as a supervisor does."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep_up())

    async def _keep_up(self) -> None:
        while True:
            for member in self.members:
                if not member.is_running:
                    member.start()
            await asyncio.sleep(0.2)

    async def stop_keeping(self) -> None:
        """Leave the dead alone."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None

    async def heal(self) -> None:
        """Proxies deliver again, the frozen go on."""
        for member in self.members:
            await member.proxy.heal()
            if member.is_frozen:
                member.signal(signal.SIGCONT)

    async def close(self) -> None:
        """End everything."""
        await self.stop_keeping()
        await asyncio.gather(*(member.close() for member in self.members))
