"""`notifyworker mcp`, asked by the official client over stdin and stdout."""

import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from mcp import Client, StdioServerParameters
from servers import as_role
from test_cli import PASSWORD, call, environment

from notifyworker.cli.mcp import _Tools
from notifyworker.cli.options import DatabaseOptions

PAGE = (Path(__file__).parents[1] / "docs" / "agents.md").read_text()
LOOKING = {"health", "list_runs", "show_run", "failed_by_error", "doctor"}
STEERING = {"enqueue_run", "retry_run", "cancel_run", "pause", "resume"}


@asynccontextmanager
async def agent(dsn: str, *options: str) -> AsyncIterator[Client]:
    where = StdioServerParameters(
        command=sys.executable, args=["-m", "notifyworker", "mcp", *options], env=environment({"NOTIFYWORKER_DSN": dsn})
    )
    async with Client(where, read_timeout_seconds=60) as client:
        yield client


async def told(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    assert answer.structured_content is not None
    return answer.structured_content


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    answer = await client.call_tool(tool, arguments)
    assert answer.is_error, answer.structured_content
    return answer.content[0].text


FAILED = """
WITH run AS (INSERT INTO notifyworker.runs (kind, payload) VALUES ('email.send', jsonb_build_object('text', repeat('x', 5000)))
             RETURNING run_id)
SELECT run_id FROM run
"""


async def test_it_looks_and_changes_nothing(dsn: str, connection: asyncpg.Connection) -> None:
    run_id = str(await connection.fetchval(FAILED))
    async with agent(dsn) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools.keys() == LOOKING
        assert all(tool.annotations.read_only_hint and tool.description for tool in tools.values())
        assert (await told(client, "health"))["live"]["pending"]["runs"] == 1
        (listed,) = (await told(client, "list_runs", kind="email.send", state="pending", since="1h"))["runs"]
        assert listed["run_id"] == run_id
        assert "payload" not in listed
        shown = await told(client, "show_run", run_id=run_id)
        assert shown["payload"]["text"].endswith(".. (1000 characters more)")
        assert (await told(client, "failed_by_error"))["failed"] == []
        examined = await told(client, "doctor")
        assert examined["verdict"] in {"ok", "note", "warning"}
        assert any(finding["name"] == "schema" for finding in examined["findings"])
        # What can't be is told so that it can be mended, and what is no tool does nothing.
        assert "run_id" in await refused(client, "show_run", run_id="7")
        assert "no run has the id" in await refused(client, "show_run", run_id="01a1e77d-8518-752e-bca9-269e0324aac3")
        assert "limit" in await refused(client, "list_runs", limit=1000)
        for tool in STEERING:
            assert "Unknown tool" in await refused(client, tool, run_id=run_id)
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.runs WHERE state = 'pending'") == 1


async def test_the_database_keeps_a_look_from_writing(dsn: str) -> None:
    async with _Tools(DatabaseOptions(dsn=dsn))._looking() as db:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await db.connection.execute("SELECT notifyworker.enqueue('a', '{}')")


async def test_with_leave_it_steers(dsn: str, connection: asyncpg.Connection) -> None:
    async with agent(dsn, "--allow-writes") as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools.keys() == LOOKING | STEERING
        assert [name for name, tool in tools.items() if tool.annotations.destructive_hint] == ["cancel_run"]
        new = await told(client, "enqueue_run", kind="email.send", payload={"to": "a"}, idempotency_key="k")
        again = await told(client, "enqueue_run", kind="email.send", payload={"to": "a"}, idempotency_key="k")
        assert (new["became"], again) == ("new", {**new, "became": "existing"})
        run_id = new["run_id"]
        assert await told(client, "cancel_run", run_id=run_id) == {"run_id": run_id, "state": "cancelled"}
        assert "is settled already" in await refused(client, "cancel_run", run_id=run_id)
        assert await told(client, "retry_run", run_id=run_id) == {"run_id": run_id, "state": "pending"}
        await told(client, "pause", kind="email.send", seconds=600, reason="the relay is down")
        assert (
            await connection.fetchval("SELECT reason FROM notifyworker.pauses WHERE kind = 'email.send'") == "the relay is down"
        )
        assert "name a kind or a project" in await refused(client, "pause")
        assert await told(client, "resume", kind="email.send") == {"resumed": True}
        assert await told(client, "resume", kind="email.send") == {"resumed": False}
        assert "kind" in await refused(client, "enqueue_run", kind="", payload={})


async def test_a_login_that_may_only_look(dsn: str, connection: asyncpg.Connection) -> None:
    await connection.execute(f"CREATE ROLE mcp_agent LOGIN PASSWORD '{PASSWORD}'; GRANT notifyworker_observer TO mcp_agent")
    try:
        async with agent(as_role(dsn, "mcp_agent", PASSWORD), "--allow-writes") as client:
            assert (await told(client, "health"))["live"]["pending"]["runs"] == 0
            said = await refused(client, "enqueue_run", kind="a", payload={})
            assert "permission denied" in said
            assert PASSWORD not in said
    finally:
        await connection.execute("DROP OWNED BY mcp_agent; DROP ROLE mcp_agent")


async def test_no_database_and_no_schema(empty_dsn: str) -> None:
    done = await call("mcp", env={"NOTIFYWORKER_DSN": empty_dsn})
    assert (done.code, done.out) == (3, "")
    assert "notifyworker migrate" in done.err


def test_the_page_has_every_tool() -> None:
    told_of = set(re.findall(r"`(\w+)`(?: \*)?", "\n".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE))))
    assert told_of == LOOKING | STEERING
