"""The schema: what it refuses, what its functions answer, who may do what, and how it gets there."""

import asyncio
import subprocess
import sys
import venv
from pathlib import Path

import asyncpg
import pytest
from servers import SURELY_S, as_role, eventually

from notifyworker.database import GateLocks
from notifyworker.errors import DatabaseUnavailable, SchemaTooNew, StartError
from notifyworker.migrate import Migration, migrate, migrations, newest, remove, render, script

INSERT = "INSERT INTO notifyworker.runs (kind) VALUES ('a') RETURNING run_id"


async def connect(dsn: str) -> asyncpg.Connection:
    return await asyncpg.connect(dsn)


@pytest.fixture
async def db(any_dsn: str):
    conn = await asyncpg.connect(any_dsn)
    yield conn
    await conn.close()


async def test_one_insert_is_all_that_a_producer_needs(db):
    first, second = await db.fetchval(INSERT), await db.fetchval(INSERT)

    assert first.version == second.version == 7
    assert first < second
    row = await db.fetchrow("SELECT * FROM notifyworker.all_runs WHERE run_id = $1", first)
    assert (row["state"], row["project_id"], row["payload"], row["attempt"]) == ("pending", "default", "{}", 0)


@pytest.mark.parametrize(
    ("columns", "values", "told"),
    [
        ("kind", "''", "kind_has_1_to_200_characters"),
        ("kind", "repeat('x', 201)", "kind_has_1_to_200_characters"),
        ("kind, project_id", "'a', ''", "project_id_has_1_to_200_characters"),
        ("kind, run_at", "'a', '4000-01-01 BC'", "run_at_is_between_1970_and_9999"),
        ("kind, run_at", "'a', '20000-01-01'", "run_at_is_between_1970_and_9999"),
        ("kind, run_at", "'a', 'infinity'", "run_at_is_between_1970_and_9999"),
        ("kind, expires_at", "'a', '-infinity'", "expires_at_is_between_1970_and_9999"),
        ("kind, timeout", "'a', '0 s'", "timeout_is_above_0_and_at_most_365_days"),
        ("kind, timeout", "'a', '366 days'", "timeout_is_above_0_and_at_most_365_days"),
        ("kind, max_attempts", "'a', 0", "max_attempts_is_at_least_1"),
        ("kind, headers", "'a', '[]'", "headers_is_an_object"),
        ("kind, idempotency_key", "'a', repeat('x', 501)", "idempotency_key_has_1_to_500_characters"),
        ("kind, payload", "'a', to_jsonb(repeat('x', 1048576))", "payload has 1048578 bytes"),
        ("kind, concurrency_key", "'a', repeat('x', 501)", "concurrency_key_has_1_to_500_characters"),
        ("kind, concurrency_key, waits_for", "'a', 'x', 'key'", 'column "waits_for"'),
        ("kind, is_limited", "'a', true", 'column "is_limited"'),
        ("kind, state", "'a', 'running'", 'column "state"'),
        ("kind, attempt", "'a', 1", 'column "attempt"'),
        ("kind, lease_owner", "'a', 'me'", 'column "lease_owner"'),
        ("kind, lease_token", "'a', 7", 'column "lease_token"'),
        ("kind, lease_expires_at", "'a', now()", 'column "lease_expires_at"'),
        ("kind, created_at", "'a', now() - interval '1 day'", 'column "created_at"'),
        ("kind, started_at", "'a', now()", 'column "started_at"'),
        ("kind, progress", "'a', '{}'", 'column "progress"'),
        ("kind, errors", "'a', '[1]'", 'column "errors"'),
        ("kind, is_shadow, shadow_by", "'a', true, 'run'", 'column "shadow_by"'),
    ],
)
async def test_a_bad_row_is_refused_and_named(db, columns, values, told):
    with pytest.raises(asyncpg.PostgresError) as refused:
        await db.execute(f"INSERT INTO notifyworker.runs ({columns}) VALUES ({values})")

    assert told in str(refused.value)
    assert await db.fetchval("SELECT count(*) FROM notifyworker.runs") == 0


@pytest.mark.parametrize(
    "change",
    [
        "state = 'running'",
        "state = 'completed'",
        "lease_owner = 'me'",
        "attempt = -1",
        "max_attempts = 1, attempt = 2",
        "state = 'running', lease_owner = 'me', lease_expires_at = now(), started_at = now(), max_attempts = 3",
        "shadow_by = 'worker'",
    ],
)
async def test_a_bad_state_is_unwritable_even_for_the_owner(db, change):
    await db.execute(INSERT)

    with pytest.raises(asyncpg.CheckViolationError):
        await db.execute(f"UPDATE notifyworker.runs SET {change}")


async def test_enqueue_returns_the_holder_of_the_idempotency_key(db):
    enqueue = "SELECT notifyworker.enqueue('a', '{\"n\": 1}', idempotency_key => 'k', priority => 5)"

    first, second = await db.fetchval(enqueue), await db.fetchval(enqueue)

    assert first == second
    assert await db.fetchval("SELECT count(*) FROM notifyworker.runs") == 1
    insert = "INSERT INTO notifyworker.runs (kind, idempotency_key) VALUES ('a', 'k')"
    with pytest.raises(asyncpg.UniqueViolationError):
        await db.execute(insert)
    assert await db.execute(insert + " ON CONFLICT DO NOTHING") == "INSERT 0 0"


async def test_cancel_retry_and_forget(db):
    run_id = await db.fetchval(INSERT)

    assert await db.fetchval("SELECT notifyworker.cancel($1)", run_id) == "cancelled"
    settled = await db.fetchrow("SELECT * FROM notifyworker.all_runs WHERE run_id = $1", run_id)
    assert settled["state"] == "cancelled"
    assert settled["finished_at"] is not None
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await db.fetchval("SELECT notifyworker.cancel($1)", run_id)

    assert await db.fetchval("SELECT notifyworker.retry($1)", run_id) == run_id
    again = await db.fetchrow("SELECT * FROM notifyworker.all_runs WHERE run_id = $1", run_id)
    assert (again["state"], again["attempt"], again["created_at"]) == ("pending", 0, settled["created_at"])
    for function in ("retry", "forget"):
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
            await db.fetchval(f"SELECT notifyworker.{function}($1)", run_id)

    await db.fetchval("SELECT notifyworker.cancel($1)", run_id)
    await db.fetchval("SELECT notifyworker.forget($1)", run_id)
    for function in ("cancel", "retry", "forget"):
        with pytest.raises(asyncpg.NoDataFoundError):
            await db.fetchval(f"SELECT notifyworker.{function}($1)", run_id)


async def test_retry_is_refused_while_a_live_run_holds_its_key(db):
    insert = "INSERT INTO notifyworker.runs (kind, idempotency_key) VALUES ('a', 'k') RETURNING run_id"
    await db.execute("UPDATE notifyworker.settings SET value = '0' WHERE name = 'idempotency_window_s'")
    old = await db.fetchval(insert)
    await db.fetchval("SELECT notifyworker.cancel($1)", old)
    await db.fetchval(insert)

    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await db.fetchval("SELECT notifyworker.retry($1)", old)

    assert await db.fetchval("SELECT state FROM notifyworker.all_runs WHERE run_id = $1", old) == "cancelled"


async def test_an_id_that_is_only_in_the_history_may_be_used_again(db):
    run_id = await db.fetchval(INSERT)
    await db.fetchval("SELECT notifyworker.cancel($1)", run_id)

    await db.execute("INSERT INTO notifyworker.runs (run_id, kind) VALUES ($1, 'a')", run_id)

    states = await db.fetch("SELECT state FROM notifyworker.all_runs WHERE run_id = $1 ORDER BY state", run_id)
    assert [row["state"] for row in states] == ["cancelled", "pending"]


async def test_only_the_last_fifty_errors_are_kept_and_the_cut_is_told(db):
    errors = "[]"
    for n in range(53):
        errors = await db.fetchval("SELECT notifyworker.with_error($1, jsonb_build_object('attempt', $2::int))", errors, n)
    length, first, cut = await db.fetchrow(
        "SELECT jsonb_array_length($1), ($1::jsonb #>> '{0,attempt}')::int, ($1::jsonb #>> '{0,cut}')::int", errors
    )
    assert (length, first, cut) == (50, 3, 3)


async def test_partitions_are_made_ahead_and_dropped_by_the_retention_in_the_database(db):
    await db.execute("CREATE TABLE notifyworker.run_history_20200101 PARTITION OF notifyworker.run_history "
                     "FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-01-02 00:00:00+00')")  # fmt: skip
    partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'notifyworker.run_history'::regclass"
    assert await db.fetchval(partitions) == 10  # today, seven days ahead, the default, and 2020's

    assert await db.fetchval("SELECT notifyworker.drop_expired_partitions()") == 1
    assert await db.fetchval("SELECT notifyworker.make_partitions()") == 0

    assert await db.fetchval(partitions) == 9


async def test_partitions_give_up_soon_behind_a_reader(db, any_dsn):
    await db.execute("CREATE TABLE notifyworker.run_history_20200101 PARTITION OF notifyworker.run_history "
                     "FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-01-02 00:00:00+00')")  # fmt: skip
    reader = await connect(any_dsn)
    async with reader.transaction():
        await reader.fetch("SELECT * FROM notifyworker.run_history")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await db.fetchval("SELECT notifyworker.drop_expired_partitions()", timeout=5)
    await reader.close()


async def test_a_producer_may_insert_and_nothing_else(db):
    await db.execute("SET ROLE notifyworker_producer")
    try:
        run_id = await db.fetchval(INSERT)
        assert await db.fetchval("SELECT notifyworker.enqueue('a', idempotency_key => 'k')") is not None
        for forbidden in (
            "SELECT payload FROM notifyworker.runs",
            "SELECT * FROM notifyworker.all_runs",
            "UPDATE notifyworker.runs SET priority = 1",
            "DELETE FROM notifyworker.runs",
            f"SELECT notifyworker.cancel('{run_id}')",
            f"SELECT notifyworker.retry('{run_id}')",
            f"SELECT notifyworker.forget('{run_id}')",
            "SELECT notifyworker.make_partitions()",
            "SELECT notifyworker.grant_roles()",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await db.execute(forbidden)
    finally:
        await db.execute("RESET ROLE")


async def test_operators_act_and_observers_only_read(db):
    run_id = await db.fetchval(INSERT)
    try:
        await db.execute("SET ROLE notifyworker_observer")
        assert await db.fetchval("SELECT count(*) FROM notifyworker.all_runs") == 1
        for forbidden in (f"SELECT notifyworker.cancel('{run_id}')", INSERT, "DELETE FROM notifyworker.runs"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await db.execute(forbidden)
        await db.execute("SET ROLE notifyworker_operator")
        assert await db.fetchval("SELECT notifyworker.cancel($1)", run_id) == "cancelled"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await db.execute("DELETE FROM notifyworker.run_history")
    finally:
        await db.execute("RESET ROLE")


async def test_ten_migrate_at_once(any_empty_dsn):
    applied = await asyncio.gather(*(migrate(any_empty_dsn, "notifyworker") for _ in range(10)))

    assert sorted(len(a) for a in applied) == [0] * 9 + [len(migrations())]


async def test_a_migration_that_waits_for_a_reader_holds_up_no_insert(dsn, connection, monkeypatch):
    change = Migration(newest() + 1, "next", "ALTER TABLE {schema}.runs ADD COLUMN next text;")
    monkeypatch.setattr("notifyworker.migrate.migrations", lambda real=migrations: (*real(), change))
    reader = await asyncpg.connect(dsn)
    read = reader.transaction()
    await read.start()
    await reader.fetch("SELECT FROM notifyworker.runs")
    waiting = asyncio.create_task(migrate(dsn, "notifyworker"))
    waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock')"
    for _ in range(3):
        await eventually(lambda: connection.fetchval(waits))
        await connection.execute("INSERT INTO notifyworker.runs (kind) VALUES ('a')", timeout=5)
    assert not waiting.done()
    await read.rollback()
    await reader.close()

    assert await asyncio.wait_for(waiting, SURELY_S) == [change]
    assert await connection.fetchval("SELECT max(version) FROM notifyworker.migrations") == change.version


async def test_tables_that_stay_in_use_are_told_and_nothing_is_changed(dsn, connection, monkeypatch):
    change = Migration(newest() + 1, "next", "ALTER TABLE {schema}.runs ADD COLUMN next text;")
    monkeypatch.setattr("notifyworker.migrate.migrations", lambda real=migrations: (*real(), change))
    monkeypatch.setattr("notifyworker.migrate._WAIT_S", 0.5)
    async with connection.transaction():
        await connection.fetch("SELECT FROM notifyworker.runs")
        with pytest.raises(StartError, match=r"in use for 0\.5 s on end; nothing was changed"):
            await migrate(dsn, "notifyworker")
    assert await connection.fetchval("SELECT max(version) FROM notifyworker.migrations") == change.version - 1


async def test_two_installations_share_a_database(empty_dsn):
    await migrate(empty_dsn, "one")
    await migrate(empty_dsn, "two")
    conn = await connect(empty_dsn)
    heard: list[str] = []
    await conn.add_listener("two", lambda *args: heard.append(args[2]))
    other = await connect(empty_dsn)
    await other.execute("INSERT INTO one.runs (kind) VALUES ('a')")
    await other.execute("INSERT INTO two.runs (kind) VALUES ('a')")
    await conn.execute("SELECT 1")
    assert heard == ["two"]
    assert GateLocks.of("one") != GateLocks.of("two")
    await remove(empty_dsn, "one")
    assert await other.fetchval("SELECT to_regnamespace('one')") is None
    assert await other.fetchval("SELECT count(*) FROM two.runs") == 1
    await conn.close()
    await other.close()


async def test_a_database_newer_than_the_code_is_refused(dsn, connection):
    await connection.execute("INSERT INTO notifyworker.migrations VALUES ($1, 'future')", newest() + 1)

    with pytest.raises(SchemaTooNew, match="newer than this code"):
        await migrate(dsn, "notifyworker")


async def test_who_may_not_migrate_is_told_so(empty_dsn):
    conn = await connect(empty_dsn)
    await conn.execute("CREATE ROLE nobody_much LOGIN PASSWORD 'nobody_much'")
    try:
        with pytest.raises(StartError, match="migrate as the database's owner"):
            await migrate(as_role(empty_dsn, "nobody_much", "nobody_much"), "notifyworker")
    finally:
        await conn.execute("DROP ROLE nobody_much")
        await conn.close()


async def test_a_migration_without_createrole_goes_on(empty_dsn):
    conn = await connect(empty_dsn)
    await conn.execute("CREATE ROLE owner_only LOGIN PASSWORD 'owner_only'")
    await conn.execute(f'GRANT CREATE ON DATABASE "{empty_dsn.partition("?")[0].rpartition("/")[2]}" TO owner_only')
    try:
        await migrate(as_role(empty_dsn, "owner_only", "owner_only"), "elsewhere")
        assert await conn.fetchval("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'elsewhere%'") == 0
        assert await conn.fetchval("SELECT count(*) FROM elsewhere.migrations") == len(migrations())
    finally:
        await conn.execute("DROP OWNED BY owner_only CASCADE; DROP ROLE owner_only")
        await conn.close()


async def test_the_printed_script_makes_the_same_schema(any_empty_dsn):
    conn = await connect(any_empty_dsn)
    await conn.execute(script("notifyworker"))

    assert await migrate(any_empty_dsn, "notifyworker") == []
    await conn.close()


async def test_an_unreachable_database_is_one_sentence_without_the_password():
    with pytest.raises(DatabaseUnavailable) as told:
        await migrate("postgresql://me:s3cret@127.0.0.1:1/db", "notifyworker")

    assert "me@127.0.0.1:1/db" in str(told.value)
    assert "s3cret" not in str(told.value)


def test_no_file_has_a_token_that_is_not_put_in():
    for migration in migrations():
        assert "{schema}" not in render(migration.text, "notifyworker")
        assert "{name}" not in render(migration.text, "notifyworker")


@pytest.mark.timeout(300)
async def test_an_installed_wheel_can_migrate(empty_dsn, tmp_path: Path):
    root = Path(__file__).parents[1]
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(root)]
    await asyncio.to_thread(subprocess.run, build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    await asyncio.to_thread(venv.create, tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    # The dependencies of the running interpreter stand in for an index; notifyworker itself comes from the wheel alone.
    await asyncio.to_thread(subprocess.run, [sys.executable, "-m", "zipfile", "-e", str(wheel), str(site)], check=True)
    ours = [p for p in sys.path if p.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(ours))
    code = (
        "import asyncio, sys, notifyworker.migrate as m; print(m.__file__);"
        "print(len(asyncio.run(m.migrate(sys.argv[1], 'notifyworker'))))"
    )
    done = await asyncio.to_thread(
        subprocess.run, [str(python), "-I", "-c", code, empty_dsn], check=True, capture_output=True, text=True, cwd=tmp_path
    )

    where, applied = done.stdout.split()
    assert str(site) in where
    assert int(applied) == len(migrations())
