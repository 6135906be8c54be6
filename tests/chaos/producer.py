"""A producer: inserts in transactions of its own, some of which it rolls back, through a proxy that fails it."""

import asyncio
import json
import random
import uuid
from typing import Any

import asyncpg

from chaos.emitter import KEYS
from chaos.kinds import BATCHED, EXACT, FAMILY
from chaos.ledger import Ledger
from chaos.proxy import Proxy
from chaos.thread import ProxyThread
from notifyworker.database import DatabaseError

_BATCH = 20


class Producer:
    """
    Inserts `count` runs in batches, and knows of each whether it was committed, rolled back, or that it can't know.

    What a lost COMMIT has become is found out by looking afterwards, in `check`.
    """

    def __init__(
        self, *, name: str, database: str, count: int, per_s: float, ledger: Ledger, seed: int, families: bool = False
    ) -> None:
        self.name = name
        self.left = count
        self.proxy: Proxy
        self._database = database
        self._per_s = per_s
        self._ledger = ledger
        self._random = random.Random(seed)
        #: How many of a hundred are families: none where nobody emits what they wait for.
        self._families = 3 if families else 0
        self._connection: asyncpg.Connection[Any] | None = None

    async def open(self, thread: ProxyThread, server_port: int) -> "Producer":
        """Open the proxy."""
        self.proxy = await Proxy(self.name, thread, server_port).start()
        return self

    async def run(self) -> None:
        """Insert until so many are known to be committed."""
        loop = asyncio.get_running_loop()
        due_at = loop.time()
        while self.left > 0:
            count = min(self.left, self._random.randint(1, 2 * _BATCH))
            is_rolled_back = self._random.random() < 0.05
            ids = [str(uuid.UUID(int=self._random.getrandbits(128), version=4)) for _ in range(count)]
            outcome = await self._transaction(ids, is_rolled_back=is_rolled_back)
            self._ledger.note(outcome, runs=ids)
            if outcome == "ok":
                self.left -= count
            if self._connection is None:
                await asyncio.sleep(0.1)  # no database: not too often
            due_at = max(loop.time(), due_at + count / self._per_s)
            await asyncio.sleep(due_at - loop.time())

    async def _transaction(self, ids: list[str], *, is_rolled_back: bool) -> str:
        """One transaction: "ok", "rolled back", or "unknown"."""
        self._ledger.note("try", runs=ids)
        kinds = [self._kind() for _ in ids]
        outcome = "rolled back"  # what has not sent its COMMIT is
        try:
            if self._connection is None:
                dsn = f"postgresql://postgres@127.0.0.1:{self.proxy.port}/{self._database}"
                self._connection = await asyncpg.connect(
                    dsn, timeout=5, command_timeout=5, server_settings={"application_name": "producer"}
                )
            await self._connection.execute("BEGIN")
            await self._connection.execute(
                "INSERT INTO notifyworker.runs (run_id, kind, payload, max_attempts, concurrency_key, headers)"
                " SELECT id, kind, payload, 100, key, jsonb_build_object('key', key)"
                " FROM unnest($1::uuid[], $2::text[], $3::jsonb[], $4::text[]) AS r (id, kind, payload, key)",
                ids, kinds, [self._payload() for _ in ids], [self._key(kind) for kind in kinds],
            )  # fmt: skip
            if is_rolled_back:
                await self._connection.execute("ROLLBACK")
                return outcome
            outcome = "unknown"
            await self._connection.execute("COMMIT")
            return "ok"
        except DatabaseError:
            if self._connection is not None:
                self._connection.terminate()
                self._connection = None
            return outcome

    def _kind(self) -> str:
        kinds = ("good", EXACT, "stepped", "flaky", "mirrored", BATCHED, FAMILY)
        return self._random.choices(kinds, (58, 15, 10, 5, 5, 4, self._families))[0]

    def _key(self, kind: str) -> str | None:
        """Some have a key, but none that is settled or parked before its handler ends: that frees its key a moment before."""
        return str(self._random.randrange(200)) if kind not in {EXACT, FAMILY} and self._random.random() < 0.2 else None

    def _payload(self) -> str:
        ms, fails, key = self._random.choice((0, 0, 1, 5, 20)), self._random.randint(1, 3), self._random.choice(KEYS)
        return json.dumps({"ms": ms, "fails": fails, "key": key})

    async def close(self) -> None:
        """End connection and proxy."""
        if self._connection is not None:
            self._connection.terminate()
        await self.proxy.stop()
