"""The doctor: each fault is really there and is found, with what mends it; and where all is fine it says so."""

import asyncio
import contextlib
import re
import signal
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from servers import Cluster, as_role, eventually
from test_cli import NOWHERE, call, refused

from notifyworker import Run, Worker
from notifyworker.database import Link, connect
from notifyworker.doctor import EXAMINATIONS, Finding, Limits, Verdict, drift, examine, worst
from notifyworker.doctor.finding import Patient
from notifyworker.migrate import migrate, newest
from notifyworker.settings import Settings
from notifyworker.store import Store

OK, NOTE, WARNING, FAILING = Verdict
NOT_SQL = "If you made it"


async def findings(
    dsn: str, *, limits: Limits | None = None, clock: Any = time.time, **settings: Any
) -> dict[str, list[Finding]]:
    """All findings by name; each examination has said something."""
    found = await examine(Settings.load(command_line={"dsn": dsn, **settings}), limits=limits, clock=clock)
    named: dict[str, list[Finding]] = {}
    for finding in found:
        named.setdefault(finding.name, []).append(finding)
    return named


async def one(dsn: str, name: str, **options: Any) -> Finding:
    (finding,) = (await findings(dsn, **options))[name]
    return finding


@contextlib.asynccontextmanager
async def connected(dsn: str, **options: Any) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn, **options)
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def login(dsn: str, *grants: str) -> AsyncIterator[str]:
    """The DSN of a login of its own, member of these roles."""
    name = f"nw_doctor_{time.monotonic_ns()}"
    async with connected(dsn) as conn:
        await conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'geheim'")
        for grant in grants:
            await conn.execute(f"GRANT {grant} TO {name}")
        try:
            yield as_role(dsn, name, "geheim")
        finally:
            await conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def a_worker_row(conn: asyncpg.Connection, **columns: Any) -> None:
    values = {
        "lease_owner": "w1", "host": "h", "pid": 1, "version": "1", "kinds": ["a"], "project_ids": None, "concurrency": 10,
        "running": 0, "state": "running", "shadow": "honour", "presence": False, "presumed_dead_s": 10.0, "lease_s": 60.0,
        "heartbeat_interval_s": 15.0, **columns,
    }  # fmt: skip
    names, places = ", ".join(values), ", ".join(f"${n}" for n in range(1, len(values) + 1))
    await conn.execute(f"INSERT INTO notifyworker.workers ({names}) VALUES ({places})", *values.values())


async def test_all_is_fine(any_dsn):
    worker = Worker(any_dsn, poll_interval_s=60)

    @worker.handler("a")
    async def handle(run: Run, payload: dict) -> None: ...

    async def fine() -> bool:
        found = await findings(any_dsn)
        assert tuple(found) == EXAMINATIONS
        return all(finding.verdict is OK for several in found.values() for finding in several)

    async with worker:
        await eventually(fine)


async def test_a_database_that_is_not_reached_is_a_finding_without_a_password():
    finding = await one("postgresql://u:geheim@127.0.0.1:1/d", "connection")
    assert finding.verdict is FAILING
    assert "can't connect" in finding.seen
    assert "geheim" not in str(finding)


async def test_the_schema_is_absent_older_and_newer(empty_dsn):
    found = await findings(empty_dsn)
    assert found["schema"] == [Finding("schema", FAILING, "notifyworker is not there", "notifyworker migrate")]
    assert "drift" not in found
    await migrate(empty_dsn, "notifyworker")
    async with connected(empty_dsn) as conn:
        await conn.execute("INSERT INTO notifyworker.migrations VALUES (9999, 'future')")
        newer = await findings(empty_dsn)
        assert (newer["schema"][0].verdict, newer["schema"][0].todo) == (FAILING, "Install a newer notifyworker.")
        assert newer["drift"][0].verdict is NOTE
        await conn.execute("DELETE FROM notifyworker.migrations WHERE version >= $1", newest())
        older = await one(empty_dsn, "schema")
        assert (older.verdict, older.todo) == (FAILING, "notifyworker migrate")


# Drift. Each fault is made, found, and mended by the statements that the findings carry.

FAULTS = {
    "DROP TRIGGER wake ON notifyworker.runs": (FAILING, "missing: trigger runs.wake"),
    "CREATE OR REPLACE FUNCTION notifyworker.wake() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'": (
        WARNING, "different: function wake()"),
    "DROP FUNCTION notifyworker.forget": (FAILING, "missing: function forget(run_id uuid)"),
    "ALTER TABLE notifyworker.reaper DROP COLUMN mode": (FAILING, "missing: column reaper.mode"),
    "ALTER TABLE notifyworker.workers ALTER COLUMN pid TYPE bigint": (
        WARNING, "different: column workers.pid is 'bigint', made as 'integer'"),
    "ALTER TABLE notifyworker.runs ALTER COLUMN payload DROP DEFAULT": (FAILING, "missing: default runs.payload"),
    "ALTER TABLE notifyworker.runs ALTER COLUMN run_id DROP DEFAULT": (FAILING, "missing: default runs.run_id"),
    "ALTER TABLE notifyworker.runs ALTER COLUMN payload DROP NOT NULL": (WARNING, "missing: not null runs.payload"),
    "ALTER TABLE notifyworker.runs ALTER COLUMN priority SET DEFAULT 5": (
        WARNING, "different: default runs.priority is '5', made as '0'"),
    "ALTER TABLE notifyworker.runs DROP CONSTRAINT lease_is_held_while_running": (
        FAILING, "missing: constraint runs.lease_is_held_while_running"),
    "ALTER TABLE notifyworker.reaps DROP CONSTRAINT reaps_pkey": (FAILING, "missing: constraint reaps.reaps_pkey"),
    "ALTER TABLE notifyworker.runs DROP CONSTRAINT max_attempts_is_at_least_1, "
    "ADD CONSTRAINT max_attempts_is_at_least_1 CHECK (max_attempts >= 7)": (
        WARNING, "different: constraint runs.max_attempts_is_at_least_1"),
    "DROP INDEX notifyworker.runs_ready": (WARNING, "missing: index runs_ready"),
    "DROP INDEX notifyworker.runs_idempotency_key": (FAILING, "missing: unique index runs_idempotency_key"),
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'notifyworker.runs_lease'::regclass": (
        WARNING, "the index runs_lease is invalid"),
    "DROP VIEW notifyworker.all_runs": (FAILING, "missing: view all_runs"),
    "ALTER TABLE notifyworker.runs RESET (vacuum_truncate)": (NOTE, "different: storage runs"),
    "REVOKE SELECT ON notifyworker.settings FROM notifyworker_worker": (
        WARNING, "missing: grant SELECT on table settings to notifyworker_worker"),
    "GRANT EXECUTE ON FUNCTION notifyworker.cancel TO PUBLIC": (
        WARNING, "not from a migration: grant EXECUTE on function cancel(run_id uuid) to public"),
    "UPDATE notifyworker.settings SET value = '777' WHERE name = 'max_payload_bytes'": (
        WARNING, "different: trigger runs.guard"),
}  # fmt: skip


@contextlib.asynccontextmanager
async def patient_of(dsn: str, schema: str = "notifyworker") -> AsyncIterator[Patient]:
    link = Link(partial(connect, dsn, schema=schema, purpose="doctor"))
    settings = Settings.load(command_line={"dsn": dsn, "schema": schema})
    try:
        yield Patient(settings=settings, store=Store(schema), on=link, limits=Limits(), clock=time.time, version=newest())
    finally:
        link.close()


async def test_every_drift_is_found_and_mended_by_its_own_statement(any_dsn, monkeypatch):
    monkeypatch.setattr(drift, "_MOST", 1000)
    async with patient_of(any_dsn) as patient, connected(any_dsn) as conn:
        assert [f.verdict for f in await drift.drift(patient)] == [OK]
        for fault in FAULTS:
            await conn.execute(fault)
        found = await drift.drift(patient)
        for fault, (verdict, seen) in FAULTS.items():
            assert [f.verdict for f in found if f.seen.startswith(seen)] == [verdict], (fault, found)
        assert len(found) == len(FAULTS)
        for _ in range(3):  # what was made again has no grants yet, which is the next finding
            for finding in found:
                for statement in [finding.todo] if "FUNCTION" in finding.todo else finding.todo.split("; "):
                    await conn.execute(statement)
            found = await drift.drift(patient)
            assert "public" not in str(found)  # a function that was made again is not everybody's for a moment longer
            if found[0].verdict is OK:
                break
        assert [f.verdict for f in found] == [OK], found


async def test_what_is_not_ours_and_what_is_gone_as_a_whole_are_one_finding_each(dsn, connection):
    await connection.execute("CREATE TABLE notifyworker.mine (a int PRIMARY KEY, b text DEFAULT 'x')")
    await connection.execute("CREATE INDEX mine_b ON notifyworker.mine (b); CREATE INDEX extra ON notifyworker.runs (created_at)")
    await connection.execute("DROP TABLE notifyworker.reaps")
    async with patient_of(dsn) as patient:
        found = await drift.drift(patient)
    assert {f.seen: f.verdict for f in found} == {
        "missing: table reaps": FAILING,
        "not from a migration: table mine": NOTE,
        "not from a migration: index extra": NOTE,
    }


@pytest.mark.parametrize("schema", ["order", "run"])
async def test_a_schema_of_any_name_is_compared(any_empty_dsn, schema):
    await migrate(any_empty_dsn, schema)
    async with patient_of(any_empty_dsn, schema) as patient, connected(any_empty_dsn) as conn:
        assert [f.verdict for f in await drift.drift(patient)] == [OK]
        await conn.execute(f'DROP TRIGGER wake ON "{schema}".runs')
        (finding,) = await drift.drift(patient)
        await conn.execute(finding.todo)
        assert [f.verdict for f in await drift.drift(patient)] == [OK]
        await conn.execute(f'SELECT "{schema}".separate_projects()')
        assert [f.verdict for f in await drift.drift(patient)] == [OK]
        await conn.execute(f'DROP POLICY own_projects ON "{schema}".runs')
        assert [f.seen for f in await drift.drift(patient)] == ["missing: policy runs.own_projects"]


async def test_nothing_is_left_of_the_copy(dsn, connection):
    async with patient_of(dsn) as patient:
        assert (await drift.drift(patient))[0].verdict is OK
    left = "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'nwdoctor%') + (SELECT count(*) FROM pg_roles WHERE rolname LIKE 'nwdoctor%')"
    assert await connection.fetchval(left) == 0


async def test_without_the_right_to_copy_what_is_wrong_in_itself_is_found_and_an_admin_dsn_compares(dsn, connection):
    await connection.execute("DROP TRIGGER guard ON notifyworker.runs")
    await connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'notifyworker.runs_lease'::regclass")
    async with login(dsn, "notifyworker_worker") as worker:
        invalid, not_seen = (await findings(worker))["drift"]
        assert (invalid.verdict, invalid.todo) == (WARNING, "REINDEX INDEX CONCURRENTLY notifyworker.runs_lease;")
        assert (not_seen.verdict, not_seen.seen[:9]) == (NOTE, "not seen:")
        assert "--admin-dsn" in not_seen.todo
        seen = [f.seen for f in (await findings(worker, admin_dsn=dsn))["drift"]]
    assert "missing: trigger runs.guard" in seen


# Logins.


@pytest.mark.parametrize("role", ["producer", "observer", "operator", "worker"])
async def test_what_a_login_may_not_see_is_no_failure(any_dsn, role):
    async with login(any_dsn, f"notifyworker_{role}") as restricted:
        found = await findings(restricted)
    all_of_them = [finding for several in found.values() for finding in several]
    assert worst(all_of_them) in {OK, NOTE}
    assert found["privileges"][0].verdict is (OK if role == "worker" else NOTE)
    if role == "producer":
        assert found["schema"][0].seen.startswith("not seen")
        assert found["leader"][0].seen.startswith("not seen")
    if role == "worker":
        assert found["vacuum"][0].verdict is (OK if "18." in found["connection"][0].seen else NOTE)


async def test_a_stranger_learns_that_it_is_one(dsn):
    async with login(dsn) as stranger:
        found = await findings(stranger)
    assert worst([f for several in found.values() for f in several]) is NOTE
    assert all(finding.seen for several in found.values() for finding in several)


async def test_what_a_role_is_given_by_the_server(dsn, connection):
    async with login(dsn, "notifyworker_worker") as worker:
        name = worker.split("//")[1].split(":")[0]
        for setting in ("transaction_timeout = '20s'", "statement_timeout = '9s'", "default_transaction_read_only = on"):
            await connection.execute(f"ALTER ROLE {name} SET {setting}")
        read_only, transaction, others = (await findings(worker))["session"]
        assert (read_only.verdict, transaction.verdict, others.verdict) == (FAILING, WARNING, NOTE)
        assert "statement_timeout 9 s" in others.seen
        for finding in (read_only, transaction):
            await connection.execute(finding.todo)
        assert [f.verdict for f in (await findings(worker))["session"]] == [NOTE]
        await connection.execute(f"ALTER ROLE {name} RESET ALL; ALTER ROLE {name} CONNECTION LIMIT 4")
        limited = (await findings(worker))["connections"]
        assert [(f.verdict, "of this login" in f.seen) for f in limited] == [(WARNING, True)]


async def test_triggers_that_do_not_fire_for_this_login(dsn, connection):
    name = dsn.split("//")[1].split("@")[0].split(":")[0]
    database = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER ROLE {name} IN DATABASE {database} SET session_replication_role = replica")
    (finding,) = (await findings(dsn))["session"]
    assert finding.verdict is FAILING
    assert "session_replication_role" in finding.todo


async def test_roles_that_are_missing(empty_dsn):
    schema = f"nw_{time.monotonic_ns()}"
    await migrate(empty_dsn, schema)
    async with connected(empty_dsn) as conn:
        await conn.execute(f"DROP OWNED BY {schema}_worker; DROP ROLE {schema}_worker")
        try:
            missing, _ok = (await findings(empty_dsn, schema=schema))["privileges"]
            assert (missing.verdict, missing.seen) == (WARNING, f"roles are missing: {schema}_worker")
            await conn.execute(missing.todo)
            found = await findings(empty_dsn, schema=schema)
            assert [found[name][0].verdict for name in ("privileges", "drift")] == [OK, OK]
        finally:
            for role in ("producer", "worker", "operator", "observer"):
                await conn.execute(f"DROP OWNED BY {schema}_{role}; DROP ROLE {schema}_{role}")


async def test_a_login_that_sees_its_own_projects_alone(dsn, connection):
    await connection.execute("SELECT notifyworker.separate_projects()")
    async with login(dsn, "notifyworker_operator") as operator:
        found = await findings(operator)
    assert (found["privileges"][0].verdict, "its own projects alone" in found["privileges"][0].seen) == (NOTE, True)
    assert (await one(dsn, "drift")).verdict is OK


async def test_counts_that_are_switched_off(dsn, connection):
    database = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {database} SET track_counts = off")
    assert "track_counts is off" in (await one(dsn, "server")).seen


# Waking.


async def test_a_trigger_that_is_disabled(dsn, connection):
    await connection.execute("ALTER TABLE notifyworker.runs DISABLE TRIGGER wake")
    finding = await one(dsn, "triggers")
    assert (finding.verdict, "wake nobody" in finding.seen) == (FAILING, True)
    await connection.execute(finding.todo)
    assert (await one(dsn, "triggers")).verdict is OK


async def test_a_notification_that_is_not_heard(dsn, empty_dsn):
    finding = await one(dsn, "notify", listen_dsn=empty_dsn)
    assert finding.verdict is FAILING
    assert "is not heard" in finding.seen


async def test_clocks_that_differ(dsn):
    for off_s, verdict in ((0, OK), (10, NOTE), (-10, NOTE), (300, WARNING), (-7200, WARNING)):
        finding = await one(dsn, "clock", clock=lambda off_s=off_s: time.time() + off_s)
        assert finding.verdict is verdict, finding
        if off_s:
            assert ("behind" if off_s > 0 else "ahead of") in finding.seen


# The fleet.


async def test_nobody_leads_and_the_reaper_is_overdue(dsn, connection):
    await a_worker_row(connection, presence=True)
    await connection.execute("UPDATE notifyworker.workers SET started_at = now() - interval '1 h'")
    await connection.execute("UPDATE notifyworker.reaper SET last_pass_at = now() - interval '50 min'")
    overdue, nobody = (await findings(dsn))["leader"]
    assert (overdue.verdict, "passed 50 min ago" in overdue.seen) == (FAILING, True)
    assert (nobody.verdict, "nobody leads" in nobody.seen) == (WARNING, True)
    await connection.execute(
        "UPDATE notifyworker.workers SET presence = false; UPDATE notifyworker.reaper SET last_pass_at = now()"
    )
    (behind_a_pooler,) = (await findings(dsn))["leader"]
    assert behind_a_pooler.verdict is NOTE


async def test_workers_that_are_silent_or_absent(dsn, connection):
    await a_worker_row(connection, lease_owner="silent")
    await a_worker_row(connection, lease_owner="absent", presence=True)
    await connection.execute(
        "UPDATE notifyworker.workers SET heartbeat_at = now() - interval '9 min' WHERE lease_owner = 'silent'"
    )
    silent, absent = (await findings(dsn))["workers"]
    assert (silent.verdict, "9 min old" in silent.seen) == (WARNING, True)
    assert (absent.verdict, "session is gone" in absent.seen) == (WARNING, True)


async def test_kinds_that_nobody_serves(dsn, connection):
    await a_worker_row(connection, kinds=["a", "b"], project_ids=["p"])
    insert = "INSERT INTO notifyworker.runs (kind, project_id, run_at) VALUES ($1, $2, now() + $3::text::interval)"
    for kind, project, due in (("a", "p", "-1 h"), ("a", "q", "-20 min"), ("c", "p", "-1 min"), ("d", "p", "1 h")):
        await connection.execute(insert, kind, project, due)
    first, second = (await findings(dsn))["kinds"]
    assert first.seen == "'a' of project q is ready, the oldest for 20 min, and no worker serves it"
    assert second.seen.startswith("'c' of project p")
    await connection.execute("UPDATE notifyworker.workers SET kinds = '{a,c}', project_ids = NULL")
    assert (await one(dsn, "kinds")).verdict is OK
    await connection.execute("SELECT notifyworker.pause(kind => 'c')")
    paused = await one(dsn, "kinds")
    assert (paused.verdict, paused.seen) == (NOTE, "'c' of every project is paused until it is resumed")


async def test_a_setting_that_is_not_the_fleets(dsn, monkeypatch):
    assert (await one(dsn, "settings")).verdict is OK
    monkeypatch.setenv("NOTIFYWORKER_HISTORY_RETENTION_DAYS", "7")
    finding = await one(dsn, "settings")
    assert finding.verdict is WARNING
    assert finding.seen == "history_retention_days is 7 here, but 30 for the fleet, which holds"
    assert "notifyworker config set history_retention_days 7" in finding.todo


async def test_a_database_with_hardly_a_connection_left(dsn, connection):
    database = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {database} CONNECTION LIMIT 20")
    await a_worker_row(connection)
    await a_worker_row(connection, lease_owner="w2")
    note = await one(dsn, "connections")
    assert (note.verdict, "2 workers may want 38 connections at once, 20 are there" in note.seen) == (NOTE, True)
    await connection.execute(f"ALTER DATABASE {database} CONNECTION LIMIT 4")
    assert (await one(dsn, "connections")).verdict is WARNING


# The tables.


async def test_the_dead_in_the_live_table(dsn, connection):
    await connection.execute("ALTER TABLE notifyworker.runs SET (autovacuum_enabled = off)")
    async with connected(dsn) as other:  # its end tells the statistics
        await other.execute("INSERT INTO notifyworker.runs (kind) SELECT 'a' FROM generate_series(1, 3000)")
        await other.execute("DELETE FROM notifyworker.runs")

    async def bloated() -> Finding | None:
        found = await findings(dsn, limits=Limits(dead_rows=2000))
        assert found["vacuum"][0].verdict is WARNING
        return found["bloat"][0] if found["bloat"][0].verdict is WARNING else None

    assert "3,000 dead rows" in (await eventually(bloated)).seen
    await connection.execute("VACUUM notifyworker.runs; ")

    async def roomy() -> bool:
        return (await one(dsn, "bloat", limits=Limits(dead_rows=2000, roomy_bytes=100_000))).verdict is NOTE

    await eventually(roomy)
    assert (await one(dsn, "bloat")).verdict is OK


async def test_who_holds_the_horizon(any_dsn):
    secret = "a-secret-in-a-statement"
    async with (
        connected(any_dsn, server_settings={"application_name": "a report"}) as holder,
        login(any_dsn, "notifyworker_worker") as plain,
    ):
        await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await holder.execute(f"SELECT '{secret}'")
        pid = await holder.fetchval("SELECT pg_backend_pid()")
        await holder.execute(f"SELECT '{secret}'")
        assert (await one(any_dsn, "horizon")).verdict is OK
        await asyncio.sleep(0.01)
        finding = await one(any_dsn, "horizon", limits=Limits(old_transaction_s=0.01))
        assert finding.verdict is WARNING
        assert f"pid {pid} (" in finding.seen
        assert "a report" in finding.seen
        assert "idle in transaction" in finding.seen
        assert secret not in str(finding)
        # A plain login sees no time, but how many transactions ago.
        hidden = await one(plain, "horizon")
        assert (hidden.verdict, "not seen: how old 1" in hidden.seen) == (OK, True)
        seen = await one(plain, "horizon", limits=Limits(old_transaction_ids=0))
        assert (seen.verdict, f"pid {pid} (" in seen.seen, "state not seen" in seen.seen) == (WARNING, True, True)
        async with connected(any_dsn) as conn:
            await conn.execute(finding.todo.partition("or: ")[2])

            async def is_over() -> bool:
                return (await one(any_dsn, "horizon", limits=Limits(old_transaction_s=0.01))).verdict is OK

            await eventually(is_over)  # the server ends it a moment later


async def test_partitions_that_are_missing_overdue_and_defaulted(dsn, connection):
    days = await connection.fetch(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'notifyworker.run_history'::regclass AND c.relname ~ '\\d{8}$' ORDER BY 1"
    )
    for row in days[2:]:
        await connection.execute(f"DROP TABLE notifyworker.{row['relname']}")
    await connection.execute(
        "CREATE TABLE notifyworker.run_history_20200101 PARTITION OF notifyworker.run_history FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00')"
    )
    async with connected(dsn) as other:
        await other.execute("INSERT INTO notifyworker.runs (kind) VALUES ('a')")
        await other.execute("SELECT notifyworker.cancel(run_id) FROM notifyworker.runs")
        await other.execute("UPDATE notifyworker.run_history SET finished_at = '2020-02-02'")

    async def told() -> list[Finding] | None:
        found = (await findings(dsn))["partitions"]
        return found if len(found) == 3 else None

    few, overdue, default = await eventually(told)
    assert (few.verdict, "made for 2 days" in few.seen) == (WARNING, True)
    assert (overdue.verdict, overdue.todo) == (WARNING, "notifyworker prune")
    assert default.verdict is NOTE


# It never hangs, and holds up nobody.


async def test_it_waits_for_no_lock(dsn, connection):
    limits = Limits(whole_s=8, examination_s=3, statement_s=0.25)
    async with connected(dsn) as other, other.transaction():
        await other.execute("LOCK TABLE notifyworker.runs, notifyworker.workers, notifyworker.settings IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(30):
            found = await findings(dsn, limits=limits)
    assert tuple(found) == EXAMINATIONS
    assert [f.seen[:9] for f in found["workers"]] == ["not seen:"]
    assert found["connection"][0].verdict is OK


# What a server of its own is needed for.

CROOKED = """
autovacuum = off
max_prepared_transactions = 5
max_connections = 25
max_notify_queue_pages = 64
"""


async def _fill_queue(conn: asyncpg.Connection, share: float) -> None:
    while await conn.fetchval("SELECT pg_notification_queue_usage()") < share:
        await conn.execute("SELECT pg_notify('something', repeat('x', 7000))")


async def test_a_crooked_server():
    async with Cluster(conf=CROOKED) as cluster, connected(cluster.dsn) as conn:
        await migrate(cluster.dsn, "notifyworker")
        await conn.execute("SET synchronous_commit = local")
        await conn.execute("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (one, two)'")
        await conn.execute("SELECT pg_reload_conf()")
        await eventually(lambda: conn.fetchval("SELECT current_setting('synchronous_standby_names') <> ''"))
        await conn.execute("BEGIN; INSERT INTO notifyworker.runs (kind) VALUES ('a'); ROLLBACK")
        await conn.execute("BEGIN; CREATE TABLE public.t (a int); PREPARE TRANSACTION 'for''gotten'")
        async with connected(cluster.dsn) as listener:
            await listener.execute("BEGIN; LISTEN something")
            await listener.execute("COMMIT")
            await listener.execute("BEGIN")
            pid = await listener.fetchval("SELECT pg_backend_pid()")
            await _fill_queue(conn, 0.25)
            filling = await findings(cluster.dsn, limits=Limits(old_transaction_s=0.0))
            await _fill_queue(conn, 0.5)
            full = await one(cluster.dsn, "queue")
            await listener.execute("COMMIT")
        assert {f.seen.partition(":")[0].partition(" is ")[0] for f in filling["server"]} == {
            "autovacuum",
            "max_notify_queue_pages",
        }
        assert [(f.verdict, "none is there" in f.seen) for f in filling["standbys"]] == [(FAILING, True)]
        assert [f.verdict for f in filling["queue"]] == [WARNING]
        assert (full.verdict, f"pid {pid} (" in full.seen) == (FAILING, True)
        (prepared,) = [f for f in filling["horizon"] if "prepared" in f.seen]
        await conn.execute(prepared.todo.partition("or ")[2])
        for finding in (*filling["standbys"], filling["server"][0]):
            for statement in (
                finding.todo.partition("or: ")[2].split("; ") if "or: " in finding.todo else finding.todo.split("; ")
            ):
                await conn.execute(statement)

        async def mended() -> bool:
            found = await findings(cluster.dsn)
            return [found[name][0].verdict for name in ("standbys", "horizon", "queue")] == [OK, OK, OK]

        await eventually(mended)
        idle = [await asyncpg.connect(cluster.dsn) for _ in range(16)]
        assert (await one(cluster.dsn, "connections")).verdict is WARNING
        for each in idle:
            await each.close()
        await cluster.signal(signal.SIGSTOP)
        frozen = await one(cluster.dsn, "connection")
        assert (frozen.verdict, "does not answer" in frozen.seen) == (FAILING, True)


async def test_a_standby_and_the_slot_that_it_leaves_behind():
    async with Cluster() as primary:
        await migrate(primary.dsn, "notifyworker")
        async with connected(primary.dsn) as conn:
            await conn.execute("SELECT pg_create_physical_replication_slot('left_behind')")
            follows = "hot_standby_feedback = on\nwal_receiver_status_interval = 1\nprimary_slot_name = 'left_behind'"
            async with Cluster(standby_of=primary, conf=follows) as standby:
                slot = "SELECT xmin FROM pg_replication_slots WHERE xmin IS NOT NULL"
                await eventually(lambda: conn.fetchval(slot))
                assert (await one(primary.dsn, "horizon")).verdict is OK
                await conn.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                await conn.execute("SELECT pg_reload_conf()")
                await eventually(lambda: conn.fetchval("SELECT sync_state = 'sync' FROM pg_stat_replication"))
                assert (await one(primary.dsn, "standbys")).verdict is OK
                async with login(primary.dsn, "notifyworker_worker") as plain:
                    not_seen = await one(plain, "standbys")
                assert (not_seen.verdict, "not seen" in not_seen.seen) == (NOTE, True)
                await conn.execute("ALTER SYSTEM RESET synchronous_standby_names")
                await conn.execute("SELECT pg_reload_conf()")
                await eventually(lambda: conn.fetchval("SELECT current_setting('synchronous_standby_names') = ''"))
                found = await findings(standby.dsn)
                assert (found["connection"][0].verdict, "a standby" in found["connection"][0].seen) == (FAILING, True)
                assert found["drift"][0].verdict is NOTE
                await standby.stop("immediate")

                async def left() -> Finding | None:
                    finding = await one(primary.dsn, "horizon")
                    return finding if finding.verdict is WARNING else None

                finding = await eventually(left)
                assert "'left_behind'" in finding.seen
                await conn.execute(finding.todo.partition("for good: ")[2])
                assert (await one(primary.dsn, "horizon")).verdict is OK


# As a command.

EXAMPLE = (Path(__file__).parents[1] / "docs" / "doctor.md").read_text()


async def test_the_command_tells_in_text_in_json_and_by_its_exit_code(dsn, connection):
    env = {"NOTIFYWORKER_DSN": dsn}
    fine = await call("doctor", env=env)
    assert fine.code == 0
    assert fine.out.endswith("\n0 failing, 0 warnings, 2 notes, 19 ok\n")
    await connection.execute("INSERT INTO notifyworker.runs (kind) VALUES (E'a\\x1b[2J')")
    warned = await call("doctor", env=env)
    assert (warned.code, "\x1b" in warned.out) == (0, False)
    assert "0 failing, 1 warning," in warned.out
    await connection.execute("ALTER TABLE notifyworker.runs DISABLE TRIGGER wake")
    assert (await call("doctor", env=env)).code == 1
    told = await call("doctor", "--json", env=env)
    assert told.code == 1
    document = told.json()
    assert (document["schema"], document["verdict"]) == ("notifyworker", "failing")
    (trigger,) = [f for f in document["findings"] if f["name"] == "triggers"]
    assert trigger["todo"] == 'ALTER TABLE "notifyworker".runs ENABLE TRIGGER wake;'
    assert {f["name"] for f in document["findings"]} == set(EXAMINATIONS)


async def test_the_command_without_a_database(dsn):
    gone = await call("doctor", "--dsn", NOWHERE)  # which sees to it that no password is shown
    assert (gone.code, gone.out.split()[:2]) == (1, ["failing", "connection"])
    await refused(2, "doctor")


async def test_the_example_of_the_docs_is_what_it_says(dsn, connection):
    (example,) = re.findall(r"```text\n(.*?)```", EXAMPLE, re.DOTALL)
    await connection.execute("ALTER TABLE notifyworker.runs DISABLE TRIGGER wake")
    await connection.execute("INSERT INTO notifyworker.runs (kind, run_at) VALUES ('email.send', now() - interval '20 min')")
    await connection.execute("DROP INDEX notifyworker.runs_lease")
    shown = (await call("doctor", env={"NOTIFYWORKER_DSN": dsn})).out

    def timeless(text: str) -> list[str]:
        text = re.sub(r"PostgreSQL .*|version \d+", "..", text)
        text = re.sub(r"postgres may work: .*|\S+ may work: .*", "may work", text)
        text = re.sub(r"\d+ ms (ahead of|behind)|[\d.]+ m?s\b", "..", text)
        return re.sub(r"\d+ of \d+ connections|[\d.]+% full", "..", text).splitlines()

    assert timeless(shown) == timeless(example)


def test_the_docs_name_every_examination():
    assert re.findall(r"^\| `(\w+)` \|", EXAMPLE, re.MULTILINE) == list(EXAMINATIONS)


async def test_healthcheck(dsn):
    worker = Worker(dsn, port=0, sidecar=True)

    @worker.handler("a")
    async def handle(run: Run, payload: dict) -> None: ...

    async with worker:
        port = worker.url.rsplit(":", 1)[1].strip("/")
        for arguments in (["--port", port], ["--url", f"{worker.url.rstrip('/')}/readyz"]):
            well = await call("healthcheck", *arguments, env={"NOTIFYWORKER_HOST": "0.0.0.0"})
            assert (well.code, well.out.splitlines()[0][:3], len(well.out.splitlines())) == (0, "200", 1)
        unwell = await call("healthcheck", "--url", f"{worker.url.rstrip('/')}/nowhere")
        assert (unwell.code, unwell.out[:3]) == (1, "404")
    assert "nobody answers" in await refused(1, "healthcheck", "--port", port)
    await refused(2, "healthcheck", "--port", "100000")
    await refused(2, "healthcheck", "--url", "nonsense")


async def test_healthcheck_waits_no_longer_than_it_says():
    ends = asyncio.Event()

    async def dripping(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        await ends.wait()
        writer.close()

    async with await asyncio.start_server(dripping, "127.0.0.1", 0) as silent:
        async with asyncio.timeout(30):
            port = str(silent.sockets[0].getsockname()[1])
            assert "within 3 s" in await refused(1, "healthcheck", "--port", port)
        ends.set()
