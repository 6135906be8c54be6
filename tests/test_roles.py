"""Who may do what: every action of every role, on both versions; and the usual ways around it."""

import contextlib
import io
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from servers import as_role

from notifyworker.database import connect
from notifyworker.migrate import migrate, script
from notifyworker.store import Store

REFUSED = asyncpg.InsufficientPrivilegeError
ROLES = ("producer", "worker", "operator", "observer", "stranger")

#: An action, and the roles that may do it. {live} and {settled} are ids of runs, {day} is today's partition.
FUNCTIONS = {
    "enqueue('a', idempotency_key => 'k')": {"producer", "worker"},
    "uuid7()": {"producer", "worker"},
    "cancel('{live}')": {"worker", "operator"},
    "retry('{settled}')": {"worker", "operator"},
    "forget('{settled}')": {"operator"},
    "replay('{settled}')": {"worker", "operator"},
    "cancel_runs()": {"worker", "operator"},
    "retry_runs()": {"worker", "operator"},
    "set_retention(3, 'a')": {"worker", "operator"},
    "live_matching()": {"worker", "operator", "observer"},
    "settled_matching()": {"worker", "operator", "observer"},
    "failed_groups()": {"worker", "operator", "observer"},
    "error_line('[]')": {"worker", "operator", "observer"},
    "ended_days()": {"worker"},
    "delete_expired(null)": {"worker"},
    "with_error('[]', null)": {"worker"},
    "announce(now())": {"worker"},
    "make_partitions()": {"worker"},
    "drop_expired_partitions()": {"worker"},
    "projects_of('postgres')": {"producer", "operator", "observer"},
    "caller_sees('a')": set[str](),
    "separate_projects()": set[str](),
    "bind_role('notifyworker_producer', '')": set[str](),
    "unbind_role('notifyworker_producer')": set[str](),
    "apply_settings()": set[str](),
    "grant_roles()": set[str](),
    "is_held(null)": set[str](),
    "key_holder('default', 'a', 'k')": {"producer", "worker"},
    "hold_key('default', 'a', 'k', '{live}')": set[str](),
    "take_key()": set[str](),
    "check_pace(null, null, null, null, null, null)": set[str](),
    "debounce(null, null, null)": set[str](),
    "keep_key()": set[str](),
    "expect(ARRAY[]::uuid[], 'notifyworker_wait_0123456789abcdef')": {"worker", "operator", "observer"},
    "expect_no_more(ARRAY[]::uuid[], 'notifyworker_wait_0123456789abcdef')": {"worker", "operator", "observer"},
    "complete('{live}', 1)": {"worker"},
    "tell_waiters(ARRAY[]::uuid[])": {"worker"},
    "pause('a')": {"worker", "operator"},
    "resume('a')": {"worker", "operator"},
    "drain('a')": {"worker", "operator"},
    "set_limit('a', max_running => 1)": {"worker", "operator"},
    "remove_limit('a')": {"worker", "operator"},
    "set_share('p', 2)": {"worker", "operator"},
    "places_freed()": set[str](),
    "end_wait('p', 'x', 1)": {"worker"},
    "claim_limited('{{a}}', '{{p}}', '{{1}}', '{{now}}', '{{a}}', '{{3}}', '{{null}}', 1, 'w', 60, false, '{{1}}')": {"worker"},
    "live_version('a', 'p')": {"worker"},
    "set_mirror('a', 'v2', 10)": {"worker", "operator"},
    "remove_mirror('a', 'v2')": {"worker", "operator"},
    "set_comparison('a', '{{}}', '{{}}', true)": {"worker", "operator"},
    "replay_in_shadow('a', 'v2')": {"worker", "operator"},
    "reset_shadow('a', 'v2')": {"worker", "operator"},
    "mirror('{{}}', '{{}}', '{{}}')": {"worker"},
    "part_of('{live}')": {"worker"},
    "tell_mirrors()": set[str](),
    "mirror_room(1)": {"worker"},
    "take_pairs('a', 'v2', null, 1)": {"worker"},
    "copy_runs('{{}}', 'v2')": {"worker"},
    "claim_shadow('{{a}}', '{{v2}}', '{{3}}', '{{null}}', null, 1, 'w', 60)": {"worker"},
    "seal()": {"worker"},
    "refuse_commit()": set[str](),
    "set_version('a', 'v2')": {"worker", "operator"},
    "adopt_versions('{{a}}', '{{v}}')": {"worker"},
    "take_keys('a', 'p', 1, 1, 'w', false)": {"worker"},
    "take_room('a', 'p', '{{}}', '{{}}', 'w')": {"worker"},
    "room('a', 'p')": {"worker"},
    "key_places('p')": {"worker"},
    "tokens(null, 'p', '')": {"worker"},
    "spend(ROW(1, '', '', 'all', null, 1, 1, 1, now())::notifyworker.limits, 'p', '', 1)": {"worker"},
    "adopt(null)": {"worker"},
    "mend_limits()": {"worker"},
    "end_lingering('{live}', 'w', 1)": {"worker"},
    "have_checked('{live}', null)": {"worker"},
    "who_comes_after('{live}', now(), '{{}}')": {"worker"},
    "tell_parent('{live}', now(), '{{}}')": set[str](),
    "end_group(null)": set[str](),
    "child_ended()": set[str](),
    "end_children()": {"worker"},
    "children_ended()": set[str](),
    "park('{live}', 1, 'w', 1, null)": {"worker"},
    "failed_of(null)": {"worker"},
    "close_group('{live}', 1, 'w', 1)": {"worker"},
    "cancel_children('{{}}')": {"worker"},
    "come_back('{live}')": set[str](),
    "start_over('{{}}')": set[str](),
    "check_parent('{live}', now())": {"worker"},
    "check_cancelled('{live}', 1)": {"worker"},
    "lock_address('p', 'a', '')": {"worker"},
    "emit('a')": {"producer", "worker", "operator"},
    "end_event_wait(null)": set[str](),
    "take_event('{live}', 1, 'w', 1, 'event:a', 'a', '', null, null)": {"worker"},
    "mend_events()": {"worker"},
    "schedule_changes()": set[str](),
    "tell_schedules()": set[str](),
    "refuse()": set[str](),
    "wake()": set[str](),
}
READS = {"worker", "operator", "observer"}
READERS = {"operator", "observer"}
ACTIONS = {
    # Reading
    "SELECT run_id FROM notifyworker.runs": {"producer", *READS},
    "SELECT payload FROM notifyworker.runs": READS,
    "SELECT kind FROM notifyworker.runs": READS,
    "SELECT FROM notifyworker.runs WHERE payload::text LIKE '%x%'": READS,
    "SELECT run_id FROM notifyworker.runs ORDER BY payload": READS,
    "SELECT * FROM notifyworker.all_runs": READS,
    "SELECT * FROM notifyworker.run_history": READS,
    "SELECT * FROM notifyworker.workers": READS,
    "SELECT * FROM notifyworker.reaper": READS,
    "SELECT * FROM notifyworker.reaps": READS,
    "SELECT * FROM notifyworker.settings": READS,
    "SELECT * FROM notifyworker.migrations": READS,
    "SELECT * FROM notifyworker.project_roles": {"producer", *READERS},
    "SELECT * FROM notifyworker.idempotency_keys": READS,
    "SELECT * FROM notifyworker.debounces": READS,
    "SELECT * FROM notifyworker.waiters": {"worker"},
    "SELECT * FROM notifyworker.pauses": READS,
    "SELECT * FROM notifyworker.retention": READS,
    "INSERT INTO notifyworker.retention (kind, days) VALUES ('a', 1)": set[str](),
    "DELETE FROM notifyworker.retention": set[str](),
    "SELECT * FROM notifyworker.schedules": READS,
    "SELECT * FROM notifyworker.audit": READS,
    "INSERT INTO notifyworker.audit (actor, action, target, matched) VALUES ('a', 'b', '[]', 1)": {"worker"},
    "UPDATE notifyworker.audit SET changed = 1": {"worker"},
    "DELETE FROM notifyworker.audit": {"worker"},
    "SELECT * FROM notifyworker.steps": READS,
    "DELETE FROM notifyworker.steps": {"worker"},
    "UPDATE notifyworker.steps SET name = 'other'": {"worker"},
    "SELECT * FROM notifyworker.run_logs": READS,
    "DELETE FROM notifyworker.run_logs": {"worker"},
    "SELECT * FROM notifyworker.children": READS,
    "SELECT * FROM notifyworker.child_groups": READS,
    "SELECT * FROM notifyworker.child_checks": {"worker"},
    "SELECT * FROM notifyworker.events": READS,
    "SELECT * FROM notifyworker.event_waits": READS,
    "DELETE FROM notifyworker.children": {"worker"},
    "DELETE FROM notifyworker.events": {"worker"},
    "INSERT INTO notifyworker.events (expires_at, project_id, name, key, payload) VALUES (now(), 'p', 'a', '', '1')": {"worker"},
    "SELECT * FROM notifyworker.limits": READS,
    "SELECT * FROM notifyworker.places": READS,
    "SELECT * FROM notifyworker.rates": READS,
    "SELECT * FROM notifyworker.shares": READS,
    "SELECT * FROM notifyworker.versions": READS,
    "SELECT * FROM notifyworker.mirrors": READS,
    "INSERT INTO notifyworker.mirrors (kind, version, percent) VALUES ('a', 'v', 1)": set[str](),
    "UPDATE notifyworker.mirrors SET percent = 1": {"worker"},  # it counts there
    "SELECT * FROM notifyworker.mirror_skips": READS,
    "DELETE FROM notifyworker.mirror_skips": {"worker"},
    "SELECT * FROM notifyworker.shadow_pairs": READS,
    "INSERT INTO notifyworker.shadow_pairs (live_run_id, kind, project_id, version) VALUES (gen_random_uuid(), 'a', 'p', 'v')": set[str](),
    "UPDATE notifyworker.shadow_pairs SET diff = ''": {"worker"},
    "DELETE FROM notifyworker.shadow_pairs": {"worker"},
    "SELECT * FROM notifyworker.comparisons": READS,
    "INSERT INTO notifyworker.comparisons (kind) VALUES ('a')": set[str](),
    "SELECT * FROM notifyworker.seals": READERS,
    "INSERT INTO notifyworker.seals DEFAULT VALUES": set[str](),
    "INSERT INTO notifyworker.versions (kind, version) VALUES ('a', 'v')": set[str](),
    "UPDATE notifyworker.versions SET version = 'other'": set[str](),
    "INSERT INTO notifyworker.limits (max_running) VALUES (1)": set[str](),
    "UPDATE notifyworker.limits SET max_running = 1": {"worker"},  # it locks them
    "DELETE FROM notifyworker.limits": set[str](),
    "INSERT INTO notifyworker.places VALUES (0, 'p', 'x', 0, '{live}', 'w')": {"worker"},
    "DELETE FROM notifyworker.places": {"worker"},
    "DELETE FROM notifyworker.rates": {"worker"},
    "UPDATE notifyworker.shares SET weight = 2": set[str](),
    "INSERT INTO notifyworker.schedules (name, cron, kind) VALUES ('s', '* * * * *', 'a')": {"worker", "operator"},
    "UPDATE notifyworker.schedules SET paused = true": {"worker", "operator"},
    "DELETE FROM notifyworker.schedules": {"worker", "operator"},
    "INSERT INTO notifyworker.pauses (kind) VALUES ('a')": set[str](),
    "DELETE FROM notifyworker.pauses": {"worker"},
    "SELECT * FROM notifyworker.{day}": set[str](),
    "SELECT * FROM notifyworker.run_history_default": set[str](),
    "CREATE TEMP TABLE copied AS SELECT payload FROM notifyworker.runs": READS,
    # Inserting
    "INSERT INTO notifyworker.runs (kind) VALUES ('a') RETURNING run_id": {"producer", "worker"},
    "INSERT INTO notifyworker.runs (kind, idempotency_key) VALUES ('a', 'k') ON CONFLICT DO NOTHING": {"producer", "worker"},
    "INSERT INTO notifyworker.runs (kind) VALUES ('a') RETURNING payload": {"worker"},
    "INSERT INTO notifyworker.runs (run_id, kind) VALUES ('{live}', 'a') ON CONFLICT (run_id) DO UPDATE SET priority = 9":
        {"worker"},
    # Changing
    "UPDATE notifyworker.runs SET priority = 1": {"worker"},
    "UPDATE notifyworker.runs SET payload = '{{}}'": {"worker"},
    "SELECT run_id FROM notifyworker.runs FOR UPDATE": {"worker"},
    "DELETE FROM notifyworker.runs": {"worker"},
    "MERGE INTO notifyworker.runs USING (SELECT 1) AS s ON run_id = '{live}' WHEN MATCHED THEN DELETE": {"worker"},
    "INSERT INTO notifyworker.run_history SELECT * FROM notifyworker.run_history WHERE false": {"worker"},
    "UPDATE notifyworker.run_history SET state = 'failed'": set[str](),
    "DELETE FROM notifyworker.run_history": set[str](),
    "DELETE FROM notifyworker.{day}": set[str](),
    "UPDATE notifyworker.settings SET value = '1'": set[str](),
    "DELETE FROM notifyworker.migrations": set[str](),
    "INSERT INTO notifyworker.project_roles VALUES ('notifyworker_producer', '')": set[str](),
    "UPDATE notifyworker.reaper SET passes = 0": {"worker"},
    "DELETE FROM notifyworker.workers": {"worker"},
    "INSERT INTO notifyworker.idempotency_keys VALUES ('default', 'a', 'k', '{live}')": set[str](),
    "DELETE FROM notifyworker.idempotency_keys": {"worker"},
    "INSERT INTO notifyworker.debounces VALUES ('default', 'a', 'k', '{live}', now())": set[str](),
    "DELETE FROM notifyworker.debounces": {"worker"},
    "DELETE FROM notifyworker.reaps": {"worker"},
    "TRUNCATE notifyworker.runs": set[str](),
    "TRUNCATE notifyworker.run_history": set[str](),
    "TRUNCATE notifyworker.reaps": set[str](),
    # Altering, dropping and creating
    "DROP TABLE notifyworker.{day}": set[str](),
    "DROP TABLE notifyworker.runs CASCADE": set[str](),
    "DROP VIEW notifyworker.all_runs": set[str](),
    "DROP FUNCTION notifyworker.uuid7() CASCADE": set[str](),
    "DROP TRIGGER guard ON notifyworker.runs": set[str](),
    "DROP INDEX notifyworker.runs_ready": set[str](),
    "DROP SCHEMA notifyworker CASCADE": set[str](),
    "ALTER TABLE notifyworker.runs ADD COLUMN mine text": set[str](),
    "ALTER TABLE notifyworker.runs DISABLE TRIGGER guard": set[str](),
    "ALTER TABLE notifyworker.runs DROP CONSTRAINT lease_is_held_while_running": set[str](),
    "ALTER TABLE notifyworker.runs OWNER TO CURRENT_USER": set[str](),
    "ALTER TABLE notifyworker.runs DISABLE ROW LEVEL SECURITY": set[str](),
    "ALTER TABLE notifyworker.run_history DETACH PARTITION notifyworker.{day}": set[str](),
    "ALTER FUNCTION notifyworker.cancel(uuid) SECURITY INVOKER": set[str](),
    "ALTER FUNCTION notifyworker.cancel(uuid) RESET search_path": set[str](),
    "ALTER VIEW notifyworker.all_runs RENAME TO mine": set[str](),
    "ALTER SCHEMA notifyworker RENAME TO mine": set[str](),
    "CREATE TABLE notifyworker.mine ()": set[str](),
    "CREATE TABLE notifyworker.mine PARTITION OF notifyworker.run_history FOR VALUES FROM ('2000-01-01') TO ('2000-01-02')":
        set[str](),
    "CREATE TEMP TABLE mine () INHERITS (notifyworker.runs)": set[str](),
    "CREATE SCHEMA mine CREATE TABLE mine (run_id uuid REFERENCES notifyworker.runs)": set[str](),
    "CREATE VIEW notifyworker.mine AS SELECT 1": set[str](),
    "CREATE FUNCTION notifyworker.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'": set[str](),
    "CREATE OR REPLACE FUNCTION notifyworker.uuid7() RETURNS uuid LANGUAGE sql AS 'SELECT null::uuid'": set[str](),
    "CREATE OPERATOR notifyworker.=== (FUNCTION = texteq, LEFTARG = text, RIGHTARG = text)": set[str](),
    "CREATE TRIGGER mine AFTER INSERT ON notifyworker.runs EXECUTE FUNCTION suppress_redundant_updates_trigger()": set[str](),
    "CREATE RULE mine AS ON INSERT TO notifyworker.runs DO ALSO NOTIFY mine": set[str](),
    "CREATE INDEX mine ON notifyworker.runs (kind)": set[str](),
    "CREATE POLICY mine ON notifyworker.runs USING (true)": set[str](),
    "CREATE STATISTICS mine ON kind, state FROM notifyworker.runs": set[str](),
    "COMMENT ON TABLE notifyworker.runs IS 'mine'": set[str](),
    # The server's files and switches
    "SELECT lo_import('/etc/passwd')": set[str](),
    "SELECT lo_export(1, '/tmp/mine')": set[str](),
    "SELECT pg_read_file('/etc/passwd')": set[str](),
    "COPY notifyworker.runs TO '/tmp/mine'": set[str](),
    "COPY notifyworker.runs (kind) FROM '/etc/passwd'": set[str](),
    "COPY notifyworker.runs TO PROGRAM 'cat'": set[str](),
    "SET session_replication_role = replica": set[str](),
    "SET ROLE {owner}": set[str](),
}  # fmt: skip


@contextlib.asynccontextmanager
async def login(dsn: str, *granted: str) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    """A login of its own, and a session of it. Roles are the cluster's: it is dropped again."""
    admin = await asyncpg.connect(dsn)
    name = f"t_{uuid.uuid4().hex[:12]}"
    await admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    for role in granted:
        await admin.execute(f"GRANT {role} TO {name}")
    session = await asyncpg.connect(as_role(dsn, name, name))
    try:
        yield name, session
    finally:
        await session.close()
        await admin.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")
        await admin.close()


@pytest.fixture
async def db(any_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    conn = await asyncpg.connect(any_dsn)
    yield conn
    await conn.close()


async def facts(db: asyncpg.Connection) -> dict[str, Any]:
    """A live and a settled run, and names that statements are made of."""
    live, settled = [
        await db.fetchval("INSERT INTO notifyworker.runs (kind, payload) VALUES ('a', '\"x\"') RETURNING run_id")
        for _ in range(2)
    ]
    await db.execute("SELECT notifyworker.cancel($1)", settled)
    day = await db.fetchval("SELECT 'run_history_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')")
    return {"live": live, "settled": settled, "day": day, "owner": await db.fetchval("SELECT current_user")}


async def may(session: asyncpg.Connection, statement: str) -> bool:
    """Try it, and leave no trace."""
    transaction = session.transaction()
    await transaction.start()
    try:
        await session.execute(statement)
    except REFUSED:
        return False
    except asyncpg.ObjectNotInPrerequisiteStateError:  # it may, and the run is not in the state for it
        return True
    finally:
        await transaction.rollback()
    return True


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_may_do_what_is_its_own_and_nothing_else(db, any_dsn, role):
    known = await facts(db)
    actions = {**{f"SELECT notifyworker.{call}": who for call, who in FUNCTIONS.items()}, **ACTIONS}
    if db.get_server_version()[0] < 15:
        actions = {action: who for action, who in actions.items() if not action.startswith("MERGE")}
    async with login(any_dsn, *([] if role == "stranger" else [f"notifyworker_{role}"])) as (name, session):
        await db.execute(f'GRANT CREATE ON DATABASE "{await db.fetchval("SELECT current_database()")}" TO {name}')
        wrong = [action for action, who in actions.items() if await may(session, action.format(**known)) != (role in who)]
    assert wrong == []


async def test_the_matrix_names_every_function_and_every_relation(db):
    functions = await db.fetch("SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'notifyworker'::regnamespace")
    assert {row["proname"] for row in functions} == {call.partition("(")[0] for call in FUNCTIONS}
    relations = await db.fetch("""SELECT relname FROM pg_class WHERE relnamespace = 'notifyworker'::regnamespace
                                     AND relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT relispartition""")
    for row in relations:
        assert f"SELECT * FROM notifyworker.{row['relname']}" in ACTIONS or row["relname"] == "runs"


async def test_nothing_is_left_to_public_and_no_role_may_grant(db):
    acls = """
    SELECT 'function ' || p.oid::regprocedure AS what, (aclexplode(coalesce(proacl, acldefault('f', proowner)))).* FROM pg_proc AS p
     WHERE pronamespace = 'notifyworker'::regnamespace
    UNION ALL
    SELECT 'relation ' || c.oid::regclass, (aclexplode(relacl)).* FROM pg_class AS c WHERE relnamespace = 'notifyworker'::regnamespace
    UNION ALL
    SELECT 'schema', (aclexplode(nspacl)).* FROM pg_namespace WHERE nspname = 'notifyworker'
    """
    rows = await db.fetch(f"SELECT * FROM ({acls}) AS a WHERE grantee <> grantor")

    assert len(rows) > 20
    assert [row["what"] for row in rows if row["grantee"] == 0] == []
    assert [row["what"] for row in rows if row["is_grantable"]] == []
    assert {row["privilege_type"] for row in rows if row["what"] == "schema"} == {"USAGE"}


async def test_copy_is_a_read_or_an_insert_like_any_other(db, any_dsn):
    await facts(db)
    async with login(any_dsn, "notifyworker_producer") as (_, producer), login(any_dsn, "notifyworker_observer") as (_, observer):
        for read in ("SELECT payload FROM notifyworker.runs", "SELECT * FROM notifyworker.run_history"):
            with pytest.raises(REFUSED):
                await producer.copy_from_query(read, output=io.BytesIO())
            await observer.copy_from_query(read, output=io.BytesIO())
        with pytest.raises(REFUSED):
            await producer.copy_from_table("runs", schema_name="notifyworker", output=io.BytesIO())

        await producer.copy_records_to_table("runs", schema_name="notifyworker", columns=["kind"], records=[("copied",)])
        with pytest.raises(asyncpg.InvalidParameterValueError, match='column "attempt"'):
            await producer.copy_records_to_table(
                "runs", schema_name="notifyworker", columns=["kind", "attempt"], records=[("b", 1)]
            )
        with pytest.raises(REFUSED):
            await observer.copy_records_to_table("runs", schema_name="notifyworker", columns=["kind"], records=[("c",)])
    assert await db.fetchval("SELECT count(*) FROM notifyworker.runs WHERE kind IN ('copied', 'b', 'c')") == 1


async def test_an_error_tells_a_producer_nothing_of_others_rows(db, any_dsn):
    await db.execute("INSERT INTO notifyworker.runs (kind, payload, idempotency_key) VALUES ('a', '\"hidden\"', 'hidden-key')")
    async with login(any_dsn, "notifyworker_producer") as (_, producer):
        with pytest.raises(asyncpg.UniqueViolationError) as told:
            await producer.execute("INSERT INTO notifyworker.runs (kind, idempotency_key) SELECT 'a', 'hidden-' || 'key'")
        assert "hidden" not in f"{told.value} {told.value.detail}"


async def test_a_worker_drops_expired_partitions_and_no_others(db, any_dsn):
    await db.execute("CREATE TABLE notifyworker.run_history_20200101 PARTITION OF notifyworker.run_history "
                     "FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-01-02 00:00:00+00')")  # fmt: skip
    partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'notifyworker.run_history'::regclass"
    before = await db.fetchval(partitions)
    async with login(any_dsn, "notifyworker_worker") as (_, worker):
        with pytest.raises(REFUSED):
            await worker.execute("DROP TABLE notifyworker.run_history_20200101")
        assert await worker.fetchval("SELECT notifyworker.drop_expired_partitions()") == 1
        assert await worker.fetchval("SELECT notifyworker.drop_expired_partitions()") == 0
    assert await db.fetchval(partitions) == before - 1


# The usual escapes


async def test_definers_rights_are_used_where_needed_and_every_path_is_pinned(db):
    rows = await db.fetch("""SELECT proname, prosecdef, proconfig, prosqlbody IS NOT NULL AS is_bound_early FROM pg_proc
                              WHERE pronamespace = 'notifyworker'::regnamespace""")

    assert {row["proname"] for row in rows if row["prosecdef"]} == {
        "enqueue", "cancel", "retry", "forget", "make_partitions", "drop_expired_partitions",
        "key_holder", "take_key", "keep_key", "pause", "resume", "drain", "set_limit", "remove_limit", "places_freed", "mend_limits",
        "set_share",
        "expect", "expect_no_more", "complete",
        "replay", "cancel_runs", "retry_runs", "live_matching", "settled_matching", "set_retention", "ended_days",
        "delete_expired", "set_version", "adopt_versions", "mirror", "set_mirror", "remove_mirror", "seal", "replay_in_shadow",
        "set_comparison", "reset_shadow",
        "refuse", "end_children", "cancel_children", "check_parent", "check_cancelled", "emit", "mend_events",
    }  # fmt: skip
    for row in rows:
        assert "search_path=pg_catalog, pg_temp" in (row["proconfig"] or []) or row["is_bound_early"], row["proname"]


#: Each fits a call of ours as well as the server's own, or better, and tells with whose rights it was executed.
SHADOWS = (
    "now() RETURNS timestamptz", "clock_timestamp() RETURNS timestamptz", "pg_notification_queue_usage() RETURNS float8",
    "pg_notify(text, text) RETURNS void", "current_setting(text) RETURNS text", "to_char(timestamp, text) RETURNS text",
    "format(text, text) RETURNS text", "format(text, text, text) RETURNS text", "format(text, regclass) RETURNS text",
    "jsonb_array_length(jsonb) RETURNS integer", "pg_has_role(name, oid, text) RETURNS boolean", "octet_length(text) RETURNS integer",
    "hashtextextended(text, integer) RETURNS bigint", "to_date(text, text) RETURNS date", "jsonb_build_array(jsonb) RETURNS jsonb",
    "pg_advisory_xact_lock(integer, integer) RETURNS void", "to_regclass(text) RETURNS regclass",
)  # fmt: skip
OPERATORS = (("=", "text", "boolean"), ("=", "uuid", "boolean"), ("||", "text", "text"), ("<>", "text", "boolean"),
             ("<", "float8", "boolean"), (">", "integer", "boolean"), ("&&", "text[]", "boolean"))  # fmt: skip


async def plant(session: asyncpg.Connection, schema: str) -> None:
    """Put functions, operators and a table into a schema that name the server's own or ours."""
    await session.execute(f"""
        CREATE TABLE {schema}.caught (by_whom text, what text);
        GRANT ALL ON {schema}.caught TO PUBLIC; GRANT USAGE ON SCHEMA {schema} TO PUBLIC;
        CREATE TABLE {schema}.runs (LIKE notifyworker.runs); CREATE TABLE {schema}.pg_class (oid oid, relrowsecurity boolean);
    """)
    for signature in SHADOWS:
        await session.execute(f"""CREATE FUNCTION {schema}.{signature} LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO {schema}.caught VALUES (current_user, '{signature}'); RETURN {_nothing(signature)}; END $$""")
    for number, (name, kind, result) in enumerate(OPERATORS):
        await session.execute(f"""CREATE FUNCTION {schema}.op{number}({kind}, {kind}) RETURNS {result} LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO {schema}.caught VALUES (current_user, '{name}'); RETURN null; END $$;
            CREATE OPERATOR {schema}.{name} (FUNCTION = {schema}.op{number}, LEFTARG = {kind}, RIGHTARG = {kind})""")


def _nothing(signature: str) -> str:
    return "" if signature.endswith("void") else "null"


async def test_no_search_path_of_the_caller_reaches_our_functions(db, any_dsn):
    """Functions, operators and tables of the caller's, in front of the server's own, are never used."""
    database = await db.fetchval("SELECT current_database()")
    async with login(any_dsn, *(f"notifyworker_{role}" for role in ROLES[:-1])) as (name, session):
        await db.execute(f'GRANT CREATE ON DATABASE "{database}" TO {name}')
        await session.execute("CREATE SCHEMA evil")
        await plant(session, "evil")
        await session.execute("CREATE TEMP TABLE runs (LIKE notifyworker.runs); CREATE TEMP TABLE pg_class (oid oid)")
        await session.execute("CREATE TEMP TABLE caught (by_whom text, what text)")
        await session.execute("SET search_path = pg_temp, evil, pg_catalog")
        with pytest.raises(asyncpg.PostgresError):  # the trap is a trap: the shadow of now() gives null
            await session.execute("INSERT INTO notifyworker.runs (kind, created_at) VALUES ('a', now())")
        assert await session.fetchval("SELECT count(*) FROM evil.caught") == 0  # rolled back with it

        for call in (call for call, who in FUNCTIONS.items() if who):
            ids = await facts(db)
            if call.startswith(("complete", "seal")):
                continue  # of a running run alone: see above; and what refuses its own COMMIT
            await session.execute(f"SELECT notifyworker.{call.replace('now()', 'pg_catalog.now()').format(**ids)}")
        await session.execute("INSERT INTO notifyworker.runs (kind) VALUES ('b')")
        await session.execute("SET search_path = pg_catalog")
        assert await session.fetch("SELECT * FROM evil.caught") == []
        assert await session.fetchval("SELECT count(*) FROM pg_temp.runs") == 0
    assert await db.fetchval("SELECT count(*) FROM notifyworker.all_runs WHERE kind = 'b'") == 1


@pytest.fixture
async def open_house(db: asyncpg.Connection, any_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A stranger has planted all that in `public`, which everybody may do before PostgreSQL 15, and after an upgrade from there."""
    await db.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    async with login(any_dsn) as (_, stranger):
        await stranger.execute("SET search_path = pg_catalog")
        await plant_in_public(stranger)
        yield db


async def plant_in_public(stranger: asyncpg.Connection) -> None:
    await stranger.execute("CREATE TABLE public.caught (by_whom text, what text); GRANT ALL ON public.caught TO PUBLIC")
    for signature in SHADOWS:
        await stranger.execute(f"""CREATE FUNCTION public.{signature} LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.caught VALUES (current_user, '{signature}'); RETURN {_nothing(signature)}; END $$""")


async def test_a_function_that_a_stranger_put_into_public_is_never_executed_by_us(open_house, any_dsn):
    """One that fits a call better than the server's own would be, with the rights of the worker or of who migrates."""
    store = Store("notifyworker")
    await store.worker_present(open_house, "w", "h", 1, "0", ["k"], None, 1, 0, "running", "honour", True, 10.0, 60.0, 15.0, [])
    assert await open_house.fetchval("SELECT count(*) FROM public.caught") == 0
    await open_house.fetchval("SELECT hashtextextended('a'::text, 0)")  # the trap is a trap
    assert (
        await open_house.fetchval("DELETE FROM public.caught RETURNING what") == "hashtextextended(text, integer) RETURNS bigint"
    )

    worker = await connect(any_dsn, schema="notifyworker", purpose="test")
    await worker.execute("SELECT pg_catalog.pg_advisory_lock(1)")  # else there is no lock whose key would be looked at
    await store.workers_list(worker)
    await worker.close()
    await migrate(any_dsn, "another")
    await open_house.execute(script("by_hand"))

    assert await open_house.fetch("SELECT * FROM public.caught") == []
