"""Projects separated by row-level security: a bound role sees and does its own only, and no escape shows more."""

import contextlib
import io
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from servers import as_role, eventually
from test_roles import REFUSED, login

from notifyworker import Client, Run, Worker
from notifyworker.database import connect
from notifyworker.errors import DatabaseUnavailable, RunNotFound
from notifyworker.migrate import check, migrations, render
from notifyworker.store import Store

ROLES = ("producer", "operator", "observer")
HIDDEN = "hidden-of-b"
STATEMENTS = ("claim", "lanes", "ready_since", "heartbeat", "held", "progress", "lock", "settle", "settled",
              "give_back", "reap", "expire", "orphans", "keys_forget", "absent_holders", "steps_put", "steps_load", "step_result", "run_logs_put")  # fmt: skip


@dataclass
class House:
    """An installation with projects a and b, each with a live and a settled run, and a session that is bound to a."""

    dsn: str
    owner: asyncpg.Connection
    name: str
    a: asyncpg.Connection
    live: dict[str, UUID]
    settled: dict[str, UUID]


async def insert(db: asyncpg.Connection, project: str, text: str, **columns: Any) -> UUID:
    more = "".join(f", {name}" for name in columns)
    places = "".join(f", ${n + 3}" for n in range(len(columns)))
    query = f"INSERT INTO notifyworker.runs (kind, project_id, payload{more}) VALUES ('k', $1, to_jsonb($2::text){places})"
    return await db.fetchval(f"{query} RETURNING run_id", project, text, *columns.values())


@contextlib.asynccontextmanager
async def house_of(dsn: str, *, separated: bool = True) -> AsyncIterator[House]:
    owner = await asyncpg.connect(dsn)
    if owner.get_server_version()[0] < 15:
        await owner.close()
        pytest.skip("projects can be separated from PostgreSQL 15 on")
    live, settled = {}, {}
    for project, text in (("a", "own"), ("b", HIDDEN)):
        live[project] = await insert(owner, project, text, idempotency_key=f"key-{text}")
        settled[project] = await insert(owner, project, text)
        await owner.execute("SELECT notifyworker.cancel($1)", settled[project])
    if separated:
        await owner.execute("SELECT notifyworker.separate_projects()")
    async with login(dsn, *(f"notifyworker_{role}" for role in ROLES)) as (name, session):
        await owner.execute("SELECT notifyworker.bind_role($1, 'a')", name)
        yield House(dsn, owner, name, session, live, settled)
    await owner.close()


@pytest.fixture
async def house(dsn: str) -> AsyncIterator[House]:
    async with house_of(dsn) as house:
        yield house


@pytest.fixture
async def any_house(any_dsn: str) -> AsyncIterator[House]:
    """On each of the two versions, for what the rest stands on."""
    async with house_of(any_dsn) as house:
        yield house


async def projects(session: asyncpg.Connection, relation: str = "all_runs") -> set[str]:
    return {row["project_id"] for row in await session.fetch(f"SELECT project_id FROM notifyworker.{relation}")}


# What a bound role sees and does


async def test_nothing_is_separated_until_the_owner_says_so(any_dsn):
    async with house_of(any_dsn, separated=False) as house:
        assert await projects(house.a) == {"a", "b"}
        assert await house.a.fetchval("SELECT notifyworker.enqueue('k', project_id => 'b')")
        with pytest.raises(REFUSED):
            await house.a.execute("SELECT notifyworker.separate_projects(false)")


async def test_a_bound_role_reads_its_own_project_alone(any_house):
    for relation in ("runs", "run_history", "all_runs", "idempotency_keys"):
        assert await projects(any_house.a, relation) == {"a"}, relation
        assert await projects(any_house.owner, relation) == {"a", "b"}
    await any_house.owner.execute("""INSERT INTO notifyworker.reaps (run_id, kind, project_id, attempt, taken_from, taken_by, reason, became)
        SELECT run_id, kind, project_id, 1, 'x', 'y', 'presumed_dead', 'pending' FROM notifyworker.runs""")
    assert await projects(any_house.a, "reaps") == {"a"}
    await any_house.owner.execute("""
        INSERT INTO notifyworker.steps (run_id, run_created_at, started_at, finished_at, lease_token, position, attempt, is_shadow, project_id, name)
        SELECT run_id, created_at, now(), now(), 1, 1, 1, false, project_id, 's' FROM notifyworker.all_runs;
        INSERT INTO notifyworker.run_logs (run_id, run_created_at, lease_token, line_count, cut, attempt, is_whole, project_id, lines)
        SELECT run_id, created_at, 1, 1, 0, 1, true, project_id, '[1]' FROM notifyworker.all_runs""")
    for table in ("steps", "run_logs"):
        assert await projects(any_house.owner, table) == {"a", "b"}
        assert await projects(any_house.a, table) == {"a"}


async def test_a_bound_role_inserts_for_its_own_project_alone(house):
    assert await insert(house.a, "a", "mine")
    assert await house.a.fetchval("SELECT notifyworker.enqueue('k', project_id => 'a')")
    for project in ("a", "b"):
        with pytest.raises(asyncpg.FeatureNotSupportedError, match="COPY FROM"):  # the server's own refusal
            await house.a.copy_records_to_table(
                "runs", schema_name="notifyworker", columns=["kind", "project_id"], records=[("copied", project)]
            )
    for project in ("b", "default"):
        with pytest.raises(REFUSED):
            await insert(house.a, project, "not mine")
        with pytest.raises(REFUSED, match=f'may not enqueue for the project "{project}"'):
            await house.a.fetchval("SELECT notifyworker.enqueue('k', project_id => $1)", project)
    assert await house.owner.fetchval("SELECT count(*) FROM notifyworker.runs") == 4


async def test_a_bound_role_limits_its_own_project_alone(any_house):
    house = any_house
    await house.owner.execute("SELECT notifyworker.set_limit(max_running => 5)")
    await house.owner.execute("SELECT notifyworker.set_limit(project_id => 'b', max_running => 5)")
    await house.a.execute("SELECT notifyworker.set_limit(project_id => 'a', max_running => 1)")
    for project in (None, "b"):
        with pytest.raises(REFUSED, match="may not limit"):
            await house.a.execute("SELECT notifyworker.set_limit(project_id => $1, max_running => 1)", project)
        with pytest.raises(REFUSED, match="may not change limits"):
            await house.a.execute("SELECT notifyworker.remove_limit(project_id => $1)", project)
    assert await projects(house.a, "limits") == {"a"}
    assert await projects(house.owner, "limits") == {"", "a", "b"}
    await house.owner.execute("""INSERT INTO notifyworker.places (limit_id, project_id, key, place, run_id, lease_owner)
        SELECT 0, project_id, payload::text, 0, run_id, 'w' FROM notifyworker.runs""")
    assert await projects(house.a, "places") == {"a"}
    await house.owner.execute("INSERT INTO notifyworker.rates SELECT limit_id, project_id, '', now() FROM notifyworker.limits")
    assert await projects(house.a, "rates") == {"a"}


async def test_runs_of_another_project_are_not_there_for_it(any_house):
    for function in ("cancel", "retry", "forget"):
        for run_id in (any_house.live["b"], any_house.settled["b"]):
            with pytest.raises(asyncpg.NoDataFoundError, match=f"no run has the id {run_id}"):
                await any_house.a.execute(f"SELECT notifyworker.{function}($1)", run_id)
    assert await any_house.owner.fetchval("SELECT count(*) FROM notifyworker.all_runs WHERE project_id = 'b'") == 2

    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await any_house.a.execute("SELECT notifyworker.cancel($1)", any_house.settled["a"])
    assert await any_house.a.fetchval("SELECT notifyworker.cancel($1)", any_house.live["a"]) == "cancelled"
    assert await any_house.a.fetchval("SELECT notifyworker.retry($1)", any_house.settled["a"]) == any_house.settled["a"]
    await any_house.a.execute("SELECT notifyworker.forget($1)", any_house.live["a"])


async def test_a_role_that_is_bound_to_nothing_sees_nothing_and_one_bound_to_all_sees_all(house):
    async with login(house.dsn, *(f"notifyworker_{role}" for role in ROLES)) as (name, session):
        assert await projects(session) == set()
        with pytest.raises(REFUSED):
            await insert(session, "a", "mine")
        with pytest.raises(asyncpg.NoDataFoundError):
            await session.execute("SELECT notifyworker.cancel($1)", house.live["a"])
        await house.owner.execute("SELECT notifyworker.bind_role($1, '')", name)
        assert await projects(session) == {"a", "b"}
        assert await insert(session, "c", "new")
        assert await session.fetchval("SELECT notifyworker.cancel($1)", house.live["b"]) == "cancelled"
        assert await house.owner.fetchval("SELECT notifyworker.unbind_role($1)", name) == 1
        assert await projects(session) == set()


async def test_who_inherits_from_a_bound_role_is_bound_and_who_acts_as_one_is_that_one(house):
    """A login of a pool that takes another role by SET ROLE, as gateways do, is that role for us as well."""
    async with login(house.dsn) as (member, session), login(house.dsn) as (gateway, pooled):
        await house.owner.execute(f"GRANT {house.name} TO {member}")
        assert await projects(session) == {"a"}
        assert await session.fetchval("SELECT notifyworker.cancel($1)", house.live["a"]) == "cancelled"

        await house.owner.execute(f"ALTER ROLE {gateway} NOINHERIT; GRANT {house.name} TO {gateway}")
        await house.owner.execute("SELECT notifyworker.bind_role($1, 'b')", gateway)
        await pooled.execute(f"SET ROLE {house.name}")
        assert await projects(pooled) == {"a"}
        with pytest.raises(REFUSED):
            await pooled.execute("SELECT notifyworker.enqueue('k', project_id => 'b')")
        assert await pooled.fetchval("SELECT notifyworker.enqueue('k', project_id => 'a')")
        await house.owner.execute("SELECT notifyworker.unbind_role($1)", gateway)


async def test_a_binding_is_the_owners_alone_to_change_and_shows_itself_alone(house):
    async with login(house.dsn) as (other, _):
        await house.owner.execute("SELECT notifyworker.bind_role($1, 'b')", other)
        for statement in (
            f"SELECT notifyworker.bind_role('{house.name}', 'b')",
            f"INSERT INTO notifyworker.project_roles VALUES ('{house.name}', 'b')",
            "UPDATE notifyworker.project_roles SET project_id = 'b'",
            "SELECT notifyworker.separate_projects(false)",
            f"SET ROLE {other}",
            "SET SESSION AUTHORIZATION postgres",
            f"GRANT {other} TO {house.name}",
        ):
            with pytest.raises(REFUSED):
                await house.a.execute(statement)
        rows = await house.a.fetch("SELECT * FROM notifyworker.project_roles")
        assert [tuple(row) for row in rows] == [(house.name, "a")]
        assert await house.a.fetchval("SELECT notifyworker.projects_of($1)", house.name) == ["a"]
        assert await house.a.fetchval("SELECT notifyworker.projects_of($1)", other) == []
        await house.owner.execute("SELECT notifyworker.unbind_role($1)", other)
    with pytest.raises(asyncpg.UndefinedObjectError, match='there is no role "nobody-at-all"'):
        await house.owner.execute("SELECT notifyworker.bind_role('nobody-at-all', 'a')")


async def test_a_binding_whose_role_is_gone_disturbs_nobody(house):
    async with login(house.dsn) as (gone, _):
        await house.owner.execute("SELECT notifyworker.bind_role($1, 'b')", gone)
    assert await projects(house.a) == {"a"}
    assert await house.a.fetchval("SELECT notifyworker.enqueue('k', project_id => 'a')")


async def test_it_is_switched_off_again(house):
    await house.owner.execute("SELECT notifyworker.separate_projects(false)")

    assert await projects(house.a) == {"a", "b"}
    assert await house.a.fetchval("SELECT notifyworker.cancel($1)", house.live["b"]) == "cancelled"
    rows = await house.owner.fetch("""SELECT relname FROM pg_class WHERE relnamespace = 'notifyworker'::regnamespace
                                         AND relrowsecurity AND relname <> 'project_roles'""")
    assert rows == []


async def test_where_a_view_reads_with_its_owners_rights_nothing_is_half_separated(dsn, connection):
    """PostgreSQL 14, played by a function that takes every server for one."""
    (text,) = [m.text for m in migrations() if m.name == "projects"]
    (function,) = re.findall(r"CREATE FUNCTION \{schema\}\.separate_projects.*?^END \$\$;", text, re.MULTILINE | re.DOTALL)
    old = render(function, "notifyworker").replace("150000", "990000").replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
    await connection.execute(old)

    with pytest.raises(asyncpg.FeatureNotSupportedError, match="from PostgreSQL 15 on"):
        await connection.execute("SELECT notifyworker.separate_projects()")

    assert not await connection.fetchval("SELECT relrowsecurity FROM pg_class WHERE oid = 'notifyworker.runs'::regclass")
    await connection.execute("SELECT notifyworker.separate_projects(false)")


async def test_the_switch_gives_up_soon_behind_a_reader_and_leaves_nothing_half_done(dsn):
    """Claims would queue up behind it."""
    async with house_of(dsn, separated=False) as house:
        async with house.owner.transaction():
            await house.owner.execute("SELECT FROM notifyworker.run_history")
            other = await asyncpg.connect(dsn)
            with pytest.raises(asyncpg.LockNotAvailableError):
                await other.execute("SELECT notifyworker.separate_projects()", timeout=10)
            await other.close()
        assert await projects(house.a) == {"a", "b"}
        policies = "SELECT count(*) FROM pg_policies WHERE schemaname = 'notifyworker' AND tablename <> 'project_roles'"
        assert await house.owner.fetchval(policies) == 0


# Escapes

LEAK = """CREATE FUNCTION pg_temp.leak(what text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE COST 0.0000001 AS
          $$ BEGIN RAISE NOTICE 'leaked %', what; RETURN true; END $$"""


async def test_no_function_sees_a_row_before_the_policy(any_house):
    """A planner may call a cheap function before a dear filter: the policy has to come first all the same."""
    told: list[str] = []
    any_house.a.add_log_listener(lambda _, message: told.append(message.message))
    await any_house.a.execute(LEAK)
    for relation in ("runs", "run_history", "all_runs"):
        for query in (
            f"SELECT project_id FROM notifyworker.{relation} WHERE pg_temp.leak(payload::text)",
            f"EXPLAIN ANALYZE SELECT project_id FROM notifyworker.{relation} WHERE pg_temp.leak(payload::text)",
            f"SELECT count(*) FILTER (WHERE pg_temp.leak(payload::text)) FROM notifyworker.{relation}",
        ):
            await any_house.a.execute(query)
        # An error of a cast tells its operand.
        with pytest.raises(asyncpg.InvalidTextRepresentationError) as error:
            await any_house.a.execute(f"SELECT FROM notifyworker.{relation} WHERE (payload #>> '{{}}')::int = 1")
        assert HIDDEN not in str(error.value)
    assert any("own" in text for text in told)
    assert [text for text in told if HIDDEN in text] == []


async def test_partitions_show_nothing_past_their_parent(any_house):
    """Even to a role that was granted all tables, and a partition that is made later as well."""
    await any_house.owner.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA notifyworker TO {any_house.name}")
    last = await any_house.owner.fetchval("SELECT max(relname) FROM pg_class WHERE relname ~ '^run_history_[0-9]{8}$'")
    await any_house.owner.execute(f"DROP TABLE notifyworker.{last}; SELECT notifyworker.make_partitions()")
    partitions = await any_house.owner.fetch("""SELECT relid::regclass::text AS name FROM pg_partition_tree('notifyworker.run_history')
                                             WHERE isleaf""")
    assert f"notifyworker.{last}" in {row["name"] for row in partitions}
    await any_house.owner.execute(f"""INSERT INTO notifyworker.{last} SELECT (h).* FROM (SELECT jsonb_populate_record(h, jsonb_build_object(
        'finished_at', right('{last}', 8)::date::timestamp AT TIME ZONE 'UTC')) AS h FROM notifyworker.run_history AS h) AS x""")
    await any_house.owner.execute(f"GRANT SELECT ON notifyworker.{last} TO {any_house.name}")

    for row in partitions:
        assert await any_house.a.fetchval(f"SELECT count(*) FROM {row['name']}") == 0, row["name"]
    assert await any_house.owner.fetchval(f"SELECT count(*) FROM notifyworker.{last}") == 2
    assert await projects(any_house.a, "run_history") == {"a"}


async def test_views_copies_and_switches_show_no_more(house):
    await house.owner.execute(
        f'GRANT CREATE ON DATABASE "{await house.owner.fetchval("SELECT current_database()")}" TO {house.name}'
    )
    await house.a.execute("CREATE SCHEMA mine; CREATE VIEW mine.seen AS SELECT * FROM notifyworker.all_runs")
    assert {row["project_id"] for row in await house.a.fetch("SELECT project_id FROM mine.seen")} == {"a"}
    await house.a.execute("CREATE TABLE mine.copied AS TABLE notifyworker.all_runs")
    assert await house.a.fetchval("SELECT count(*) FROM mine.copied WHERE project_id <> 'a'") == 0
    out = io.BytesIO()
    await house.a.copy_from_query("SELECT * FROM notifyworker.all_runs", output=out)
    await house.a.copy_from_table("runs", schema_name="notifyworker", output=out)
    assert b"own" in out.getvalue()
    assert HIDDEN.encode() not in out.getvalue()

    await house.a.execute("SET row_security = off")
    with pytest.raises(REFUSED, match="row-level security"):
        await house.a.execute("SELECT * FROM notifyworker.all_runs")
    await house.a.execute("RESET row_security; SET notifyworker.project = 'b'")
    assert await projects(house.a) == {"a"}
    prepared = await house.a.prepare("SELECT DISTINCT project_id FROM notifyworker.all_runs")
    assert await prepared.fetch() == [("a",)]


async def test_statistics_of_columns_show_nothing(house):
    await house.owner.execute("ANALYZE notifyworker.runs; ANALYZE notifyworker.run_history")
    for row in await house.a.fetch("SELECT tablename, most_common_vals::text FROM pg_stats"):
        assert HIDDEN not in str(row)
        assert row["tablename"] not in {"runs", "run_history", "reaps"}


async def test_conflicts_and_errors_tell_nothing_of_other_projects(house):
    # A key is one within its project: that of b disturbs nobody in a.
    mine = await house.a.fetchval(f"SELECT notifyworker.enqueue('k', project_id => 'a', idempotency_key => 'key-{HIDDEN}')")
    assert mine != house.live["b"]
    holder = "SELECT notifyworker.key_holder($1, 'k', $2)"
    assert await house.a.fetchval(holder, "a", "key-own") == house.live["a"]
    assert await house.a.fetchval(holder, "b", f"key-{HIDDEN}") is None
    assert await house.owner.fetchval(holder, "b", f"key-{HIDDEN}") == house.live["b"]
    bad = [
        ("INSERT INTO notifyworker.runs (run_id, kind, project_id) VALUES ($1, 'k', 'a')", asyncpg.UniqueViolationError),
        ("INSERT INTO notifyworker.runs (run_id, kind, project_id) VALUES ($1, 'k', 'a') ON CONFLICT (run_id) DO UPDATE SET priority = 1",
         REFUSED),
        ("INSERT INTO notifyworker.runs (run_id, kind, project_id, priority) VALUES ($1, '', 'a', 1)", asyncpg.CheckViolationError),
        ("SELECT notifyworker.enqueue('k', project_id => 'a', run_id => $1)", asyncpg.UniqueViolationError),
    ]  # fmt: skip
    for statement, kind in bad:
        with pytest.raises(kind) as error:
            await house.a.execute(statement, house.live["b"])
        assert HIDDEN not in f"{error.value} {error.value.detail} {error.value.hint}"
    assert await house.a.fetch(
        "INSERT INTO notifyworker.runs (run_id, kind, project_id) VALUES ($1, 'k', 'a') ON CONFLICT DO NOTHING RETURNING run_id",
        house.live["b"],
    ) == []  # fmt: skip


async def test_a_definers_function_of_another_is_no_way_around(house):
    """Called by a bound session, a stranger's function does not enqueue for the stranger's projects."""
    async with login(house.dsn, "notifyworker_producer") as (other, session):
        database = await house.owner.fetchval("SELECT current_database()")
        await house.owner.execute(f'GRANT CREATE ON DATABASE "{database}" TO {other}')
        await house.owner.execute("SELECT notifyworker.bind_role($1, 'b')", other)
        await session.execute("""CREATE SCHEMA lent; GRANT USAGE ON SCHEMA lent TO PUBLIC;
            CREATE FUNCTION lent.enqueue() RETURNS uuid LANGUAGE sql SECURITY DEFINER AS
            $$ SELECT notifyworker.enqueue('k', project_id => 'b') $$""")
        assert await session.fetchval("SELECT lent.enqueue()")
        with pytest.raises(REFUSED):
            await house.a.fetchval("SELECT lent.enqueue()")
        await house.owner.execute("SELECT notifyworker.unbind_role($1)", other)


# Workers, the owner and clients


async def test_workers_work_for_all_projects(house):
    done: list[str] = []
    async with login(house.dsn, "notifyworker_worker") as (name, _):
        worker = Worker(dsn=as_role(house.dsn, name, name), drain_timeout_s=5)

        @worker.handler("k")
        async def k(run: Run, payload: str) -> None:
            done.append(run.project_id)

        async with worker:
            await eventually(lambda: len(done) == 2)
            await insert(house.a, "a", "more")
            await eventually(lambda: len(done) == 3)
    assert sorted(done) == ["a", "a", "b"]
    assert await house.owner.fetchval("SELECT count(*) FROM notifyworker.run_history WHERE state = 'completed'") == 3
    assert await house.a.fetchval("SELECT count(*) FROM notifyworker.run_history WHERE state = 'completed'") == 2


async def test_a_client_with_a_bound_login_is_of_that_project(house):
    async with Client(dsn=as_role(house.dsn, house.name, house.name)) as client:
        run_id = await client.enqueue("k", {}, project_id="a")
        assert {str(run_id), str(house.live["a"]), str(house.settled["a"])} == {
            str(run["run_id"]) for run in (await client.list())
        }
        with pytest.raises(RunNotFound):
            await client.get(house.live["b"])
        assert len(set(await client.enqueue_many("k", [1, 2], project_id="a"))) == 2


async def test_a_role_that_works_without_being_a_worker_is_told_so(house):
    """It would find nothing to claim, and wait for ever without a word."""
    async with login(house.dsn) as (name, session):
        await house.owner.execute(f"""GRANT USAGE ON SCHEMA notifyworker TO {name};
                                      GRANT ALL ON ALL TABLES IN SCHEMA notifyworker TO {name}""")
        with pytest.raises(DatabaseUnavailable, match=r"separated.*GRANT notifyworker_worker TO it"):
            await check(session, "notifyworker", house.dsn)
        await house.owner.execute("SELECT notifyworker.separate_projects(false)")
        await check(session, "notifyworker", house.dsn)


async def test_policies_change_no_plan_of_a_worker(any_dsn):
    """Neither a filter, nor a look at the bindings, nor a sort: the statements of a run's life are what they were."""
    async with house_of(any_dsn, separated=False) as house, login(any_dsn, "notifyworker_worker") as (name, _):
        worker = await connect(as_role(any_dsn, name, name), schema="notifyworker", purpose="test")
        plans = []
        for statement in STATEMENTS:
            text = Store("notifyworker")._sql[statement]
            nulls = ", ".join(["NULL"] * max(map(int, re.findall(r"\$(\d+)", text))))
            await worker.execute(f"PREPARE {statement} AS {text}")
            plans.append(f"EXPLAIN (COSTS OFF) EXECUTE {statement} ({nulls})")
        before = [await worker.fetch(plan) for plan in plans]
        await house.owner.execute("SELECT notifyworker.separate_projects()")
        after = [await worker.fetch(plan) for plan in plans]
        await worker.close()
        assert after == before
        assert "InitPlan" in str(await house.a.fetch("EXPLAIN SELECT payload FROM notifyworker.runs"))


async def test_the_example_of_the_documentation(any_dsn):
    """SECURITY.md"""
    text = (Path(__file__).parents[1] / "SECURITY.md").read_text()
    (example,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    async with house_of(any_dsn, separated=False) as house, login(any_dsn, "notifyworker_observer") as (name, session):
        await house.owner.execute(f"CREATE ROLE shop_app; CREATE ROLE support; GRANT shop_app TO {name}")
        try:
            await house.owner.execute(example)
            await insert(house.owner, "shop", "wares")
            assert await projects(session) == {"shop"}
            await house.owner.execute(f"REVOKE shop_app FROM {name}; GRANT support TO {name}")
            assert await projects(session) == {"a", "b", "shop"}
        finally:
            await house.owner.execute("DROP ROLE shop_app; DROP ROLE support")
