"""The examples of docs/integrations.md: other tools insert runs and install the schema, and a worker executes what they insert."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import asyncpg
import httpx
import pytest
import uvicorn
from servers import as_role, eventually, free_port
from test_cli import PASSWORD, environment, start
from test_host import load
from test_life import settled

from notifyworker.migrate import newest, statements

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "integrations.md").read_text()


def libpq(dsn: str) -> dict[str, str]:
    """The same database, as libpq's variables name it."""
    parts = urlsplit(dsn)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    found = {
        "PGDATABASE": parts.path.lstrip("/"),
        "PGHOST": parts.hostname or query.get("host", ""),
        "PGPORT": str(parts.port or query.get("port", "")),
        "PGUSER": parts.username or "",
        "PGPASSWORD": parts.password or "",
    }
    return {name: value for name, value in found.items() if value}


async def said(*command: str, env: Mapping[str, str], cwd: Path = EXAMPLES) -> str:
    surroundings = environment({"PYTHONPATH": f"{ROOT}:{EXAMPLES}", **env})
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=cwd, env=surroundings, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["starlette_app", "litestar_app"])
async def test_a_worker_in_the_lifespan(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    host = load(name)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(host.app, port=port, log_level="error", ws="none"))
    serving = asyncio.create_task(server._serve())
    await eventually(lambda: server.started)
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"http://127.0.0.1:{port}/greetings/world")
    assert (await settled(connection, UUID(answer.json()["run_id"])))["result"] == '"hello world"'
    server.should_exit = True
    await serving


async def test_django(empty_dsn: str) -> None:
    env = {**libpq(empty_dsn), "DJANGO_SETTINGS_MODULE": "django_shop.settings"}
    await said(sys.executable, "-W", "error", "-m", "django", "migrate", "--verbosity", "0", env=env)
    connection = await asyncpg.connect(empty_dsn)
    run_id = (await said(sys.executable, "-c", PLACE, env=env)).strip()
    assert await connection.fetchval("SELECT payload FROM notifyworker.runs WHERE run_id = $1::uuid", run_id) == '{"number": 7}'
    # The order exists already: neither a second one nor a second run.
    with pytest.raises(AssertionError, match="IntegrityError"):
        await said(sys.executable, "-c", PLACE, env=env)
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.runs") == 1

    worker = await start(
        "worker", "django_shop.worker:worker", "--no-sidecar", cwd=EXAMPLES, env={**env, "NOTIFYWORKER_DSN": empty_dsn}
    )
    try:
        await eventually(lambda: connection.fetchval("SELECT is_confirmed FROM django_shop_order WHERE number = 7"))
        assert json.loads((await settled(connection, UUID(run_id)))["result"]) == {"confirmed": 1}
        worker.terminate()
        assert await asyncio.wait_for(worker.wait(), 30) == 0
    finally:
        if worker.returncode is None:
            worker.kill()
        await worker.communicate()
    await said(sys.executable, "-m", "django", "migrate", "--verbosity", "0", "django_shop", "0001", env=env)
    assert await connection.fetchval("SELECT to_regnamespace('notifyworker')") is None
    await connection.close()


TASKS = """
import json, sys
import django; django.setup()
from datetime import timedelta
from django.db import transaction
from django.utils import timezone
from django.core import checks
from django_shop.models import Order
from django_shop.tasks import confirm_by_mail, count_attempts
from django_tasks.exceptions import InvalidTaskError, TaskResultDoesNotExist, TaskResultMismatch

assert not [m for m in checks.run_checks() if m.level >= checks.WARNING], checks.run_checks()
try:
    with transaction.atomic():
        Order.objects.create(number=8)
        lost = confirm_by_mail.enqueue(8)
        raise KeyError
except KeyError:
    pass
try:
    confirm_by_mail.get_result(lost.id)
    sys.exit("it was rolled back, and is there")
except TaskResultDoesNotExist:
    pass
with transaction.atomic():
    Order.objects.create(number=9)
    good = confirm_by_mail.enqueue(9, greeting="Hi")
assert (good.status, good.is_finished, good.attempts) == ("READY", False, 0)
bad = confirm_by_mail.enqueue(-1)
later = confirm_by_mail.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(9)
context = count_attempts.enqueue()
for wrong in ("7", "01a1e77d-8518-752e-bca9-269e0324aac3"):
    try:
        confirm_by_mail.get_result(wrong)
        sys.exit("there is no such result")
    except TaskResultDoesNotExist:
        pass
try:
    count_attempts.get_result(good.id)
    sys.exit("it is of another task")
except TaskResultMismatch:
    pass
try:
    confirm_by_mail.using(queue_name="other").enqueue(1)
    sys.exit("there is no such queue")
except InvalidTaskError:
    pass
try:
    confirm_by_mail.enqueue(object())
    sys.exit("it is no JSON")
except TypeError:
    pass
print(json.dumps([good.id, bad.id, later.id, context.id]))
"""
RESULTS = """
import json, sys
import django; django.setup()
from django_shop.tasks import confirm_by_mail, count_attempts
good, bad, later, context = json.loads(sys.argv[1])
done = confirm_by_mail.get_result(good)
assert (done.status, done.return_value, done.attempts) == ("SUCCESSFUL", {"confirmed": 1, "said": "Hi"}, 1), done
assert (done.args, done.kwargs) == ([9], {"greeting": "Hi"})
assert done.enqueued_at <= done.started_at <= done.finished_at
failed = confirm_by_mail.get_result(bad)
assert (failed.status, failed.attempts) == ("FAILED", 2), failed
assert [error.exception_class for error in failed.errors] == [ValueError, ValueError], failed.errors
assert "numbers begin with 0" in failed.errors[0].traceback
waits = confirm_by_mail.get_result(later)
assert (waits.status, waits.is_finished) == ("READY", False)
assert count_attempts.get_result(context).return_value == 1
"""


async def test_djangos_own_tasks(empty_dsn: str) -> None:
    env = {**libpq(empty_dsn), "DJANGO_SETTINGS_MODULE": "django_shop.settings"}
    await said(sys.executable, "-m", "django", "migrate", "--verbosity", "0", env=env)
    placed = await said(sys.executable, "-W", "error", "-c", TASKS, env=env)
    good, bad, later, context = json.loads(placed)
    connection = await asyncpg.connect(empty_dsn)
    row = await connection.fetchrow("SELECT kind, priority, payload FROM notifyworker.runs WHERE run_id = $1::uuid", good)
    assert (row["kind"], row["priority"]) == ("django.mail", 5)
    assert await connection.fetchval("SELECT run_at > now() FROM notifyworker.runs WHERE run_id = $1::uuid", later)
    unknown = """INSERT INTO notifyworker.runs (kind, payload)
                 VALUES ('django.default', '{"task": "os.getcwd", "backend": "default"}') RETURNING run_id"""
    stranger = await connection.fetchval(unknown)
    worker = await start(
        "worker", "django_shop.worker:worker", "--no-sidecar", cwd=EXAMPLES, env={**env, "NOTIFYWORKER_DSN": empty_dsn}
    )
    try:
        for run_id in (good, bad, context):
            await settled(connection, UUID(run_id))
        refused = await settled(connection, stranger)
        assert refused["error_code"] == "E-RUN-006"
        assert "is no task that this worker knows" in json.loads(refused["errors"])[0]["message"]
    finally:
        worker.terminate()
        await asyncio.wait_for(worker.wait(), 30)
        await worker.communicate()
    await said(sys.executable, "-W", "error", "-c", RESULTS, placed, env=env)
    await connection.close()


PLACE = """
import django; django.setup()
from django_shop.orders import place
print(place(7))
"""


async def test_alembic_and_sqlalchemy(empty_dsn: str) -> None:
    env = {"DATABASE_URL": empty_dsn}
    alembic = (sys.executable, "-c", ALEMBIC)
    await said(*alembic, "upgrade", "head", env=env)
    connection = await asyncpg.connect(empty_dsn)
    assert await connection.fetchval("SELECT max(version) FROM notifyworker.migrations") == newest()
    (session,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    url = empty_dsn.replace("postgresql://", "postgresql+psycopg://", 1)
    use = f"{session}\nfrom sqlalchemy import create_engine\nwith Session(create_engine({url!r})) as s:\n    print(place(s, 7)); s.commit()\n"
    run_id = (await said(sys.executable, "-c", use, env=env)).strip()
    assert await connection.fetchval("SELECT payload FROM notifyworker.runs WHERE run_id = $1::uuid", run_id) == '{"number": 7}'
    await said(*alembic, "downgrade", "base", env=env)
    assert await connection.fetchval("SELECT to_regnamespace('notifyworker')") is None
    await connection.close()


ALEMBIC = """
import sys
from alembic import command
from alembic.config import Config
config = Config()
config.set_main_option("script_location", "alembic_shop")
config.set_main_option("path_separator", "os")
getattr(command, sys.argv[1])(config, sys.argv[2])
"""


async def test_statements_for_another_tool(empty_dsn: str, dsn: str) -> None:
    """From one version to another, in the tool's own transaction, whose search_path is the tool's again afterwards."""
    connection = await asyncpg.connect(empty_dsn)
    try:
        for above, to in ((0, 3), (3, newest())):
            async with connection.transaction():
                await connection.execute("SET LOCAL search_path = public")
                for statement in statements("notifyworker", above=above, to=to):
                    await connection.execute(statement)
                assert await connection.fetchval("SHOW search_path") == "public"
                assert await connection.fetchval("SELECT max(version) FROM notifyworker.migrations") == to
    finally:
        await connection.close()
    from test_cli import _catalogue

    assert await _catalogue(empty_dsn) == await _catalogue(dsn)
    for wrong in ({"above": newest()}, {"to": newest() + 1}, {"above": -1}, {"above": 5, "to": 5}):
        with pytest.raises(ValueError, match="there are the versions 1 to"):
            statements("notifyworker", **wrong)


async def inserted(dsn: str, tmp_path: Path, run_id: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        row = await connection.fetchrow("SELECT kind, payload FROM notifyworker.runs WHERE run_id = $1::uuid", run_id)
        assert tuple(row) == ("email.send", '{"to": "o\'neill@example.org"}')
    finally:
        await connection.close()


@pytest.mark.skipif(shutil.which("psql") is None, reason="there is no psql")
async def test_psql(dsn: str, tmp_path: Path) -> None:
    command = (
        "psql",
        dsn,
        "--no-psqlrc",
        "--quiet",
        "--no-align",
        "--tuples-only",
        "-v",
        "ON_ERROR_STOP=1",
        "-v",
        "to=o'neill@example.org",
    )
    run_id = (await said(*command, "-f", "producer.sql", env={})).strip()
    await inserted(dsn, tmp_path, run_id)
    assert (await said(*command, "-f", "producer.sql", env={})).strip() == run_id  # its idempotency key


MODULES = ROOT / "benchmarks" / "contenders" / "node_modules"


@pytest.mark.skipif(
    shutil.which("node") is None or not (MODULES / "pg").exists(), reason="there is no Node with pg: make bench brings it"
)
async def test_node(dsn: str, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "producer.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(MODULES)
    where = libpq(dsn)
    given = dsn if "?" not in dsn else ""  # pg takes a socket's directory from the environment
    run_id = (await said("node", "producer.mjs", given, "o'neill@example.org", env=where, cwd=tmp_path)).strip()
    await inserted(dsn, tmp_path, run_id)


async def test_postgrest(dsn: str, connection: asyncpg.Connection) -> None:
    """The statements that PostgREST makes of such requests, as the role of an API that may do nothing but produce."""
    role = f"web_{os.urandom(4).hex()}"
    grant = re.search(r"GRANT notifyworker_producer TO web", PAGE)[0]
    await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'; {grant[:-3]}{role}")
    web = await asyncpg.connect(as_role(dsn, role, PASSWORD))
    body = re.search(r"`(\{\"kind\".*?\}\})`", PAGE)[1]
    try:
        run_id = await web.fetchval(POSTGREST.format(columns="runs.run_id"), body)
        assert (
            await connection.fetchval("SELECT payload ->> 'to' FROM notifyworker.runs WHERE run_id = $1", run_id)
            == "a@example.org"
        )
        with pytest.raises(asyncpg.InsufficientPrivilegeError):  # Prefer: return=representation without select=
            await web.fetchval(POSTGREST.format(columns="runs.*"), body)
        call = "SELECT notifyworker.enqueue(kind => $1, payload => $2, idempotency_key => $3)"
        one, two = [await web.fetchval(call, "email.send", "{}", "k") for _ in range(2)]
        assert one == two
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await web.fetch("SELECT kind FROM notifyworker.runs")
    finally:
        await web.close()
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


POSTGREST = """
WITH source AS (
    INSERT INTO notifyworker.runs (kind, payload)
    SELECT body.kind, body.payload
      FROM (SELECT $1::json AS data) AS given, LATERAL json_to_record(given.data) AS body (kind text, payload jsonb)
    RETURNING {columns})
SELECT source.run_id FROM source"""


def test_the_page_names_files_that_are_there() -> None:
    for path in re.findall(r"\]\(\.\./(.+?)\)", PAGE):
        assert (ROOT / path).exists(), path


def test_what_the_page_shows_of_djangos_tasks_is_what_is_executed() -> None:
    for name, block in re.findall(r"^```python (\w+\.py)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        code = re.sub(r"  #.*", "", (EXAMPLES / "django_shop" / name).read_text())
        for line in block.splitlines():
            assert line in code, line


SENTRY = """
import asyncio, functools, json
import sentry_sdk
from sentry_sdk.transport import Transport

kept = []
class InMemory(Transport):
    def capture_envelope(self, envelope):
        kept.append(envelope.get_event())

sentry_sdk.init = functools.partial(sentry_sdk.init, transport=InMemory, auto_enabling_integrations=False)  # else as in the example
import sentry_app
from notifyworker import Client

async def main():
    async with sentry_app.worker, Client() as client:
        ids = [await client.enqueue(kind, {"card": card}, max_attempts=1) for kind, card in
               (("card.charge", "4929-secret"), ("card.check", "none-secret"), ("card.charge", "5"))]
        for run_id in ids[:2]:
            await client.wait(run_id, timeout=30)
        while True:
            snoozed = await client.get(ids[2])
            if snoozed["lease_token"] == 1 and snoozed["state"] == "pending":
                break
            await asyncio.sleep(0.02)
    print(json.dumps([list(map(str, ids)), kept], default=str))

asyncio.run(main())
"""


async def test_sentry(dsn: str) -> None:
    env = {"NOTIFYWORKER_DSN": dsn, "SENTRY_DSN": "https://key@sentry.invalid/1"}
    ids, events = json.loads((await said(sys.executable, "-W", "error", "-c", SENTRY, env=env)).splitlines()[-1])
    of = {event["tags"]["run_id"]: event for event in events}
    assert list(of) == ids[:2] or list(of) == ids[1::-1]  # what was snoozed is no error
    charge, check = (of[run_id] for run_id in ids[:2])
    assert charge["exception"]["values"][-1]["type"] == "BankError"
    assert charge["exception"]["values"][-1]["stacktrace"]["frames"][-1]["function"] == "charge"
    wanted = {"kind": "card.charge", "attempt": 1, "project_id": "default", "is_last": True, "run_id": ids[0]}
    assert charge["tags"].items() >= wanted.items()
    assert check["exception"]["values"][-1]["type"] == "ValueError"
    assert "4929" not in json.dumps(events)
    assert "secret" not in json.dumps(events)
