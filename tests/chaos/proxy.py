"""
A TCP proxy between a worker and the server, which fails on demand.

It runs in a thread with an event loop of its own, so that nothing the harness does delays what it does. It reads enough
of the protocol to know each connection's purpose, by its application_name, and each statement's text: so a connection
can be cut before or after exactly one statement, or a process be frozen or killed at that moment.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Literal
from urllib.parse import urlsplit

from chaos.thread import ProxyThread
from chaos.wire import ENCRYPTION_REQUESTS, READY, Follower, Messages, Rule

Way = Literal["to server", "to client"]


class Proxy:
    """One worker's way to the server. Methods are called from the harness's loop; what they change is the thread's."""

    def __init__(self, name: str, thread: ProxyThread, server: int | str) -> None:
        self.name = name
        self.thread = thread
        #: Its port on loopback, or the path of its socket.
        self.server = server
        self.port = 0
        self.pairs: set[_Pair] = set()
        self.rules: list[Rule] = []
        self.held: list[tuple[Way, frozenset[str]]] = []
        self.is_stranded = False
        self.drops_notifications = False
        self.delay_s = 0.0
        self.trickle = False
        #: How many bytes clients have sent, the first of each connection included.
        self.sent_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> "Proxy":
        """Listen on a free port of loopback."""

        async def listen() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = self._server.sockets[0].getsockname()[1]

        await self.thread.do(listen())
        return self

    def through(self, dsn: str) -> str:
        """The DSN of the same database by way of this proxy."""
        parts = urlsplit(dsn)
        return parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{self.port}", query="").geturl()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection to the server."""
        if isinstance(self.server, str):
            return await asyncio.open_unix_connection(self.server)
        return await asyncio.open_connection("127.0.0.1", self.server)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        pair = _Pair(self, reader, writer)
        self.pairs.add(pair)
        try:
            await pair.run()
        except asyncio.CancelledError:
            pass  # the harness is over
        finally:
            pair.close()
            self.pairs.discard(pair)
            self._tasks.discard(task)

    async def _change(self, change: Callable[[], None]) -> None:
        async def changed() -> None:
            change()

        await self.thread.do(changed())

    async def arm(self, rule: Rule) -> Rule:
        """Apply this rule from now on. One rule may be armed at several proxies: it fires once."""
        await self._change(lambda: self.rules.append(rule))
        return rule

    async def disarm(self, rule: Rule) -> None:
        """Apply it no more."""
        await self._change(lambda: setattr(self, "rules", [other for other in self.rules if other is not rule]))

    async def cut(self, *purposes: str) -> None:
        """Reset all connections, or those of these purposes."""

        def change() -> None:
            for pair in list(self.pairs):
                if pair.is_for(purposes):
                    pair.close(reset=True)

        await self._change(change)

    async def hold(self, way: Way | None = None, purposes: Iterable[str] = ()) -> None:
        """Silence: deliver nothing any more in this direction (None: in both), and do not close. For new ones, too."""
        wanted = frozenset(purposes)

        def change() -> None:
            ways: list[Way] = ["to server", "to client"] if way is None else [way]
            self.held += [(w, wanted) for w in ways]
            for pair in self.pairs:
                pair.set_gates()

        await self._change(change)

    async def strand(self) -> None:
        """As if this host's network were gone and the server had noticed: its sessions end, and nobody here hears of it."""

        def change() -> None:
            self.is_stranded = True
            for pair in self.pairs:
                pair.strand()

        await self._change(change)

    async def slow(self, *, delay_s: float = 0.0, trickle: bool = False) -> None:
        """Delay everything by so much each way, or let one byte a second through."""

        def change() -> None:
            self.delay_s, self.trickle = delay_s, trickle

        await self._change(change)

    async def heal(self) -> None:
        """All is well again: what was held is delivered late, as TCP does; what was stranded is reset."""

        def change() -> None:
            self.held, self.delay_s, self.trickle = [], 0.0, False
            self.drops_notifications = False
            was_stranded, self.is_stranded = self.is_stranded, False
            for rule in self.rules:
                rule.let_go.set()
            self.rules = []
            for pair in list(self.pairs):
                pair.set_gates()
                if was_stranded and pair.is_stranded:
                    pair.close(reset=True)

        await self._change(change)

    async def stop(self) -> None:
        """Close everything."""

        async def close() -> None:
            if self._server is not None:
                self._server.close()
            for pair in list(self.pairs):
                pair.close(reset=True)
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        await self.thread.do(close())


class _Pair:
    """A client's connection and ours to the server for it."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.client, self.to_client = reader, writer
        self.to_server: asyncio.StreamWriter | None = None
        self.purpose = ""
        self.is_stranded = proxy.is_stranded
        self._gates: dict[Way, asyncio.Event] = {"to server": asyncio.Event(), "to client": asyncio.Event()}
        self._follower = Follower()
        self._answering: Rule | None = None
        self.set_gates()

    def is_for(self, purposes: Iterable[str]) -> bool:
        wanted = set(purposes)
        return not wanted or self.purpose in wanted

    def set_gates(self) -> None:
        for way, gate in self._gates.items():
            if any(held == way and self.is_for(purposes) for held, purposes in self.proxy.held):
                gate.clear()
            else:
                gate.set()

    def strand(self) -> None:
        self.is_stranded = True
        if self.to_server is not None:
            self.to_server.transport.abort()

    def close(self, *, reset: bool = False) -> None:
        for writer in (self.to_client, self.to_server):
            if writer is None or writer.transport.is_closing():
                continue
            if reset and writer is self.to_client and (raw := writer.get_extra_info("socket")) is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def run(self) -> None:
        if self.is_stranded:
            await self._swallow()
            return
        try:
            server, self.to_server = await self.proxy.connect()
        except OSError:
            return
        async with asyncio.TaskGroup() as both:
            both.create_task(self._forward())
            both.create_task(self._backward(server))

    async def _swallow(self) -> None:
        """Nobody is at the other end, and nobody says so."""
        with contextlib.suppress(ConnectionError):
            while await self.client.read(65536):
                continue

    async def _send(self, writer: asyncio.StreamWriter, data: bytes, way: Way) -> None:
        if self.proxy.delay_s:
            await asyncio.sleep(self.proxy.delay_s)
        await self._gates[way].wait()
        sent = 0
        while self.proxy.trickle and sent < len(data):
            writer.write(data[sent : sent + 1])
            sent += 1
            await asyncio.sleep(1.0)
        writer.write(data[sent:])
        await writer.drain()

    async def _forward(self) -> None:
        assert self.to_server is not None
        messages = Messages(has_startup=True)
        out, kept = b"", False
        with contextlib.suppress(ConnectionError):
            while data := await self.client.read(65536):
                self.proxy.sent_bytes += len(data)
                if self.is_stranded:
                    continue
                for kind, body, whole in messages.feed(data):
                    if kind == b"" and not self._begun(whole):
                        continue
                    if (rule := self._follower.rule_for(kind, body, self.purpose, self.proxy.rules)) is not None:
                        if rule.at == "answer":
                            self._answering = rule
                        elif not await self._applied(rule):
                            return
                    out += whole
                    kept = kind in {b"B", b"E"}  # a request goes on as a whole, with its Sync, or not at all
                if out and not kept:
                    await self._send(self.to_server, out, "to server")
                    out = b""
        if not self.is_stranded:
            await self._gates["to server"].wait()  # in a silence the other side does not hear of the end either
            self.to_server.close()

    def _begun(self, whole: bytes) -> bool:
        """The first message: whether it goes to the server."""
        if whole[4:8] in ENCRYPTION_REQUESTS:
            self.to_client.write(b"N")  # a proxy that reads has no TLS
            return False
        words = whole[8:].split(b"\0")
        given = dict(zip(words[::2], words[1::2], strict=False))
        self.purpose = given.get(b"application_name", b"").decode().removeprefix("notifyworker ")
        self.set_gates()
        return True

    async def _applied(self, rule: Rule) -> bool:
        """Do what the rule says; whether the message goes on."""
        rule.deed(self.proxy.name)
        if rule.then == "cut":
            self.close(reset=True)
            return False
        if rule.then == "hold":
            await rule.let_go.wait()
        return True

    async def _backward(self, server: asyncio.StreamReader) -> None:
        messages = Messages(has_startup=False) if self.proxy.drops_notifications else None
        answer = b""
        with contextlib.suppress(ConnectionError):
            while data := await server.read(65536):
                if (rule := self._answering) is not None:
                    answer += data
                    if answer[-6:-1] != READY:
                        continue
                    # Executed and answered in full.
                    self._answering = None
                    if not await self._applied(rule):
                        return
                    data, answer = answer, b""
                if messages is not None:
                    data = b"".join(whole for kind, _, whole in messages.feed(data) if kind != b"A")
                await self._send(self.to_client, data, "to client")
        if not self.is_stranded:
            await self._gates["to client"].wait()
            self.to_client.close()
