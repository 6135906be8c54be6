"""The README: what it shows is executed, and what it lists is what there is."""

import re
import shlex
import sys
import types
from pathlib import Path

import asyncpg
import pytest
from servers import SURELY_S, eventually
from test_cli import call

from notifyworker.errors import Code
from notifyworker.settings import Settings

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = [(m[1], m[2]) for m in re.finditer(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)]


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCKS if found == language]


def test_every_block_is_of_a_language_that_is_checked():
    assert {language for language, _ in BLOCKS} == {"python", "sh", "sql", "js", "go"}


async def test_the_handler_executes_what_the_inserts_insert(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    app = types.ModuleType("readme_app")
    sys.modules["readme_app"] = app
    handler, exact, host, producer = blocks("python")
    exec(compile(handler, "README.md", "exec"), app.__dict__)
    exec(compile(exact, "README.md", "exec"), app.__dict__)
    exec(compile(producer, "README.md", "exec"), app.__dict__)
    await connection.execute("CREATE TABLE public.bookings (number integer)")
    async with app.worker:
        await connection.execute("INSERT INTO notifyworker.runs (kind, payload) VALUES ('order.book', '{\"number\": 7}')")
        await eventually(lambda: connection.fetchval("SELECT number FROM public.bookings"))
        for statement in blocks("sql"):
            assert await connection.fetchval(statement.strip().rstrip(";")) is not None
        await app.order(dsn)
        completed = "SELECT count(*) FROM notifyworker.run_history WHERE state = 'completed' AND result ? 'sent_to'"
        await eventually(lambda: _is(connection, completed, 2))
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.runs WHERE run_at > now()") == 1

    exec(compile(host, "README.md", "exec"), app.__dict__)
    async with app.app.router.lifespan_context(app.app):
        mailed = await app.mail("7")
        assert (await app.app.state.client.wait(mailed["run_id"], timeout=SURELY_S))["result"] == {"sent_to": "e@example.org"}


async def test_the_commands_do_what_they_say(empty_dsn):
    for line in blocks("sh")[0].splitlines():
        program, *arguments = shlex.split(line)
        assert program == "notifyworker"
        done = await call(*arguments, env={"NOTIFYWORKER_DSN": empty_dsn})
        assert done.code == 0, done
        shown = done
    assert "pending" in shown.out


def test_the_log_events_are_those_of_the_code():
    (table,) = re.findall(r"^\| event \| level .*?\n\n", README, re.MULTILINE | re.DOTALL)
    told = {event for row in table.strip().splitlines()[2:] for event in re.findall(r"`([a-z_]+)`", row.split("|")[1])}
    code = "".join(file.read_text() for file in (Path(__file__).parents[1] / "notifyworker").rglob("*.py"))
    assert told <= set(re.findall(r"log\.\w+\(\s*\"(\w+)\"", code))


async def _is(conn: asyncpg.Connection, query: str, wanted: int) -> bool:
    return await conn.fetchval(query) == wanted


@pytest.mark.parametrize("language", ["js", "go"])
async def test_other_languages_insert_into_the_same_columns(connection, language):
    (text,) = blocks(language)
    (statement,) = re.findall(r'"(INSERT [^"]*)"', text)
    await connection.execute(statement, "email.send", "{}")


def test_the_settings_table_is_what_there_is():
    rows = re.findall(r"^\| `(\w+)`(?: \*)? \| (.*?) \|", README, re.MULTILINE)
    told = {name: default.strip("`") for name, default in rows if name in {*Settings.model_fields, "schema"}}
    fields = {("schema" if n == "schema_name" else n): f for n, f in Settings.model_fields.items()}
    assert told.keys() == fields.keys()
    for name, field in fields.items():
        if field.default is not None:
            assert told[name] == str(field.default), name


def test_the_error_codes_are_what_there_is():
    told = set(re.findall(r"^\| `(E-RUN-\d+)` \|", README, re.MULTILINE))
    assert told == {code for code in Code if code.startswith("E-RUN")}


def test_the_commands_are_there():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
