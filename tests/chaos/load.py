"""Inserts at a rate: single rows, each in a transaction of its own, over several connections past all proxies."""

import asyncio
import contextlib
import statistics
import time
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import asyncpg

from chaos.arena import Arena
from notifyworker.database import DatabaseError

_CONNECTIONS = 16


class Load:
    """
    Inserts while the block lasts. What was acknowledged is in the ledger.

    At most sixteen at a time: if they are slower than asked for, fewer come, and `told` says how many.
    """

    def __init__(self, a: Arena, *, per_s: float, deadline_s: float = 20) -> None:
        self._a = a
        self._per_s = per_s
        self._deadline_s = deadline_s
        #: What is inserted in turn; may grow.
        self.kinds = ["good"]
        #: Those that somebody has a handler for: of others no pickup is measured.
        self.handled = {"good"}
        self._acknowledged: dict[str, tuple[float, float]] = {}
        self._in_vain: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._began = self._ended = 0.0
        self._number = 0

    async def __aenter__(self) -> Self:
        self._began = time.monotonic()
        self._tasks = [asyncio.create_task(self._insert()) for _ in range(_CONNECTIONS)]
        return self

    async def __aexit__(self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None) -> None:
        self._ended = time.monotonic()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _insert(self) -> None:
        due_at = time.monotonic()
        while True:
            connection: asyncpg.Connection[Any] | None = None
            with contextlib.suppress(*DatabaseError):
                connection = await asyncpg.connect(
                    self._a.dsn, timeout=5, command_timeout=self._deadline_s, server_settings={"application_name": "load"}
                )
            try:
                while connection is not None and not connection.is_closed():
                    due_at = max(due_at + _CONNECTIONS / self._per_s, time.monotonic() - 0.05)
                    await asyncio.sleep(due_at - time.monotonic())
                    await self._one(connection)
            finally:
                if connection is not None:
                    connection.terminate()
            await asyncio.sleep(0.1)

    async def _one(self, connection: "asyncpg.Connection[Any]") -> None:
        self._number += 1
        kind = self.kinds[self._number % len(self.kinds)]
        run = str(uuid.UUID(int=self._a.random.getrandbits(128), version=4))
        self._a.ledger.note("try", runs=[run])
        if kind not in self.handled:
            self._in_vain.add(run)
        sent_at = time.monotonic()
        try:
            await connection.execute("INSERT INTO notifyworker.runs (run_id, kind, max_attempts) VALUES ($1, $2, 100)", run, kind)
        except DatabaseError:
            self._a.ledger.note("unknown", runs=[run])
            connection.terminate()
        else:
            self._a.ledger.note("ok", runs=[run])
            self._acknowledged[run] = sent_at, time.monotonic()

    def acknowledged(self) -> list[str]:
        """The runs whose inserts were answered."""
        return list(self._acknowledged)

    def unhandled(self) -> list[str]:
        """Those of them that nobody had a handler for."""
        return sorted(self._in_vain & self._acknowledged.keys())

    async def reached(self, more: float) -> None:
        """Wait until so many more have been inserted."""
        wanted = len(self._acknowledged) + more
        await self._a.soon(lambda: len(self._acknowledged) >= wanted, 60, f"{more:g} runs were not inserted")

    def _waits_s(self) -> list[float]:
        """How long each waited from its acknowledgement to its handler."""
        first: dict[str, float] = {}
        measured = self._acknowledged.keys() - self._in_vain
        for entry in self._a.reader.look():
            if entry.what == "start" and entry.facts["run"] in measured:
                first[entry.facts["run"]] = min(first.get(entry.facts["run"], entry.at), entry.at)
        return [max(0.0, at - self._acknowledged[run][1]) for run, at in first.items()]

    def pickup_s(self, part: float) -> float:
        """So much of all runs waited no longer for their handlers."""
        return sorted(waits := self._waits_s())[int(part * (len(waits) - 1))]

    def told(self) -> str:
        """What was measured, in a line."""
        inserts = [answered - sent for sent, answered in self._acknowledged.values()]
        rate = len(inserts) / (self._ended - self._began)
        return f"{len(inserts)} inserts, {rate:.0f}/s: pickup {spread(self._waits_s())}; insert {spread(inserts)}"


def spread(values: Sequence[float]) -> str:
    """The middle and the upper end of what was measured."""
    cuts = [1000 * cut for cut in statistics.quantiles(values, n=1000)]
    return f"p50 {cuts[499]:.1f}, p99 {cuts[989]:.1f}, p99.9 {cuts[998]:.1f}, max {1000 * max(values):.0f} ms"
