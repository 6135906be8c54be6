"""Schedules: each tick once, whoever leads; what is missed, what is faulty, and when clocks change."""

import asyncio
import contextlib
import json
import re
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import structlog
from servers import eventually
from test_cli import call, refused

from notifyworker import Client, InvalidRun, Worker, cron
from notifyworker.database import DatabaseError, connect
from notifyworker.store import Store

PAGE = Path(__file__).parents[1] / "docs" / "schedules.md"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def told(cron_text: str, zone: str, after: str, count: int = 3) -> list[str]:
    return [
        tick.isoformat(timespec="minutes").removesuffix("+00:00") for tick in cron.upcoming(cron_text, zone, utc(after), count)
    ]


# Pure: when.


def test_times_are_those_of_the_time_zone():
    assert told("30 6 * * 1-5", "Europe/Berlin", "2026-11-27T12:00+00:00") == [
        "2026-11-30T05:30",
        "2026-12-01T05:30",
        "2026-12-02T05:30",
    ]
    assert told("0 0 1 1 *", "Pacific/Auckland", "2026-06-01T00:00+00:00", 1) == ["2026-12-31T11:00"]


def test_what_the_clocks_skip_runs_after_the_gap_and_what_comes_twice_runs_once():
    spring = told("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00+00:00")
    assert spring == ["2026-03-29T01:00", "2026-03-30T00:30", "2026-03-31T00:30"]  # 03:00 local, then 02:30
    autumn = told("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00+00:00")
    assert autumn == ["2026-10-25T00:30", "2026-10-26T01:30", "2026-10-27T01:30"]
    each = told("*/30 * * * *", "Europe/Berlin", "2026-10-24T23:45+00:00", 6)
    assert each == [f"2026-10-25T0{hour}:{minute}" for hour in range(3) for minute in ("00", "30")]  # every half hour that passes


@pytest.mark.parametrize(
    ("cron_text", "zone", "why"),
    [
        ("x", "UTC", "can't be read"),
        ("61 * * * *", "UTC", "Bad minute"),
        ("0 0 30 2 *", "UTC", "can't be read"),
        ("0 0 29 2 1#5", "UTC", ""),
        ("* * * * *", "Mars/Olympus", "no time zone"),
        ("* * * * *", "../../etc/passwd", "no time zone"),
    ],
)
def test_what_can_never_be_is_told(cron_text, zone, why):
    if not why:
        assert cron.upcoming(cron_text, zone, utc("2026-01-01T00:00+00:00"), 1)
        return
    with pytest.raises(ValueError, match=why):
        cron.upcoming(cron_text, zone, utc("2026-01-01T00:00+00:00"), 1)


def test_what_becomes_of_missed_times():
    now = utc("2026-01-01T12:00:30+00:00")
    found, following = cron.due("*/10 * * * *", "UTC", utc("2026-01-01T11:00+00:00"), now)
    assert (len(found), following) == (7, utc("2026-01-01T12:10+00:00"))
    assert cron.to_fire(found, now, "skip") == found[-1:]  # 30 s late: not missed
    assert cron.to_fire(found[:-1], now, "skip") == []
    assert cron.to_fire(found[:-1], now, "once") == found[-2:-1]
    assert cron.to_fire(found, now, "all") == found
    many, _ = cron.due("* * * * *", "UTC", utc("2020-01-01T00:00+00:00"), utc("2020-01-08T00:00+00:00"))
    assert len(many) == cron.MOST_MISSED
    assert many[-1] == utc("2020-01-08T00:00+00:00")


# In the database.

EVERY_SECOND = "INSERT INTO notifyworker.schedules (name, cron, kind, payload) VALUES ('s', '* * * * * *', 'tick', '{\"n\": 1}')"
RUNS = "SELECT headers ->> 'tick' AS tick, payload, kind, project_id, priority FROM notifyworker.all_runs ORDER BY created_at"


async def runs(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    return await connection.fetch(RUNS)


async def late(connection: asyncpg.Connection, age: str, **columns: str) -> None:
    """A schedule of each minute that was due first so long ago, as if nobody had led since."""
    names, values = "".join(f", {name}" for name in columns), "".join(f", '{value}'" for value in columns.values())
    await connection.execute(
        f"INSERT INTO notifyworker.schedules (name, cron, kind{names}) VALUES ('s', '* * * * *', 'tick'{values})"
    )
    await connection.execute(f"UPDATE notifyworker.schedules SET next_at = date_trunc('minute', now()) - interval '{age}'")


async def test_each_tick_inserts_one_run_whoever_leads(make_worker, connection):
    """Three workers, of which the leader is stopped again and again, and another takes its place."""
    await connection.execute(EVERY_SECOND)
    async with contextlib.AsyncExitStack() as stack:
        lives = [await begun(make_worker, stack) for _ in range(3)]
        for count in (2, 4, 6):
            await eventually(lambda count=count: has_runs(connection, count))
            leader = await eventually(lambda: next((one for one in lives if leads(one[0])), None))
            lives.remove(leader)
            await leader[1].aclose()
            lives.append(await begun(make_worker, stack))

    seen = [row["tick"] for row in await runs(connection)]
    assert len(seen) == len(set(seen)) >= 6
    assert await connection.fetchval("SELECT last_tick_at = $1 FROM notifyworker.schedules", utc(max(seen)))


async def begun(make_worker: Any, stack: contextlib.AsyncExitStack) -> tuple[Worker, contextlib.AsyncExitStack]:
    """A worker that has started, and what stops it."""
    worker = make_worker()
    worker.handler("tick")(nothing)
    own = await stack.enter_async_context(contextlib.AsyncExitStack())
    await own.enter_async_context(worker)
    return worker, own


async def nothing(_run: Any) -> None: ...


def leads(worker: Worker) -> bool:
    conductor = worker._conductor
    return conductor is not None and conductor.leader.mode != "follower"


async def has_runs(connection: asyncpg.Connection, count: int) -> bool:
    return len(await runs(connection)) >= count


async def test_two_who_both_believe_that_they_lead_fire_a_tick_once(dsn, connection):
    await late(connection, "0 s")
    both = [await connect(dsn, schema="notifyworker", purpose="test") for _ in range(2)]
    store = Store("notifyworker")
    (seen,) = await store.schedules_due(both[0], limit=10)
    now = datetime.now(UTC)

    fired = await asyncio.gather(
        *(store.schedule_fire(on, seen, seen["next_at"], now + timedelta(hours=1), [seen["next_at"]]) for on in both)
    )

    assert sorted(map(len, fired)) == [0, 1]
    assert len(await runs(connection)) == 1
    for on in both:
        await on.close()


@pytest.mark.parametrize(("missed", "count"), [("skip", 1), ("once", 1), ("all", 11)])
async def test_missed_ticks(make_worker, connection, missed, count):
    """The last tick is less than a minute old, and so not missed."""
    await late(connection, "10 min", missed=missed)
    worker = make_worker()
    worker.handler("another")(nothing)
    with structlog.testing.capture_logs() as logs:
        async with worker:
            await eventually(lambda: connection.fetchval("SELECT last_tick_at IS NOT NULL FROM notifyworker.schedules"))
    assert len(await runs(connection)) in {count, count + 1}  # a minute may have ended meanwhile
    assert any(entry["event"] == "schedule_missed" for entry in logs) == (missed != "all")


async def test_what_is_far_too_late_fires_nothing_and_is_due_again(make_worker, connection):
    await connection.execute("INSERT INTO notifyworker.schedules (name, cron, kind) VALUES ('s', '0 0 1 1 *', 'tick')")
    await connection.execute("UPDATE notifyworker.schedules SET next_at = '2020-01-01 00:00:00+00'")
    worker = make_worker()
    worker.handler("another")(nothing)
    async with worker:
        await eventually(lambda: connection.fetchval("SELECT next_at > now() FROM notifyworker.schedules"))
    assert await runs(connection) == []


async def test_a_schedule_is_heard_of_at_once_and_fires_what_it_says(make_worker, connection):
    worker = make_worker()
    worker.handler("another")(nothing)
    async with worker:
        await eventually(lambda: leads(worker))
        await connection.execute(
            "INSERT INTO notifyworker.schedules (name, cron, kind, payload, project_id, priority, headers)"
            " VALUES ('s', '* * * * * *', 'tick', '{\"n\": 1}', 'p', 7, '{\"own\": true}')"
        )
        await eventually(lambda: has_runs(connection, 1))
        await connection.execute("UPDATE notifyworker.schedules SET paused = true")
        done = len(await runs(connection))
        await connection.execute("UPDATE notifyworker.schedules SET paused = false, cron = '0 0 1 1 *'")
        await eventually(lambda: connection.fetchval("SELECT next_at > now() + interval '1 min' FROM notifyworker.schedules"))
        assert len(await runs(connection)) <= done + 1  # one may have been under way
    (first, *_) = await runs(connection)
    assert (first["kind"], first["project_id"], first["priority"], first["payload"]) == ("tick", "p", 7, '{"n": 1}')
    headers = await connection.fetchval("SELECT headers FROM notifyworker.all_runs LIMIT 1")
    assert json.loads(headers) == {"own": True, "schedule": "s", "tick": first["tick"]}


@pytest.mark.parametrize(
    ("change", "why"),
    [("cron = 'often'", "can't be read"), ("payload = to_jsonb(repeat('x', 1048576))", "payload has 1048578 bytes")],
)
async def test_a_faulty_schedule_is_told_holds_up_no_other_and_is_tried_again_once_it_is_changed(
    make_worker, connection, change, why
):
    await connection.execute(EVERY_SECOND.replace("'s'", "'good'"))
    await connection.execute(EVERY_SECOND)
    await connection.execute(f"UPDATE notifyworker.schedules SET {change} WHERE name = 's'")
    worker = make_worker()
    worker.handler("tick")(nothing)
    async with worker:
        await eventually(lambda: any("'s'" in reason for reason in worker._conductor.health()))
        assert why in await connection.fetchval("SELECT error FROM notifyworker.schedules WHERE name = 's'")
        before = len(await runs(connection))
        await eventually(lambda: has_runs(connection, before + 1))
        await connection.execute("UPDATE notifyworker.schedules SET cron = '* * * * * *', payload = '{}' WHERE name = 's'")
        fired = "SELECT EXISTS (SELECT FROM notifyworker.all_runs WHERE headers ->> 'schedule' = 's')"
        await eventually(lambda: connection.fetchval(fired))
        await eventually(lambda: worker._conductor.health() == [])


@pytest.mark.parametrize(
    ("columns", "values", "why"),
    [
        ("name", "''", "name_has_1_to_200_characters"),
        ("timezone", "'Mars/Olympus'", "Mars/Olympus"),
        ("missed", "'perhaps'", "missed_is_skip_once_or_all"),
        ("kind", "''", "kind_has_1_to_200_characters"),
        ("timeout", "'0 s'", "timeout_is_above_0"),
    ],
)
async def test_a_bad_row_is_refused_and_named(connection, columns, values, why):
    good = {"name": "'s'", "cron": "'* * * * *'", "kind": "'k'"} | {columns: values}
    with pytest.raises(asyncpg.PostgresError, match=why):
        await connection.execute(f"INSERT INTO notifyworker.schedules ({', '.join(good)}) VALUES ({', '.join(good.values())})")


async def test_a_look_that_fails_is_told_and_made_again(make_worker, connection):
    worker = make_worker()
    worker.handler("tick")(nothing)
    async with worker:
        await eventually(lambda: leads(worker))
        await connection.execute("ALTER TABLE notifyworker.schedules RENAME TO hidden")
        worker._conductor.scheduler.changed()
        await eventually(lambda: any("schedules could not be fired" in reason for reason in worker._conductor.health()))
        await connection.execute("ALTER TABLE notifyworker.hidden RENAME TO schedules")
        await eventually(lambda: worker._conductor.health() == [])
    assert issubclass(asyncpg.UndefinedTableError, DatabaseError)


# From outside.


async def test_from_python(dsn):
    async with Client(dsn) as client:
        await client.put_schedule("s", "0 3 * * *", "k", {"a": 1}, timezone="Europe/Berlin", priority=3, missed="once")
        (made,) = await client.schedules()
        assert (made["cron"], made["kind"], made["payload"], made["priority"], made["missed"]) == (
            "0 3 * * *",
            "k",
            {"a": 1},
            3,
            "once",
        )
        assert await client.pause_schedule("s") is True
        assert (await client.schedules("s"))[0]["paused"] is True
        assert await client.pause_schedule("none") is False
        for wrong, field in (
            ({"cron": "often"}, "cron"),
            ({"timezone": "Mars/Olympus"}, "timezone"),
            ({"kind": ""}, "kind"),
            ({"missed": "perhaps"}, "missed"),
            ({"priority": "high"}, "priority"),
            ({"colour": "red"}, "colour"),
        ):
            with pytest.raises(InvalidRun) as error:
                await client.put_schedule(**{"name": "s", "cron": "* * * * *", "kind": "k", **wrong})
            assert error.value.field == field
        assert await client.delete_schedule("s") is True
        assert await client.delete_schedule("s") is False


async def test_over_http(dsn, connection):
    worker = Worker(dsn, sidecar=True, port=0, poll_interval_s=60)
    worker.handler("k")(nothing)
    async with worker, aiohttp.ClientSession(str(worker.url)) as http:
        async with http.put("/schedules/nightly", json={"cron": "0 3 * * *", "kind": "k"}) as answer:
            assert (answer.status, (await answer.json())["timezone"]) == (200, "UTC")
        known = "SELECT next_at IS NOT NULL FROM notifyworker.schedules"
        await eventually(lambda: connection.fetchval(known))
        async with http.get("/schedules") as answer:
            (listed,) = (await answer.json())["schedules"]
            assert len(listed["next"]) == 5
        for body, field in (
            ({"kind": "k"}, "cron"),
            ({"cron": "* * * * *"}, "kind"),
            ({"cron": "x", "kind": "k"}, "cron"),
            ({"cron": "* * * * *", "kind": "k", "name": "n"}, "name"),
        ):
            async with http.put("/schedules/nightly", json=body) as answer:
                assert (answer.status, json.loads(await answer.text())["field"]) == (400, field)
        async with http.delete("/schedules/nightly") as answer:
            assert await answer.json() == {"name": "nightly", "deleted": True}
        for method in ("GET", "DELETE"):
            async with http.request(method, "/schedules/nightly") as answer:
                assert answer.status == 404


async def test_on_the_command_line(dsn):
    env = {"NOTIFYWORKER_DSN": dsn}
    shown = (await call("schedules", "put", "s", "0 3 * * *", "k", '{"a": 1}', "--timezone", "Europe/Berlin", env=env)).out
    assert re.search(r"s +0 3 \* \* \* +Europe/Berlin +k +default +- +not seen by a leader yet", shown)
    assert (await call("schedules", "pause", "s", "--json", env=env)).json()["schedules"][0]["paused"] is True
    assert "paused" in (await call("schedules", "list", env=env)).out
    assert (await call("schedules", "resume", "s", env=env)).code == 0
    assert (await call("schedules", "delete", "s", "--json", env=env)).json() == {"name": "s", "deleted": True}
    assert "no schedule" in await refused(1, "schedules", "delete", "s", env=env)
    assert "cron" in await refused(2, "schedules", "put", "s", "often", "k", env=env)
    assert "payload" in await refused(2, "schedules", "put", "s", "* * * * *", "k", "{", env=env)


async def test_the_pages_examples(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    text = PAGE.read_text()
    (sql,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for statement in sql.strip().split(";\n"):
        await connection.execute(statement)
    (shell,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in shell.splitlines():
        arguments = [one or two for one, two in re.findall(r"'([^']*)'|(\S+)", line)][1:]
        assert (await call(*arguments, env={"NOTIFYWORKER_DSN": dsn})).code == 0
    (python,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    page = types.ModuleType("schedules_page")
    exec(compile(python, str(PAGE), "exec"), page.__dict__)
    await page.main()
    assert await connection.fetchval("SELECT array_agg(name) FROM notifyworker.schedules") == ["report"]
    columns = await connection.fetch("SELECT column_name FROM information_schema.columns WHERE table_name = 'schedules'")
    missing = [row["column_name"] for row in columns if f"`{row['column_name']}`" not in text]
    assert missing == ["changed_at"]
