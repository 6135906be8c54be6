"""/openapi.json against the sidecar: the document says what there is, and what it says holds."""

import asyncio
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks
from servers import SURELY_S, eventually
from test_http import Caller, ask, claim  # noqa: F401 - a fixture
from test_life import insert, settled

from notifyworker import Fail, Run
from notifyworker.http import openapi, query, routes
from notifyworker.http.auth import OPEN
from notifyworker.store import NewRun

LATE = datetime(9999, 12, 31, tzinfo=UTC)
#: Read before any worker starts: what it imports keeps a loaded machine's event loop for seconds.
SCHEMA = schemathesis.openapi.from_dict(openapi.document("0"))
EXAMPLES = 20  # an operation and a manner, of valid and of invalid requests


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def parameters(document: dict[str, Any], path: str) -> set[str]:
    return {p["name"] for p in document["paths"][path]["get"].get("parameters", ()) if p["in"] == "query"}


async def test_the_document_has_the_routes_and_parameters_that_there_are(ask: Caller) -> None:  # noqa: F811
    document = (await ask.get("/openapi.json")).json
    application = ask.sidecar._runner.app  # type: ignore[union-attr]
    there = {(r.method, r.resource.canonical) for r in application.router.routes() if r.method != "HEAD"}  # type: ignore[union-attr]

    assert document["openapi"].startswith("3.1")
    assert {(method, path) for method, path, _ in operations(document)} == there
    assert len({operation["operationId"] for _, _, operation in operations(document)}) == len(there)
    assert {path for _, path, operation in operations(document) if operation.get("security") == []} == OPEN
    given = {"limit": "1", "cursor": query.cursor_of(uuid.UUID(int=0)), "state": "failed", "kind": "k", "project_id": "p"}
    for path in ("/runs", "/leases", "/reaper", "/workers", "/openapi.json"):
        for name, value in given.items():
            is_taken = (await ask.get(path, params={name: value})).status == 200
            assert is_taken == (name in parameters(document, path)), (path, name)


def test_the_document_has_the_columns_that_there_are() -> None:
    document = openapi.document("0")

    assert parameters(document, "/runs") == routes._FILTERS
    assert parameters(document, "/leases") == routes._PAGE
    assert set(document["components"]["schemas"]["NewRun"]["properties"]) == set(NewRun.__dataclass_fields__)


@pytest.fixture
async def url(make_worker, connection) -> Any:
    """A worker with a sidecar, and runs of every state and sort."""
    worker = make_worker(sidecar=True, port=0)

    @worker.handler("fine")
    async def fine(run: Run, payload: Any) -> Any:
        return payload

    @worker.handler("fail")
    async def fail(run: Run) -> None:
        raise Fail("\x1b[31m \u202e")

    @worker.handler("held")
    async def held(run: Run) -> None:
        await asyncio.sleep(3600)

    async with worker:
        await settled(connection, await insert(connection, "fine", '{"a": [1, null, "ä"]}', is_shadow=True))
        await settled(connection, await insert(connection, "fail"))
        for payload in ("1e400", "9" * 5000, "[" * 5000 + "]" * 5000, '"\u202e"'):
            columns = {
                "max_attempts": 5,
                "priority": -7,
                "timeout": timedelta(hours=1),
                "expires_at": LATE,
                "idempotency_key": payload[:9],
            }
            await insert(connection, "nobody's", payload, **columns)
        held_id = await insert(connection, "held")
        await eventually(lambda: _is_running(connection, held_id))
        yield worker.url
        await connection.execute("SELECT notifyworker.cancel(run_id) FROM notifyworker.runs WHERE run_id = $1", held_id)


async def _is_running(connection: Any, run_id: uuid.UUID) -> bool:
    return await connection.fetchval("SELECT state = 'running' FROM notifyworker.runs WHERE run_id = $1", run_id)


#: NUL, depth and surrogates in a payload, years beyond 9999, a time that is over, a pause of nothing in particular, a limit of nothing, a
#: step that is not recorded, a rule without kind or version, and cron that can't be read are refused though JSON schema can't say so.
NOT_SAID = {
    name: [checks.positive_data_acceptance]
    for name in (
        "insert_run",
        "login",
        "pause",
        "resume",
        "put_schedule",
        "set_limit",
        "remove_limit",
        "set_mirror",
        "remove_mirror",
        "shadow_report",
        "promote",
        "switch_back",
        "retry_run",
        "replay_run",
        "cancel_many",
        "retry_many",
        "set_retention",
        "list_failed",
        "act",
        "asset",
    )
}


async def test_what_the_document_says_holds(url, connection) -> None:
    ids = [str(row["run_id"]) for row in await connection.fetch("SELECT run_id FROM notifyworker.all_runs WHERE kind <> 'held'")]
    called: list[tuple[str, int]] = []

    def call(case: Any, name: str) -> None:
        response = case.call(base_url=url, timeout=SURELY_S)
        called.append((name, response.status_code))
        case.validate_response(response, excluded_checks=NOT_SAID.get(name, []))

    def attack(operation: Any, mode: GenerationMode, **fixed: Any) -> None:
        name = operation.definition.raw["operationId"]
        configured = hypothesis.settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        configured(hypothesis.given(operation.as_strategy(mode, **fixed))(lambda case: call(case, name)))()

    for found in SCHEMA.get_all_operations():
        operation = found.ok()
        if operation.path in {"/events", "/live"}:
            continue  # they have no end
        raw = operation.definition.raw
        takes_what_may_be_wrong = "requestBody" in raw or (
            "parameters" in raw and "{name}" not in operation.path
        )  # a name may be anything
        for mode in GenerationMode if takes_what_may_be_wrong else [GenerationMode.POSITIVE]:
            await asyncio.to_thread(attack, operation, mode)
        if "{run_id}" in operation.path:
            for run_id in ids:
                await asyncio.to_thread(attack, operation, GenerationMode.POSITIVE, path_parameters={"run_id": run_id})

    statuses = {status for _, status in called}
    assert {200, 201, 400, 404, 409} <= statuses
    assert statuses.isdisjoint(range(500, 600))
