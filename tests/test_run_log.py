"""run.log: the last lines stay with the run, whatever became of it, and no secret stands in them."""

import asyncio
import json
import logging
import re
import types
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import structlog
from chaos.wire import Rule, statement
from servers import eventually
from test_cli import PASSWORD
from test_cli import call as command
from test_pauses import _Session
from test_steps import settled, take_from_its_worker

from notifyworker import Client, Retry, Run, Snooze, Worker
from notifyworker.run_log_store import NewLog, RunLogStore
from notifyworker.store import Store

PAGE = Path(__file__).parents[1] / "docs" / "run-log.md"
QUICKLY = Retry(max_attempts=3, base_s=0.01)


async def insert(db: asyncpg.Connection, kind: str = "a") -> UUID:
    return await db.fetchval("INSERT INTO notifyworker.runs (kind) VALUES ($1) RETURNING run_id", kind)


async def logged(db: asyncpg.Connection) -> list[dict[str, Any]]:
    rows = await db.fetch(
        "SELECT attempt, lease_token, lines, line_count, cut, is_whole FROM notifyworker.run_logs ORDER BY lease_token"
    )
    return [{**row, "lines": json.loads(row["lines"])} for row in rows]


def events(lease: dict[str, Any]) -> list[str]:
    return [line["event"] for line in lease["lines"]]


async def test_lines_of_each_attempt_stay_with_the_run(make_worker, connection):
    worker: Worker = make_worker()

    @worker.handler("a", retry=QUICKLY)
    async def handle(run: Run) -> None:
        run.log.info("begun %s", run.attempt, order=7, odd={1, 2})
        bound = run.log.bind(step="x")
        bound.warning("half", share=0.5)
        await bound.unbind("step").aerror("async")
        run.log.log(logging.CRITICAL, "number")
        if run.attempt == 1:
            try:
                raise ValueError("no \0 good")
            except ValueError:
                run.log.exception("failed")
                raise

    async with worker:
        run = await settled(connection, await insert(connection))

    first, second = await logged(connection)
    assert (run["attempt"], first["attempt"], second["attempt"], first["is_whole"], second["is_whole"]) == (2, 1, 2, True, True)
    assert events(first) == ["begun 1", "half", "async", "number", "failed"]
    assert [line["level"] for line in first["lines"]] == ["info", "warning", "error", "critical", "error"]
    begun, half, bare, _, failed = first["lines"]
    assert (begun["order"], begun["odd"], half["step"], half["share"], "step" in bare) == (7, [1, 2], "x", 0.5, False)
    assert failed["exception"] == "ValueError: no � good"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", begun["at"])


async def snoozes(run: Run) -> None:
    run.log.info("said")
    if run.lease_token == 1:
        raise Snooze(0.01)


async def in_its_transaction(run: Run) -> None:
    async with run.transaction():
        run.log.info("said")


async def fails(run: Run) -> None:
    run.log.info("said")
    raise ValueError("no")


def in_a_thread(run: Run) -> None:
    run.log.info("said")


@pytest.mark.parametrize(
    ("handler", "state", "leases"),
    [(snoozes, "completed", 2), (in_its_transaction, "completed", 1), (fails, "failed", 1), (in_a_thread, "completed", 1)],
)
async def test_however_it_ends(make_worker, connection, handler, state, leases):
    worker: Worker = make_worker()
    worker.handler("a", retry=Retry(max_attempts=1))(handler)
    async with worker:
        run = await settled(connection, await insert(connection))

    assert run["state"] == state
    assert [(events(lease), lease["is_whole"]) for lease in await logged(connection)] == [(["said"], True)] * leases


async def test_a_run_that_is_given_back_at_a_stop_keeps_what_it_said(make_worker, connection):
    worker: Worker = make_worker(drain_timeout_s=0)
    said = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        run.log.info("said")
        said.set()
        await asyncio.Event().wait()

    async with worker:
        await insert(connection)
        await said.wait()

    assert [(events(lease), lease["is_whole"]) for lease in await logged(connection)] == [(["said"], True)]
    assert await connection.fetchval("SELECT state FROM notifyworker.runs") == "pending"


async def test_the_last_lines_are_kept_and_what_is_not_is_told(make_worker, connection, dsn):
    worker: Worker = make_worker(run_log_lines=10)
    own = await asyncpg.connect(dsn)

    @worker.handler("a", retry=Retry(max_attempts=4, base_s=0.01))
    async def handle(run: Run) -> None:
        for number in range({1: 4, 2: 5, 3: 6, 4: 25}[run.attempt]):
            run.log.info(str(number), long="ä" * 3000 if number == 24 else None)
        if run.attempt == 3:  # 4 + 5 + 6: the first lease's are no longer among the last ten
            assert [lease["attempt"] for lease in await logged(own)] == [1, 2]
        if run.attempt < 4:
            raise ValueError("again")
        assert [lease["attempt"] for lease in await logged(own)] == [2, 3]

    async with worker:
        await settled(connection, await insert(connection))

    await own.close()
    (last,) = await logged(connection)
    assert (events(last), last["cut"], last["line_count"]) == ([f"{n}" for n in range(15, 25)], 15, 10)
    assert last["lines"][-1].keys() == {"at", "level", "event", "cut"}
    assert max(len(json.dumps(line)) for line in last["lines"]) < 2000


async def test_a_thousand_lines_are_one_write_and_a_run_without_lines_none(make_worker, connection):
    await connection.execute(
        """CREATE SEQUENCE public.writes;
           CREATE FUNCTION public.count() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
               $$ BEGIN PERFORM nextval('public.writes'); RETURN NULL; END $$;
           CREATE TRIGGER count AFTER INSERT ON notifyworker.run_logs FOR EACH STATEMENT EXECUTE FUNCTION public.count()"""
    )
    worker: Worker = make_worker()

    @worker.handler("loud")
    async def loud(run: Run) -> None:
        for number in range(1000):
            run.log.info("line", number=number)

    @worker.handler("silent")
    async def silent(run: Run) -> None: ...

    async with worker:
        for kind in ("silent", "loud", "silent"):
            await settled(connection, await insert(connection, kind))

    assert await connection.fetchval("SELECT nextval('public.writes')") == 2
    assert [(lease["line_count"], lease["cut"]) for lease in await logged(connection)] == [(200, 800)]


async def test_of_a_run_that_was_taken_over_it_is_told_what_is_lost(make_worker, connection, dsn):
    """Its worker has written what was said until its last heartbeat."""
    worker: Worker = make_worker(lease_s=4.5, heartbeat_interval_s=0.3)
    taken = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        run.log.info("said")
        if run.lease_token == 1:
            await taken.wait()
            run.log.info("not heard")
            await asyncio.Event().wait()

    async with worker, Client(dsn) as client:
        run_id = await insert(connection)
        await eventually(lambda: connection.fetchval("SELECT EXISTS (SELECT FROM notifyworker.run_logs)"))
        assert (await client.log(run_id))[0]["lost_after"] is None  # it goes on
        await take_from_its_worker(dsn)
        taken.set()
        await settled(connection, run_id)
        first, second = await client.log(run_id)

    assert (events(first), first["lost_after"]) == (["said"], first["written_at"])
    assert (events(second), second["lost_after"]) == (["said"], None)
    assert (await command("runs", "show", str(run_id), env={"NOTIFYWORKER_DSN": dsn})).out.count("is lost: its worker") == 1


@pytest.mark.parametrize("at", ["request", "answer"])
async def test_a_cut_connection_loses_no_line(make_proxied, connection, proxy, at):
    worker: Worker = make_proxied()

    @worker.handler("a", retry=QUICKLY)
    async def handle(run: Run) -> None:
        run.log.info("said")

    rule = await proxy.arm(Rule(statement("run_logs_put"), at, "cut", purpose="settle"))
    async with worker:
        run = await settled(connection, await insert(connection))

    assert rule.fired.is_set()
    assert (run["state"], run["attempt"]) == ("completed", 1)
    assert [(events(lease), lease["cut"]) for lease in await logged(connection)] == [(["said"], 0)]


async def test_what_is_refused_holds_up_no_settle(make_worker, connection):
    await connection.execute("ALTER TABLE notifyworker.run_logs ADD CONSTRAINT none CHECK (false)")
    worker: Worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        run.log.info("said")

    with structlog.testing.capture_logs() as logs:
        async with worker:
            run = await settled(connection, await insert(connection))

    assert (run["state"], run["attempt"]) == ("completed", 1)
    assert len([entry for entry in logs if entry["event"] == "run_log_not_written"]) == 1


async def test_no_secret_is_kept(make_worker, connection, dsn):
    worker: Worker = make_worker(token="sidecars-own", listen_dsn=dsn)
    told = f"to postgresql://u:{PASSWORD}@h/d"
    conductor_secrets = f"postgresql://u:{PASSWORD}@h/d"

    class Odd:
        def __repr__(self) -> str:
            return f"<Odd {conductor_secrets}>"

    @worker.handler("a")
    async def handle(run: Run) -> None:
        run.log.info(told, dsn=[conductor_secrets], odd=Odd(), nested={"a": {"api_key": PASSWORD}})
        run.log.info("mine", header="Bearer sidecars-own", Authorization=PASSWORD, lease_token=run.lease_token)
        try:
            raise ConnectionError(f"password={PASSWORD} refused")
        except ConnectionError:
            run.log.exception("failed")

    async with worker:
        await settled(connection, await insert(connection))

    (lease,) = await logged(connection)
    text = json.dumps(lease["lines"])
    assert PASSWORD not in text
    assert "sidecars-own" not in text
    to, mine, failed = lease["lines"]
    assert (to["event"], to["odd"], to["nested"]) == (
        "to postgresql://u:***@h/d",
        "<Odd postgresql://u:***@h/d>",
        {"a": {"api_key": "***"}},
    )
    assert (mine["header"], mine["Authorization"], mine["lease_token"]) == ("Bearer ***", "***", 1)
    assert failed["exception"] == "ConnectionError: password=*** refused"


async def test_a_write_that_comes_late_changes_nothing(make_worker, connection, handlers_own):
    worker: Worker = make_worker()
    store = RunLogStore(Store("notifyworker"))
    seen: list[Any] = []

    @worker.handler("a")
    async def handle(run: Run) -> None:
        conductor: Any = worker._conductor

        async def put(lines: str, count: int, *, is_whole: bool) -> None:
            new = NewLog(run.run_id, run.lease_token, lines, count, 0, is_whole)
            await store.run_logs_put(conductor._links["side"], conductor.lease_owner, [new], keep=10)
            seen.append((await logged(handlers_own))[0]["lines"])

        await put('["1"]', 1, is_whole=False)
        await put('["1", "2"]', 2, is_whole=False)
        await put('["1"]', 1, is_whole=False)
        await put('["1", "2"]', 2, is_whole=True)
        await put('["1", "2", "3"]', 3, is_whole=False)
        seen.append("done")

    async with worker:
        await insert(connection)
        await eventually(lambda: "done" in seen)

    assert [len(lines) for lines in seen[:-1]] == [1, 2, 2, 2, 2]


async def test_it_can_be_turned_off(make_worker, connection):
    worker: Worker = make_worker(run_log_lines=0)

    @worker.handler("a")
    async def handle(run: Run) -> None:
        run.log.info("said")

    with structlog.testing.capture_logs() as logs:
        async with worker:
            await settled(connection, await insert(connection))

    assert [entry["event"] for entry in logs if entry["event"] == "said"] == ["said"]
    assert await logged(connection) == []


async def test_what_the_level_hides_is_not_kept(make_worker, connection):
    quiet = structlog.wrap_logger(
        structlog.PrintLogger(), wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING), processors=[]
    )
    worker: Worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        kept = run.log
        kept._inner = quiet.bind()
        kept.info("hidden")
        kept._inner = structlog.get_logger().bind()
        kept.warning("shown")

    async with worker:
        await settled(connection, await insert(connection))

    assert [events(lease) for lease in await logged(connection)] == [["shown"]]


async def test_nothing_is_held_of_runs_that_have_ended(make_worker, connection):
    worker: Worker = make_worker()
    said = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        run.log.info("said")
        said.set()
        await asyncio.Event().wait()

    async with worker:
        run_id = await insert(connection)
        await said.wait()
        await connection.execute("SELECT notifyworker.cancel($1)", run_id)
        conductor: Any = worker._conductor
        await eventually(lambda: not conductor.logs._open)


async def test_it_goes_with_its_run(make_worker, connection):
    worker: Worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        run.log.info("said")

    async with worker:
        run_id = await insert(connection)
        await settled(connection, run_id)
    store, count = RunLogStore(Store("notifyworker")), "SELECT count(*) FROM notifyworker.run_logs"
    await connection.execute("UPDATE notifyworker.run_logs SET written_at = now() - interval '40 days'")
    assert (await store.run_logs_forget(connection, limit=10), await connection.fetchval(count)) == (0, 1)
    await connection.execute("UPDATE notifyworker.run_history SET finished_at = finished_at - interval '40 days'")
    async with worker:  # the leader
        await eventually(lambda: connection.fetchval("SELECT NOT EXISTS (SELECT FROM notifyworker.run_logs)"))
        run_id = await insert(connection)
        await settled(connection, run_id)
    await connection.execute("SELECT notifyworker.forget($1)", run_id)
    assert await connection.fetchval(count) == 0


async def test_the_pages_examples(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    text = PAGE.read_text()
    (python,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    page = types.ModuleType("log_page")
    exec(compile(python, str(PAGE), "exec"), page.__dict__)
    worker = Worker(dsn, sidecar=True, port=0)
    worker.handler("order.import")(page.import_orders)
    async with worker, _Session(str(worker.url)) as http:
        run_id = await connection.fetchval(
            "INSERT INTO notifyworker.runs (kind, payload) VALUES ('order.import', '{\"file\": \"a.csv\"}') RETURNING run_id"
        )
        await settled(connection, run_id)
        (shell,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        shown = (await command(*shell.replace("ID", str(run_id)).split()[1:], env={"NOTIFYWORKER_DSN": dsn})).out
        (lines,) = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for line in lines.splitlines():
            assert re.sub(r"\d{4}-\S+Z", "TIME", line) in re.sub(r"\d{4}-\S+Z", "TIME", shown)
        _, run = await http.get(f"/runs/{run_id}")
        assert [line["event"] for line in run["log"][0]["lines"]] == ["reading", "a line was skipped"]
        assert run["log"][0].keys() == {"attempt", "lease_token", "lines", "cut", "written_at", "lost_after"}
