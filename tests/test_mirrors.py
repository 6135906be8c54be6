"""Copies of live runs: each chosen one once, without effects, beside live ones and never in their way."""

import json
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from servers import eventually

from notifyworker import Run, Worker
from notifyworker.mirrors import part_of


class House:
    """A worker of kind k: v1 is live, v2 is tried."""

    def __init__(self, worker: Worker, connection: asyncpg.Connection) -> None:
        self.worker = worker
        self.connection = connection
        self.sent: list[Any] = []
        worker.handler("k", version="v1")(self.live)
        worker.handler("k", version="v2")(self.tried)

    async def live(self, run: Run, payload: dict[str, Any]) -> Any:
        await run.effect("mail", self.send, payload["n"])
        return {"price": payload["n"]}

    async def tried(self, run: Run, payload: dict[str, Any]) -> Any:
        await run.effect("mail", self.send, payload["n"])
        return {"price": payload["n"] + (1 if payload["n"] % 10 == 3 else 0)}

    async def send(self, what: Any) -> None:
        self.sent.append(what)

    async def mirror(self, percent: float = 100, **more: Any) -> None:
        await self.connection.execute(
            "SELECT notifyworker.set_mirror('k', 'v2', $1, per_hour => $2)", percent, more.get("per_hour")
        )

    async def insert(self, count: int) -> list[UUID]:
        rows = await self.connection.fetch(
            """INSERT INTO notifyworker.runs (kind, payload) SELECT 'k', jsonb_build_object('n', n)
                 FROM generate_series(1, $1) AS n RETURNING run_id""",
            count,
        )
        return [row["run_id"] for row in rows]

    async def count(self, where: str = "true") -> int:
        return await self.connection.fetchval(f"SELECT count(*) FROM notifyworker.shadow_pairs WHERE {where}")

    async def compared(self, count: int) -> None:
        await eventually(lambda: self._is(count))

    async def _is(self, count: int) -> bool:
        return await self.count("became IS NOT NULL") >= count


@pytest.fixture
def house(make_worker, connection) -> House:
    return House(make_worker(concurrency=20), connection)


async def test_chosen_runs_are_copied_once_compared_and_without_effects(house, connection):
    async with house.worker:
        await house.mirror()
        await eventually(lambda: house.worker._conductor.mirrors.any_rules)
        ids = await house.insert(30)
        await house.compared(30)
        pairs = await connection.fetch("SELECT * FROM notifyworker.shadow_pairs")
        assert {pair["live_run_id"] for pair in pairs} == set(ids)
        assert sorted(house.sent) == list(range(1, 31))  # the live ones' alone
        different = [pair for pair in pairs if pair["became"] == "different"]
        assert len(different) == 3
        assert {tuple(pair["ways"]) for pair in different} == {("result",)}
        assert sorted(pair["diff"] for pair in different) == [f"result.price: {n} -> {n + 1}" for n in (13, 23, 3)]
        copies = await connection.fetch("SELECT * FROM notifyworker.run_history WHERE is_shadow")
        assert {copy["replay_of"] for copy in copies} == set(ids)
        assert {copy["shadow_by"] for copy in copies} == {"mirror"}
        live = await connection.fetchrow("SELECT * FROM notifyworker.run_history WHERE run_id = $1", ids[0])
        assert json.loads(live["effects"]) == [{"name": "mail", "args": [1], "kwargs": {}}]
        assert all(pair["live_s"] is not None and pair["shadow_s"] is not None for pair in pairs)


async def test_a_rule_takes_its_part_by_the_runs_id(house, connection):
    async with house.worker:
        await house.mirror(25)
        await eventually(lambda: house.worker._conductor.mirrors.any_rules)
        ids = await house.insert(200)
        await eventually(lambda: len(house.sent) == 200)
        chosen = {run_id for run_id in ids if part_of(run_id) < 25}
        await house.compared(len(chosen))
        assert {row["live_run_id"] for row in await connection.fetch("SELECT * FROM notifyworker.shadow_pairs")} == chosen
        assert 20 < len(chosen) < 80
        effects = "SELECT run_id FROM notifyworker.run_history WHERE NOT is_shadow AND effects IS NOT NULL"
        assert {row["run_id"] for row in await connection.fetch(effects)} == chosen
        for run_id in ids[:20]:
            assert await connection.fetchval("SELECT notifyworker.part_of($1)", run_id) == part_of(run_id)


async def test_what_is_beyond_the_hour_is_counted_and_not_copied(house, connection):
    async with house.worker:
        await house.mirror(per_hour=10)
        ids = await house.insert(60)
        await eventually(lambda: len(house.sent) == len(ids))
        await house.compared(10)

        async def all_told() -> bool:
            (rule,) = await house.worker._conductor.mirrors._store.mirrors_list(house.worker._conductor._side_link)
            return rule["in_hour"] == 10 and rule["capped"] == 50 and rule["waiting"] == 0

        await eventually(all_told)
        assert await house.count() == 10
