"""Emits the events that families wait for, early or late, by a connection that is hurt."""

import asyncio
import json
from typing import Any

import asyncpg

from chaos.arena import Arena
from chaos.kinds import FAMILY, OPENED, PAID
from chaos.proxy import Proxy
from notifyworker.database import DatabaseError

KEYS = [f"key{n}" for n in range(5)]
EMIT = "SELECT notifyworker.emit("


class Emitter:
    """
    Emits for every family that is there, and for each key, until somebody has said what became of it.

    What a lost answer has meant it can't know, and emits anew, another value: the first one counts.
    """

    def __init__(self, a: Arena) -> None:
        self._a = a
        self.proxy: Proxy
        self._connection: asyncpg.Connection[Any] | None = None
        self._number = 0
        self._known: set[tuple[str, str]] = set()
        self._is_last = False

    async def open(self) -> "Emitter":
        """Open the proxy."""
        self.proxy = await Proxy("emitter", self._a.thread, self._a.cluster.port).start()
        return self

    async def run(self) -> None:
        """Emit until `finish`, and then until nothing is left to be emitted for."""
        while True:
            was_last = self._is_last
            live = await self._a.fetch("SELECT run_id::text FROM notifyworker.runs WHERE kind = $1", FAMILY)
            left = [(PAID, row[0]) for row in live] + [(OPENED, key) for key in KEYS]
            left = [address for address in left if address not in self._known]
            for name, key in left:
                if was_last or self._a.random.random() < 0.3:  # for some before they wait, for others while they do
                    await self.emit(name, key)
            if was_last and not left:
                return
            await asyncio.sleep(0.2)  # the emitter's own rhythm

    def finish(self) -> None:
        """No family comes any more."""
        self._is_last = True

    async def emit(self, name: str, key: str) -> None:
        """Emit for a run, or for a key; once. An address of which the answer was lost stays unknown."""
        self._number += 1
        value = f"{key}:{self._number}"
        self._a.ledger.note("emit", name=name, key=key, value=value)
        is_for_run = name == PAID
        try:
            if self._connection is None:
                self._connection = await asyncpg.connect(
                    self.proxy.through(self._a.dsn), timeout=5, command_timeout=5, server_settings={"application_name": "emitter"}
                )
            first = await self._connection.fetchval(
                f"{EMIT}$1, $2, run_id => $3, key => $4)",
                name, json.dumps(value), key if is_for_run else None, None if is_for_run else key,
            )  # fmt: skip
        except asyncpg.ObjectNotInPrerequisiteStateError:
            self._known.add((name, key))  # it is settled: its answer was lost before
        except DatabaseError:
            if self._connection is not None:
                self._connection.terminate()
                self._connection = None
            await asyncio.sleep(0.1)
        else:
            self._a.ledger.note("emitted", name=name, key=key, value=value, first=first)
            self._known.add((name, key))

    def knows(self, name: str, key: str) -> bool:
        """Whether there is an event of this address, for sure."""
        return (name, key) in self._known

    async def close(self) -> None:
        """End connection and proxy."""
        if self._connection is not None:
            self._connection.terminate()
        await self.proxy.stop()
