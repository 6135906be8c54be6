"""What a shadow run may not do, tried each way: nothing of it is seen by anybody else."""

import asyncio
import inspect
import json
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from servers import SURELY_S, eventually

from notifyworker import Client, PauseKind, Run, Worker

INSERT = "INSERT INTO notifyworker.runs (kind, is_shadow, max_attempts) VALUES ('k', true, 1) RETURNING run_id"


class Try:
    """One shadow run of a handler, and what it has left behind."""

    def __init__(self, worker: Worker, connection: asyncpg.Connection, dsn: str) -> None:
        self.worker = worker
        self.connection = connection
        self.dsn = dsn
        self.done: list[Any] = []

    async def of(self, handler: Any, **options: Any) -> asyncpg.Record:
        """Execute it in shadow; return its run as it was settled."""
        self.worker.handler("k", **options)(handler)
        async with self.worker:
            run_id = await self.connection.fetchval(INSERT)
            await eventually(lambda: self._is_settled(run_id))
        return await self.connection.fetchrow("SELECT * FROM notifyworker.all_runs WHERE run_id = $1", run_id)

    async def _is_settled(self, run_id: UUID) -> bool:
        query = "SELECT finished_at IS NOT NULL FROM notifyworker.all_runs WHERE run_id = $1"
        return bool(await self.connection.fetchval(query, run_id))

    async def call(self, *what: Any) -> None:
        self.done.append(what)

    async def rows(self, table: str) -> int:
        return await self.connection.fetchval(f"SELECT count(*) FROM {table}")


@pytest.fixture
async def shadow(make_worker, connection, dsn) -> Try:
    await connection.execute("CREATE TABLE written (n integer)")
    return Try(make_worker(), connection, dsn)


async def test_its_effects_are_never_called_and_it_can_not_say_that_it_is_live(shadow):
    async def handle(run: Run) -> None:
        with pytest.raises(AttributeError):
            run.is_shadow = False  # type: ignore[misc]
        await run.effect("mail", shadow.call, 1)
        await run.step("charge", shadow.call, 2)

    run = await shadow.of(handle)
    assert (run["state"], shadow.done) == ("completed", [])
    assert [effect["name"] for effect in json.loads(run["effects"])] == ["mail", "charge"]


@pytest.mark.parametrize(
    "ending", ["COMMIT", "SELECT 1; COMMIT", "SET CONSTRAINTS ALL IMMEDIATE; COMMIT", "PREPARE TRANSACTION 'x'"]
)
async def test_a_commit_by_hand_commits_nothing(shadow, ending):
    async def handle(run: Run) -> None:
        async with run.transaction() as connection:
            await connection.execute("INSERT INTO written VALUES (1)")
            try:
                await connection.execute(ending)
            except asyncpg.PostgresError as error:
                shadow.done.append(str(error))

    await shadow.of(handle)
    assert await shadow.rows("written") == 0
    assert len(shadow.done) == 1


@pytest.mark.parametrize("how", ["ROLLBACK", "COMMIT"])
async def test_what_is_written_after_its_own_end_of_the_transaction_is_refused(shadow, how):
    async def handle(run: Run) -> None:
        async with run.transaction() as connection:
            for statement in (how, "INSERT INTO written VALUES (2)"):
                try:
                    await connection.execute(statement)
                except asyncpg.PostgresError as error:
                    shadow.done.append(type(error))

    await shadow.of(handle)
    assert await shadow.rows("written") == 0
    assert shadow.done[-1] is asyncpg.ReadOnlySQLTransactionError


async def test_a_connection_of_its_own_is_as_it_was_afterwards(shadow, dsn):
    own = await asyncpg.connect(dsn)

    async def handle(run: Run) -> None:
        async with run.transaction(own) as connection:
            await connection.execute("INSERT INTO written VALUES (3)")

    try:
        await shadow.of(handle)
        assert await shadow.rows("written") == 0
        await own.execute("INSERT INTO written VALUES (4)")
    finally:
        await own.close()
    assert await shadow.rows("written") == 1


async def test_a_step_in_a_transaction_can_not_be_committed_either(shadow):
    async def write(connection: Any) -> None:
        await connection.execute("INSERT INTO written VALUES (5)")
        try:
            await connection.execute("COMMIT")
        except asyncpg.PostgresError as error:
            shadow.done.append(error.sqlstate)

    async def handle(run: Run) -> None:
        await run.step_transaction("write", write)

    await shadow.of(handle)
    assert await shadow.rows("written") == 0
    assert shadow.done == ["2D000"]


async def test_a_client_inside_of_it_changes_nothing(shadow, dsn):
    async def handle(run: Run) -> str:
        async with Client(dsn) as client:
            first = await client.enqueue("other", {"n": 1})
            both = await asyncio.gather(client.enqueue("other", {"n": 2}), asyncio.create_task(client.enqueue("other", {"n": 3})))
            many = await client.enqueue_many("other", [{}, {}])
            await client.put_schedule("nightly", "0 3 * * *", "other")
            await client.pause("other")
            await client.cancel(run.run_id)
            await client.set_limit(max_running=1)
            await client.mirror("k", "v2")
            await client.promote("k", "v2", force=True)
            await client.switch_back("k")
            await client.emit("paid", {"n": 1}, key="order-1")
            await asyncio.to_thread(asyncio.run, _elsewhere(dsn))
            return f"{len({first, *both, *many})}"

    run = await shadow.of(handle)
    assert (run["state"], run["result"]) == ("completed", '"5"'), run["errors"]
    assert await shadow.rows("notifyworker.all_runs") == 1
    for table in ("schedules", "pauses", "limits", "mirrors", "versions", "events", "idempotency_keys"):
        assert await shadow.rows(f"notifyworker.{table}") == 0
    names = [effect["name"] for effect in json.loads(run["effects"])]
    assert names == [
        "enqueue", "enqueue", "enqueue", "enqueue_many", "put_schedule", "pause", "cancel", "set_limit", "mirror", "promote", "switch_back", "emit", "enqueue",
    ]  # fmt: skip


async def _elsewhere(dsn: str) -> None:
    async with Client(dsn) as client:
        await client.enqueue("other")


def test_a_plain_handlers_client_changes_nothing_either():
    """Of the client, by name: what is not marked is known only to read."""
    reads = {
        "close", "get", "list", "steps", "log", "pauses", "limits", "shares", "schedules", "wait", "failed", "retention",
        "mirrors", "shadow_report", "children", "versions", "enqueue",  # enqueue is an insert
    }  # fmt: skip
    methods = {name: method for name, method in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")}
    marked = {name for name, method in methods.items() if "notifyworker_effect" in method.__dict__}
    assert {name for name, method in methods.items() if inspect.iscoroutinefunction(method)} == marked | reads


@pytest.mark.parametrize("executor", [None, "batch"])
async def test_also_in_a_thread_and_in_a_batch(shadow, dsn, executor):
    def plain(_run: Any) -> None:
        asyncio.run(_elsewhere(dsn))

    run = await shadow.of(plain, **({"batch_size": 2, "batch_wait_s": 0.01} if executor == "batch" else {}))
    assert run["state"] == "completed", run["errors"]
    assert await shadow.rows("notifyworker.all_runs") == 1


async def test_it_starts_no_child(shadow):
    async def handle(run: Run) -> str:
        child = await run.start("other", {"n": 1})
        await run.join()
        return f"{child is not None}"

    run = await shadow.of(handle)
    assert (run["state"], run["result"]) == ("completed", '"True"'), run["errors"]
    assert await shadow.rows("notifyworker.all_runs") == 1
    for table in ("children", "child_groups"):
        assert await shadow.rows(f"notifyworker.{table}") == 0, table


async def test_a_copys_progress_result_errors_and_log_never_reach_its_live_run(make_worker, connection):
    worker = make_worker()

    @worker.handler("k", version="v1")
    async def live(run: Run) -> str:
        await run.progress({"by": "v1"})
        return "v1"

    @worker.handler("k", version="v2")
    async def tried(run: Run) -> None:
        await run.progress({"by": "v2"})
        run.log.info("by v2")
        raise ValueError("by v2")

    await connection.execute("SELECT notifyworker.set_mirror('k', 'v2', 100)")
    async with worker:
        run_id = await connection.fetchval("INSERT INTO notifyworker.runs (kind, max_attempts) VALUES ('k', 1) RETURNING run_id")

        async def is_compared() -> bool:
            return await connection.fetchval("SELECT count(*) FROM notifyworker.shadow_pairs WHERE became = 'different'") == 1

        await eventually(is_compared)
    runs = await connection.fetch("SELECT * FROM notifyworker.all_runs ORDER BY is_shadow")
    assert [(run["state"], run["is_shadow"]) for run in runs] == [("completed", False), ("failed", True)]
    assert (runs[0]["run_id"], runs[0]["result"], runs[0]["errors"], json.loads(runs[0]["progress"])) == (
        run_id, '"v1"', "[]", {"by": "v1"},
    )  # fmt: skip
    assert json.loads(runs[1]["progress"]) == {"by": "v2"}
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.run_logs WHERE run_id = $1", run_id) == 0


async def test_a_shadow_run_pauses_no_kind(shadow):
    async def handle(run: Run) -> None:
        if run.attempt == 1 and not shadow.done:
            shadow.done.append(1)
            raise PauseKind(0.01)

    run = await shadow.of(handle)
    assert run["state"] == "completed"
    assert await shadow.rows("notifyworker.pauses") == 0


async def test_a_copy_holds_no_key_no_place_no_token_and_no_idempotency_key(make_worker, connection):
    worker = make_worker()
    entered, leave = asyncio.Event(), asyncio.Event()

    @worker.handler("k", version="v1")
    async def live(run: Run) -> None:
        pass

    @worker.handler("k", version="v2")
    async def tried(run: Run) -> None:
        entered.set()
        await leave.wait()

    insert = "INSERT INTO notifyworker.runs (kind, concurrency_key, idempotency_key) VALUES ('k', 'x', $1) RETURNING run_id"
    await connection.execute("SELECT notifyworker.set_limit('k', rate => 2, per_s => 3600, burst => 2)")
    await connection.execute("SELECT notifyworker.set_mirror('k', 'v2', 100)")
    async with worker:
        await connection.fetchval(insert, "a")
        await asyncio.wait_for(entered.wait(), SURELY_S)
        copy = await connection.fetchrow("SELECT * FROM notifyworker.runs WHERE waits_for = 'shadow'")
        assert (copy["concurrency_key"], copy["idempotency_key"], copy["state"]) == (None, None, "running")
        assert await connection.fetchval("SELECT count(*) FROM notifyworker.places WHERE run_id = $1", copy["run_id"]) == 0
        second = await connection.fetchval(insert, "b")  # the same concurrency key, and the last token

        async def is_settled() -> bool:
            return bool(await connection.fetchval("SELECT 1 FROM notifyworker.run_history WHERE run_id = $1", second))

        await eventually(is_settled)
        leave.set()


async def test_copies_take_their_share_of_the_slots_and_no_more(make_worker, connection):
    worker = make_worker(concurrency=20, shadow_share=0.1)
    now = most = 0
    leave = asyncio.Event()

    @worker.handler("k", version="v1")
    async def live(run: Run) -> None:
        pass

    @worker.handler("k", version="v2")
    async def tried(run: Run) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await leave.wait()
        now -= 1

    await connection.execute("SELECT notifyworker.set_mirror('k', 'v2', 100)")

    async def are_settled() -> bool:
        return not await connection.fetchval("SELECT count(*) FROM notifyworker.runs WHERE NOT is_shadow")

    async with worker:
        for _ in range(2):  # while copies wait, live runs go on
            await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'k' FROM generate_series(1, 100)")
            await eventually(are_settled)
        await eventually(lambda: most == 2)
        leave.set()

        async def compared() -> bool:
            return await connection.fetchval("SELECT count(*) FROM notifyworker.shadow_pairs WHERE became = 'same'") == 200

        await eventually(compared)
    assert most == 2
