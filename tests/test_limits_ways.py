"""Limits from SQL, Python, the command line and HTTP; what is shown of them and of who waits; the page's examples."""

import re
import types
from pathlib import Path

import aiohttp
import asyncpg
import pytest
from servers import eventually
from test_cli import call, refused
from test_concurrency import Ledger, insert, ledger  # noqa: F401 - a fixture
from test_doctor import one

from notifyworker import Client, InvalidRun
from notifyworker.doctor import Limits, Verdict

PAGE = Path(__file__).parents[1] / "docs" / "limits.md"
WRONG = [
    ({}, "max_running"),
    ({"kind": ""}, "kind"),
    ({"kind": "a", "max_running": -1}, "max_running"),
    ({"kind": "a", "max_running": 1.5}, "max_running"),
    ({"kind": "a", "max_running": 100_001}, "max_running"),
    ({"per": "key", "max_running": 0}, "max_running"),
    ({"per": "key", "max_running": 1001}, "max_running"),
    ({"per": "key", "kind": "a", "max_running": 1}, "kind"),
    ({"per": "project", "project_id": "p", "max_running": 1}, "project_id"),
    ({"per": "day", "max_running": 1}, "per"),
    ({"rate": 0}, "rate"),
    ({"rate": 1, "per_s": 0}, "per_s"),
    ({"rate": 1, "burst": 0}, "burst"),
    ({"max_running": 1, "burst": 1}, "burst"),
    ({"max_running": 1, "per_s": 1}, "per_s"),
]


async def test_from_python(dsn):
    async with Client(dsn) as client:
        await client.set_limit("a", "p", max_running=3)
        await client.set_limit("a", "p", rate=100, per_s=62.5)  # exactly this: no max_running any more
        await client.set_limit(per="key", max_running=2)
        everyone, one = await client.limits()
        assert (everyone["kind"], everyone["project_id"], everyone["per"], everyone["max_running"]) == (None, None, "key", 2)
        assert (everyone["rate"], everyone["per_s"], everyone["burst"], everyone["running"]) == (None, None, None, 0)
        assert (one["kind"], one["project_id"], one["per"], one["max_running"]) == ("a", "p", "all", None)
        assert (one["rate"], one["per_s"], one["burst"]) == (100, 62.5, 1)
        assert await client.remove_limit("a") is False  # not exactly that one
        assert await client.remove_limit("a", "p") is True
        for wrong, field in WRONG:
            with pytest.raises(InvalidRun) as told:
                await client.set_limit(**wrong)
            assert told.value.field == field
        with pytest.raises(InvalidRun):
            await client.remove_limit(per="day")
        assert len(await client.limits()) == 1


async def test_over_http_and_who_waits_for_whom(make_worker, ledger, connection, dsn):  # noqa: F811
    worker = make_worker(sidecar=True, port=0, reaper_interval_s=0.1)
    await connection.execute("UPDATE notifyworker.settings SET value = '0.1' WHERE name = 'reaper_interval_s'")
    worker.handler("a")(ledger.handle)
    async with worker, aiohttp.ClientSession(str(worker.url)) as http:
        async with http.post("/limits", json={"kind": "a", "max_running": 7, "rate": 1000}) as answer:
            assert (answer.status, await answer.json()) == (201, {"set": True})
        (first,) = await insert(connection, key="x", waits=True)
        await eventually(lambda: ledger.now["all",] == 1)
        (second,) = await insert(connection, key="x")
        await eventually(lambda: connection.fetchval("SELECT waits_for FROM notifyworker.runs WHERE run_id = $1", second))

        async with http.get("/limits") as answer:
            (limit,) = (await answer.json())["limits"]
        assert (limit["max_running"], limit["rate"], limit["burst"], limit["running"]) == (7, 1000, 1000, 1)
        async with http.get(f"/runs/{second}") as answer:
            run = await answer.json()
        assert (run["concurrency_key"], run["waits_for"], run["key_held_by"]) == ("x", "key", [str(first)])
        async with http.get("/runs") as answer:
            runs = (await answer.json())["runs"]
        assert [(run["waits_for"], run["key_held_by"]) for run in runs] == [("key", [str(first)]), (None, None)]
        env = {"NOTIFYWORKER_DSN": dsn}
        shown = (await call("runs", "show", str(second), env=env)).out
        assert re.search(rf"waits_for +key\n(?:.*\n)*?key_held_by +\[\"{first}\"\]", shown)
        assert (await call("runs", "list", "--json", env=env)).json()["runs"][0]["key_held_by"] == [str(first)]

        async def gauges() -> tuple[str, ...]:
            async with http.get("/metrics") as answer:
                return tuple(re.findall(r"^notifyworker_(?:places_taken|runs_waiting) (\S+)", await answer.text(), re.MULTILINE))

        async def are_seen() -> bool:
            return await gauges() == ("2.0", "1.0")  # the key, and the place of the limit

        await eventually(are_seen)
        for body, field in [*WRONG, ({"kind": "a", "max_running": 1, "for": 1}, "for")]:
            async with http.post("/limits", json=body) as answer:
                assert (answer.status, (await answer.json(content_type=None))["field"]) == (400, field), body
        for query, field in (("kind=", "kind"), ("per=day", "per"), ("all=1", "all"), ("per=key&kind=a", "kind")):
            async with http.delete(f"/limits?{query}") as answer:
                assert (answer.status, (await answer.json(content_type=None))["field"]) == (400, field), query
        for removed in (True, False):
            async with http.delete("/limits?kind=a") as answer:
                assert (answer.status, await answer.json()) == (200, {"removed": removed})
        ledger.go.set()


async def test_on_the_command_line(dsn):
    env = {"NOTIFYWORKER_DSN": dsn}
    shown = (await call("limits", "set", "--kind", "a", "--max-running", "3", "--rate", "5", "--per-s", "0.5", env=env)).out
    assert re.search(r"a +every project +all +0 +3 +5 in 0.5 s +10", shown)
    assert (await call("limits", "list", "--json", env=env)).json()["limits"][0]["max_running"] == 3
    assert "no such limit" in await refused(1, "limits", "remove", env=env)
    assert (await call("limits", "remove", "--kind", "a", "--json", env=env)).json() == {"limits": []}
    assert "max_running" in await refused(2, "limits", "set", "--kind", "a", env=env)
    assert "max_running" in await refused(2, "limits", "set", "--max-running", "-1", env=env)
    assert "kind" in await refused(2, "limits", "set", "--kind", "a", "--per", "key", "--max-running", "1", env=env)


async def test_the_database_says_the_same_of_what_cant_be(connection):
    for wrong, _field in WRONG:
        if "burst" in wrong or "per_s" in wrong or isinstance(wrong.get("max_running"), float) or wrong == {"kind": ""}:
            continue  # without a rate these say nothing, and an empty kind is every kind
        given = ", ".join(f"{name} => {value!r}" for name, value in wrong.items())
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(f"SELECT notifyworker.set_limit({given})")


async def test_the_doctor_tells_of_limits_of_0_and_of_who_waits_for_long(make_worker, ledger, connection, dsn):  # noqa: F811
    await connection.execute("SELECT notifyworker.set_limit('z', max_running => 0)")
    seen = await one(dsn, "limits")
    assert (seen.verdict, seen.seen) == (Verdict.NOTE, "'z' of every project is limited to 0 at once: none is executed")
    await connection.execute("SELECT notifyworker.remove_limit('z')")
    assert (await one(dsn, "limits")).verdict is Verdict.OK
    worker = make_worker()
    worker.handler("a")(ledger.handle)
    async with worker:
        (first,) = await insert(connection, key="x", waits=True)
        await eventually(lambda: ledger.now["all",] == 1)
        await insert(connection, key="x")
        await eventually(lambda: connection.fetchval("SELECT count(*) = 1 FROM notifyworker.runs WHERE waits_for = 'key'"))
        assert (await one(dsn, "limits")).verdict is Verdict.OK
        held = await one(dsn, "limits", limits=Limits(key_wait_s=0))
        assert (held.verdict, held.seen.endswith(f"; run {first} holds it")) == (Verdict.NOTE, True)
        await connection.execute("UPDATE notifyworker.places SET lingers = true, lease_token = 1, lease_owner = 'w9'")
        lingers = await one(dsn, "limits", limits=Limits(key_wait_s=0))
        assert (lingers.verdict, "its handler on w9 still goes on" in lingers.seen) == (Verdict.WARNING, True)
        ledger.go.set()
    await connection.execute("DELETE FROM notifyworker.places; UPDATE notifyworker.runs SET waits_for = 'key'")
    free = await one(dsn, "limits", limits=Limits(key_wait_s=0))
    assert (free.verdict, "which nobody holds" in free.seen) == (Verdict.WARNING, True)


async def test_the_pages_examples(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    text = PAGE.read_text()
    (sql,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for statement in re.sub(r" +--.*", "", sql).strip().split(";\n"):
        await connection.execute(statement)
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.limits") == 5
    await connection.execute("DELETE FROM notifyworker.limits")
    (shell,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in shell.splitlines():
        assert (await call(*line.split()[1:], env={"NOTIFYWORKER_DSN": dsn})).code == 0
    (python,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    page = types.ModuleType("limits_page")
    exec(compile(python, str(PAGE), "exec"), page.__dict__)
    await page.main()
    keys = await connection.fetch("SELECT concurrency_key FROM notifyworker.runs")
    assert [row["concurrency_key"] for row in keys] == ["customer-42"] * 3
