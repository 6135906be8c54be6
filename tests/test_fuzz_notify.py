"""Anybody may notify on our channel: whatever is said there ends nothing, harms no run and costs no memory."""

import asyncio
from typing import Any

import asyncpg
import hypothesis
import psutil
from hypothesis import strategies as st
from servers import SURELY_S, eventually
from structlog.testing import capture_logs
from test_faults import all_run
from test_life import insert, settled

from notifyworker import Run

LONGEST = 7999  # bytes that a notification may have
FAULTS = {"loop_ended", "execute_failed", "claim_failed", "listener_lost", "lease_lost", "gate_lost", "heartbeat_failed"}

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
moments = st.sampled_from(
    ["", "nan", "inf", "-inf", "1e308", "-1e308", "1e18", "-62135596800", "-62135596801", "253402300799", "253402300800", "0", "-0", "1e-400", "0x1",
     "1_0", " 1", "\u0661", "9" * 400, "1.7976931348623157e309", "-1"]
)  # fmt: skip
payloads = st.one_of(
    st.builds(lambda what, more: what + more, st.sampled_from(["", "at:", "turn:", "cancel:", "farewell", "coalesced", "armed", "at", ":", "AT:"]), text),
    moments.map(lambda moment: f"at:{moment}"),
    st.floats().map(lambda moment: f"at:{moment}"),
    st.uuids().map(lambda run_id: f"cancel:{run_id}"),
    text.map(lambda some: (some or "ü") * 4000).map(lambda much: much.encode()[:LONGEST].decode(errors="ignore")),
)  # fmt: skip


async def test_whatever_is_said_on_the_channel_harms_nothing(dsn, make_worker, connection):
    worker, go_on = make_worker(), asyncio.Event()

    @worker.handler("held")
    async def held(run: Run) -> str:
        await go_on.wait()
        return "went on"

    @worker.handler("other")
    async def other(run: Run) -> None: ...

    loop = asyncio.get_running_loop()
    stranger = await asyncpg.connect(dsn)

    async def said(batch: list[str]) -> None:
        for payload in batch:
            await stranger.execute("SELECT pg_notify('notifyworker', $1)", payload)
        assert (await settled(connection, await insert(connection, "other")))["state"] == "completed", batch

    @hypothesis.settings(max_examples=80, derandomize=True, database=None, deadline=None)
    @hypothesis.given(st.lists(payloads, min_size=1, max_size=15))
    def whatever(batch: list[str]) -> None:
        asyncio.run_coroutine_threadsafe(said(batch), loop).result(2 * SURELY_S)

    with capture_logs() as logs:
        async with worker:
            run_id = await insert(connection, "held")
            await eventually(lambda: all_run(connection, [run_id]))
            await asyncio.to_thread(whatever)
            await said([f"cancel:{run_id}"])
            assert worker._conductor.health() == []
            go_on.set()
            run = await settled(connection, run_id)
    await stranger.close()

    assert (run["state"], run["attempt"], run["result"]) == ("completed", 1, '"went on"')
    assert {entry["event"] for entry in logs}.isdisjoint(FAULTS)


async def test_ten_thousand_long_notifications_at_once_are_heard_and_forgotten(dsn, make_worker, connection):
    worker = make_worker()

    @worker.handler("other")
    async def other(run: Run) -> None: ...

    async def burst(conn: asyncpg.Connection, what: str) -> None:
        # Each a different one: the server sends the same text of one transaction only once.
        await conn.execute(
            "SELECT pg_notify('notifyworker', $1 || repeat('x', 3000) || n) FROM generate_series(1, 10000) AS n", what
        )

    process: Any = psutil.Process()
    async with worker:
        await settled(connection, await insert(connection, "other"))
        await burst(connection, "")
        await settled(connection, await insert(connection, "other"))
        before = process.memory_info().rss
        for what in ("at:", "cancel:", "turn:", "farewell"):
            await burst(connection, what)
            assert (await settled(connection, await insert(connection, "other")))["state"] == "completed"
        assert process.memory_info().rss < before + 60 * 2**20
        assert worker._conductor.health() == []
