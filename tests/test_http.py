"""The sidecar: each route, each refusal, against a real server; and that no answer shows anything of our inside."""

import asyncio
import base64
import contextlib
import gzip
import io
import itertools
import json
import os
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from servers import Cluster, eventually, free_port

from notifyworker.errors import SettingsError, StartError
from notifyworker.http import body, connections, events, pool, query
from notifyworker.http.auth import COOKIE, check_listening
from notifyworker.http.sidecar import Sidecar
from notifyworker.migrate import migrate
from notifyworker.observe import Metrics
from notifyworker.settings import Settings
from notifyworker.store import Store

TOKEN = "Zażółć-token"
HEADERS = ("X-Content-Type-Options", "Cache-Control", "Content-Security-Policy", "Referrer-Policy")
INSIDES = ("Traceback", "SELECT", "INSERT", "asyncpg", "postgresql://", 'File "', "relation", "pg_", "aiohttp")


@dataclass
class Watched:
    """A worker as the sidecar sees it, without being one."""

    settings: Settings
    dsn: str
    store: Store = field(init=False)
    metrics: Metrics = field(default_factory=Metrics)
    lease_owner: str = "host:<1>"
    reaper_interval_s: float = 60.0
    max_payload_bytes: int = 1_048_576
    reasons: list[str] = field(default_factory=list)
    ready: bool = True
    sink: Callable[[dict[str, object]], None] | None = None

    def __post_init__(self) -> None:
        self.store = Store(self.settings.schema_name)

    def health(self) -> list[str]:
        return self.reasons

    def unanswered_s(self) -> float:
        return 0.0

    def restrictions(self) -> list[str]:
        return []

    def is_ready(self) -> bool:
        return self.ready

    def publish_to(self, sink: Callable[[dict[str, object]], None] | None) -> None:
        self.sink = sink


@dataclass
class Answer:
    status: int
    headers: Any
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Caller:
    """Asks one sidecar, and looks at every answer for what none may have or lack."""

    def __init__(self, sidecar: Sidecar, worker: Watched, session: aiohttp.ClientSession) -> None:
        self.sidecar, self.worker, self.session = sidecar, worker, session
        self.port = urlsplit(sidecar.url).port

    async def __call__(self, method: str, path: str, **options: Any) -> Answer:
        async with self.session.request(method, self.sidecar.url + path, allow_redirects=False, **options) as response:
            answer = Answer(response.status, response.headers, await response.text())
        self.check(answer)
        return answer

    def check(self, answer: Answer) -> None:
        for name in HEADERS:
            assert name in answer.headers, name
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        is_page = answer.headers.get("Content-Type", "").startswith("text/html")
        if is_page:
            for inside in ("asyncpg", "postgresql://", self.worker.dsn, urlsplit(self.worker.dsn).password or "asyncpg"):
                assert inside not in answer.text, inside
        elif answer.status >= 400 and not (
            answer.status == 503 and answer.headers["Content-Type"].startswith("application/json")
        ):
            assert answer.headers["Content-Type"].startswith("application/problem+json"), answer
            for inside in (*INSIDES, self.worker.dsn, urlsplit(self.worker.dsn).password or "Traceback"):
                assert inside not in answer.text, answer.text
            if answer.text:  # not to HEAD
                assert answer.json["status"] == answer.status
                assert answer.json["title"]

    async def get(self, path: str, **options: Any) -> Answer:
        return await self("GET", path, **options)

    async def post(self, path: str, **options: Any) -> Answer:
        return await self("POST", path, **options)

    async def insert(self, **columns: Any) -> str:
        answer = await self.post("/runs", json={"kind": "k", **columns})
        assert answer.status == 201, answer.text
        return str(answer.json["run_id"])

    async def refusal(self, method: str, path: str, status: int, field: str | None, **options: Any) -> Answer:
        answer = await self(method, path, **options)
        assert (answer.status, answer.json.get("field")) == (status, field), answer.text
        return answer

    async def raw(self, data: bytes) -> Answer:
        """Send bytes, and read whatever comes until the connection ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(30):
                text = await reader.read()
        finally:
            writer.close()
        head, _, content = text.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        answer = Answer(
            int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:]), content.decode("utf-8", "replace")
        )
        self.check(answer)
        return answer


@contextlib.asynccontextmanager
async def serve(dsn: str, **settings: Any) -> AsyncIterator[Caller]:
    worker = Watched(Settings.load(keywords={"dsn": dsn, "port": 0, **settings}), dsn)
    sidecar = Sidecar(worker)
    await sidecar.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Caller(sidecar, worker, session)
    finally:
        await sidecar.stop()
    assert worker.sink is None


@pytest.fixture
async def ask(dsn: str) -> AsyncIterator[Caller]:
    async with serve(dsn) as caller:
        yield caller


async def claim(connection: Any, owner: str = "w") -> None:
    """Lease all that is pending."""
    await connection.execute(
        """UPDATE notifyworker.runs SET state = 'running', attempt = 1, max_attempts = 3, lease_token = lease_token + 1,
               lease_owner = $1, lease_expires_at = now() + interval '1 min', started_at = now() WHERE state = 'pending'""",
        owner,
    )


# Probes


async def test_probes_answer_from_memory(ask: Caller) -> None:
    assert (await ask.get("/healthz")).json == {"status": "ok", "reasons": []}
    assert (await ask.get("/readyz")).status == 200
    assert (await ask.get("/livez")).status == 200

    ask.worker.reasons, ask.worker.ready = ["no heartbeat for 40 s"], False
    sick = await ask.get("/healthz")
    unready = await ask.get("/readyz")

    assert (sick.status, sick.json) == (503, {"status": "failing", "reasons": ["no heartbeat for 40 s"]})
    assert unready.status == 503
    assert (await ask.get("/livez")).status == 200


async def test_metrics_are_prometheus_text(ask: Caller) -> None:
    ask.worker.metrics.slots.set(7)
    answer = await ask.get("/metrics")

    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert "notifyworker_slots 7.0" in answer.text


async def test_head_is_get_without_a_body(ask: Caller) -> None:
    for path in ("/", "/healthz", "/readyz", "/livez", "/runs", "/leases", "/reaper", "/workers", "/metrics", "/events"):
        answer = await ask("HEAD", path)
        assert (answer.status, answer.text) == (200, ""), path


# Runs


async def test_a_run_is_inserted_shown_cancelled_and_retried(ask: Caller) -> None:
    inserted = await ask.post(
        "/runs",
        json={
            "kind": "email.send", "payload": {"to": "ä@example.org", "big": 2**53 + 1, "bigger": 2**70}, "priority": 3,
            "run_at": "2031-01-02T03:04:05.678+02:00", "timeout": 2.5, "max_attempts": 7, "project_id": "p",
            "headers": {"traceparent": "00-a"}, "is_shadow": False, "expires_at": None, "idempotency_key": "once",
        },
    )  # fmt: skip
    run_id = inserted.json["run_id"]
    assert (inserted.status, inserted.headers["Location"]) == (201, f"/runs/{run_id}")
    run = (await ask.get(inserted.headers["Location"])).json

    assert set(run) == {
        "run_id", "project_id", "kind", "state", "payload", "priority", "run_at", "attempt", "max_attempts", "timeout",
        "expires_at", "idempotency_key", "concurrency_key", "is_shadow", "shadow_by", "headers", "lease_owner", "lease_token",
        "lease_expires_at", "created_at", "started_at", "progress", "errors", "finished_at", "result", "effects", "error_code",
        "settled_by", "replay_of", "waits_for", "key_held_by", "steps", "log", "parent_id", "children", "event",
    }  # fmt: skip
    assert run["payload"] == {"to": "ä@example.org", "big": 2**53 + 1, "bigger": 2**70}
    assert (run["run_at"], run["timeout"], run["state"]) == ("2031-01-02T01:04:05.678000Z", 2.5, "pending")
    assert (run["priority"], run["max_attempts"], run["is_shadow"]) == (3, 7, False)
    assert run["created_at"].endswith("Z")

    again = await ask.post("/runs", json={"kind": "email.send", "project_id": "p", "idempotency_key": "once"})
    assert (again.status, again.json) == (200, {"run_id": run_id, "existing": True})
    assert (await ask.post(f"/runs/{run_id}/retry")).status == 409
    cancelled = await ask.post(f"/runs/{run_id}/cancel")
    assert (cancelled.status, cancelled.json) == (200, {"run_id": run_id, "state": "cancelled"})
    assert (await ask.get(f"/runs/{run_id}")).json["finished_at"].endswith("Z")
    assert (await ask.post(f"/runs/{run_id}/cancel", json={})).status == 409
    retried = await ask.post(f"/runs/{run_id.replace('-', '').upper()}/retry")
    assert (retried.status, retried.json) == (200, {"run_id": run_id, "state": "pending"})


async def test_a_bare_kind_is_enough_and_an_id_may_be_given(ask: Caller) -> None:
    run_id = str(uuid.uuid4())

    assert (await ask.get(f"/runs/{await ask.insert()}")).json["payload"] == {}
    assert await ask.insert(run_id=run_id, payload=[1, None]) == run_id
    assert (await ask.get(f"/runs/{run_id}")).json["payload"] == [1, None]
    taken = await ask.refusal("POST", "/runs", 409, None, json={"kind": "k", "run_id": run_id})
    assert run_id in taken.json["detail"]


async def test_an_id_that_nobody_has(ask: Caller) -> None:
    unknown = uuid.uuid4()
    for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry")):
        answer = await ask.refusal(method, f"/runs/{unknown}{path}", 404, None)
        assert str(unknown) in answer.json["detail"]


async def test_an_id_that_is_none(ask: Caller) -> None:
    bad_ids = ["abc", "%00", "%ff", "1", "urn:uuid:00000000-0000-0000-0000-000000000000", "0" * 31, "%D9%A1" * 32]
    for bad, (method, path) in itertools.product(bad_ids, (("GET", ""), ("POST", "/cancel"), ("POST", "/retry"))):
        answer = await ask.raw(f"{method} /runs/{bad}{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert (answer.status, answer.json["field"]) == (400, "run_id"), bad


REFUSED = [
    ('"kind": "k", "payload": NaN', "body"),
    ('"kind": "k", "payload": Infinity', "body"),
    ('"kind": "k", "payload": 1e400', "body"),
    ('"kind": "k", "payload": {"a": -1e999, "b": 12345678901234567890}', "body"),
    ('"kind": "k", "payload": "a\\u0000b"', "payload"),
    ('"kind": "k", "payload": {"a\\u0000b": 1}', "payload"),
    ('"kind": "a\\u0000b"', "kind"),
    ('"kind": "k", "payload": "\\ud800"', "body"),
    ('"kind": "k", "payload": ' + "[" * 10_000 + "]" * 10_000, "body"),
    ('"kind": "k", "payload": ' + "[" * 300 + "]" * 300, "payload"),
    ('"kind": "k", "payload": ' + "9" * 5000, "body"),
    ('"payload": {}', "kind"),
    ('"kind": ""', "kind"),
    ('"kind": "' + "k" * 201 + '"', "kind"),
    ('"kind": null', "kind"),
    ('"kind": 1', "kind"),
    ('"kind": "k", "project_id": ""', "project_id"),
    ('"kind": "k", "run_at": "-4000-01-01T00:00:00Z"', "run_at"),
    ('"kind": "k", "run_at": "20000-01-01T00:00:00Z"', "run_at"),
    ('"kind": "k", "run_at": "1969-12-31T23:59:59Z"', "run_at"),
    ('"kind": "k", "run_at": "9999-12-31T23:59:59-01:00"', "run_at"),
    ('"kind": "k", "run_at": "2030-01-01T00:00:00"', "run_at"),
    ('"kind": "k", "run_at": 1', "run_at"),
    ('"kind": "k", "expires_at": "x"', "expires_at"),
    ('"kind": "k", "timeout": 0', "timeout"),
    ('"kind": "k", "timeout": 1e300', "timeout"),
    ('"kind": "k", "timeout": true', "timeout"),
    ('"kind": "k", "timeout": "1 s"', "timeout"),
    ('"kind": "k", "priority": 32768', "priority"),
    ('"kind": "k", "priority": 1.5', "priority"),
    ('"kind": "k", "max_attempts": 0', "max_attempts"),
    ('"kind": "k", "is_shadow": 1', "is_shadow"),
    ('"kind": "k", "headers": []', "headers"),
    ('"kind": "k", "run_id": "x"', "run_id"),
    ('"kind": "k", "idempotency_key": ""', "idempotency_key"),
    ('"kind": "k", "concurrency_key": ""', "concurrency_key"),
    ('"kind": "k", "state": "pending"', "state"),
    ('"kind": "k", "lease_token": 0', "lease_token"),
    ('"kind": "k", "created_at": null', "created_at"),
    ('"kind": "k", "error_code": null', "error_code"),
    ('"kind": "k", "max_payload_bytes": 1', "max_payload_bytes"),
    ('"kind": "k", "<b>": 1', "<b>"),
]


async def test_a_run_is_refused_and_the_field_named(ask: Caller) -> None:
    for columns, name in REFUSED:
        answer = await ask.refusal("POST", "/runs", 400, name, data="{" + columns + "}")
        assert len(answer.text) < 1000, columns
    assert (await ask.get("/runs")).json["runs"] == []


async def test_a_body_that_is_no_object(ask: Caller) -> None:
    for content in (b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"kind": "\xff"}', b"\x00" * 10, os.urandom(500)):
        await ask.refusal("POST", "/runs", 400, "body", data=content)


async def test_encodings_of_a_body(ask: Caller, caplog: pytest.LogCaptureFixture) -> None:
    good = b'{"kind": "k"}'
    for charset in ("klingon", "latin-1", "utf-16", "base64", "\u00fc"):
        await ask.refusal(
            "POST", "/runs", 400, "body", data=good, headers={"Content-Type": f"application/json; charset={charset}"}
        )
    for encoding, content in (("gzip", b"garbage"), ("gzip", gzip.compress(good)[:-14]), ("deflate", b"\xff" * 20), ("br", good)):
        head = f"POST /runs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(content)}"
        answer = await ask.raw(head.encode() + b"\r\n\r\n" + content)
        assert (answer.status, encoding) == (400, encoding)

    unread = b"GET /absent HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 7\r\n\r\ngarbage"
    assert (await ask.raw(unread)).status == 404
    assert not caplog.records  # aiohttp would log them as faults of ours
    packed = await ask.post("/runs", data=gzip.compress(good), headers={"Content-Encoding": "gzip"})
    assert packed.status == 201
    plain = await ask.post("/runs", data=good, headers={"Content-Type": "application/json; charset=UTF-8"})
    assert plain.status == 201


async def test_the_limit_of_a_payload(ask: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_LINGERING_S", 0.1)
    limit = ask.worker.settings.max_payload_bytes

    def run(size: int) -> io.BytesIO:
        return io.BytesIO(b'{"kind": "k", "payload": "' + b"x" * size + b'"}')

    largest = await ask.post("/runs", data=run(limit - 2))
    assert (await ask.get(largest.headers["Location"])).json["payload"] == "x" * (limit - 2)
    assert (await ask.get("/runs")).json["runs"][0]["run_id"] == largest.json["run_id"]

    await ask.refusal("POST", "/runs", 413, "payload", data=run(limit - 1))
    await ask.refusal("POST", "/runs", 413, "body", data=run(limit + 70_000))
    bomb = gzip.compress(b" " * 50_000_000)
    await ask.refusal("POST", "/runs", 413, "body", data=bomb, headers={"Content-Encoding": "gzip"})
    announced = b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000000000\r\n\r\n"
    assert (await ask.raw(announced)).status == 413
    numbers = json.dumps({"kind": "k", "payload": [0] * 200_000})  # parsed and encoded in a thread
    assert (await ask.post("/runs", data=numbers)).status == 201


async def test_a_body_that_does_not_come(ask: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "DEADLINE_S", 0.1)
    monkeypatch.setattr(connections, "_LINGERING_S", 0.1)
    for path in ("/runs", f"/runs/{uuid.uuid4()}/cancel"):
        answer = await ask.raw(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{{".encode())
        assert answer.status == 408


# Lists


async def test_pages_are_stable_while_runs_come_in(ask: Caller) -> None:
    there = [await ask.insert() for _ in range(12)]
    seen: list[str] = []
    path = "/runs?limit=5"
    while path:
        answer = (await ask.get(path)).json
        seen += [run["run_id"] for run in answer["runs"]]
        await ask.insert()
        path = answer["next_cursor"] and f"/runs?limit=5&cursor={answer['next_cursor']}"

    assert seen == there[::-1]


async def test_an_exact_page_has_no_next(ask: Caller) -> None:
    for _ in range(3):
        await ask.insert()

    assert (await ask.get("/runs?limit=3")).json["next_cursor"] is None
    assert (await ask.get("/runs?limit=2")).json["next_cursor"] is not None
    assert len((await ask.get("/runs?limit=500")).json["runs"]) == 3


async def test_many_rows_and_heavy_rows(ask: Caller, connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'k' FROM generate_series(1, 600)")
    assert len((await ask.get("/runs")).json["runs"]) == 50
    page = (await ask.get("/runs?limit=500")).json
    assert len({run["run_id"] for run in page["runs"]}) == 500
    assert len((await ask.get(f"/runs?limit=500&cursor={page['next_cursor']}")).json["runs"]) == 100

    monkeypatch.setattr(query, "_PAGE_CHARACTERS", 10_000)
    short = (await ask.get("/runs?limit=500")).json
    assert 0 < len(short["runs"]) < 20
    rest = (await ask.get(f"/runs?cursor={short['next_cursor']}&limit=1")).json["runs"]
    assert rest[0]["run_id"] == page["runs"][len(short["runs"])]["run_id"]


async def test_filters(ask: Caller, connection: Any) -> None:
    ours = await ask.insert(kind="a", project_id="p")
    other = await ask.insert(kind="b")
    await ask.post(f"/runs/{other}/cancel")

    async def ids(parameters: str) -> list[str]:
        return [run["run_id"] for run in (await ask.get(f"/runs?{parameters}")).json["runs"]]

    assert await ids("") == [other, ours]
    assert await ids("kind=a") == [ours]
    assert await ids("project_id=default") == [other]
    assert await ids("state=pending&kind=a&project_id=p") == [ours]
    assert await ids("state=cancelled") == [other]
    assert await ids("state=failed") == []


BAD_FILTERS = [
        ("state=done", "state"), ("state=", "state"), ("kind=", "kind"), ("kind=" + "k" * 201, "kind"), ("kind=%00", "kind"),
        ("project_id=" + "p" * 201, "project_id"), ("limit=0", "limit"), ("limit=501", "limit"), ("limit=-1", "limit"),
        ("limit=1.0", "limit"), ("limit=%D9%A1", "limit"), ("limit=" + "9" * 5000, "limit"), ("cursor=", "cursor"),
        ("cursor=x", "cursor"), ("cursor=%00", "cursor"), ("cursor=%C3%A4" + "A" * 20, "cursor"),
        ("cursor=" + base64.urlsafe_b64encode(b"x" * 16).decode(), "cursor"), ("cursor=" + "A" * 21 + "B", "cursor"),
        ("cursor=" + "A" * 5000, "cursor"), ("order=asc", "order"), ("a%00b=1", "a\0b"), ("kind=a&kind=b", "kind"),
]  # fmt: skip


async def test_a_bad_filter_is_named(ask: Caller) -> None:
    for parameters, name in BAD_FILTERS:
        await ask.refusal("GET", f"/runs?{parameters}", 400, name)


async def test_parameters_where_there_are_none(ask: Caller) -> None:
    for path in ("/reaper", "/workers", f"/runs/{uuid.uuid4()}"):
        await ask.refusal("GET", f"{path}?limit=1", 400, "limit")
    await ask.refusal("GET", "/leases?state=running", 400, "state")


async def test_a_poison_row_hides_no_other(ask: Caller, connection: Any) -> None:
    poison = {
        "number": "1e400", "digits": "9" * 5000, "deep": "[" * 9999 + "]" * 9999, "exact": "0.1234567890123456789",
        "fraction": "1" + "0" * 320 + ".5", "wide": "[" + "[]," * 1000 + "[]]",
    }  # fmt: skip
    for kind, payload in poison.items():
        await connection.execute("INSERT INTO notifyworker.runs (kind, payload) VALUES ($1, $2)", kind, payload)
    fine = await ask.insert()

    answer = await ask.get("/runs")
    runs = {run["kind"]: run["payload"] for run in answer.json["runs"]}

    assert fine in answer.text
    assert runs["number"] == 10**400
    assert runs["digits"] == "9" * 5000
    assert runs["deep"] == "[" * 9999 + "]" * 9999
    assert '"payload":0.1234567890123456789' in answer.text
    assert runs["wide"] == [[]] * 1001
    for run in answer.json["runs"]:
        assert (await ask.get(f"/runs/{run['run_id']}")).json["kind"] == run["kind"]


# The fleet


async def test_leases_are_paged(ask: Caller, connection: Any) -> None:
    ids = [await ask.insert() for _ in range(3)]
    await claim(connection, "host:7")
    await ask.insert()

    first = (await ask.get("/leases?limit=2")).json
    second = (await ask.get(f"/leases?limit=2&cursor={first['next_cursor']}")).json

    assert [lease["run_id"] for lease in first["leases"] + second["leases"]] == ids
    assert second["next_cursor"] is None
    assert first["leases"][0]["lease_owner"] == "host:7"
    assert 50 < first["leases"][0]["expires_in_s"] <= 60
    until = datetime.fromisoformat(first["leases"][0]["lease_expires_at"])
    assert timedelta() < until - datetime.now(UTC) <= timedelta(seconds=61)


async def test_the_reaper_and_the_fleet(ask: Caller, connection: Any) -> None:
    await ask.insert()
    await claim(connection)
    await connection.execute("UPDATE notifyworker.runs SET lease_expires_at = now() - interval '1 s'")
    store = ask.worker.store
    await store.reaper_elected(connection, "host:<1>", "armed")
    taken = await store.reap(connection, limit=10, reaper="host:<1>", presumed_dead=[])
    await store.reaper_pass(connection, "host:<1>", taken=len(taken), failed=0, next_in_s=60)
    await store.worker_present(
        connection, "host:<1>", "host", 1, "0.1", ["k"], None, 10, 0, "running", "honour", False, 10.0, 60.0, 15.0, []
    )

    reaper = (await ask.get("/reaper")).json
    workers = (await ask.get("/workers")).json["workers"]

    assert set(reaper) >= {
        "leader", "mode", "elected_at", "last_pass_at", "next_pass_at", "passes", "reaped_total", "failed_total", "interval_s",
        "recent",
    }  # fmt: skip
    assert (reaper["leader"], reaper["passes"], reaper["reaped_total"], reaper["interval_s"]) == ("host:<1>", 1, 1, 60.0)
    assert (reaper["recent"][0]["reason"], reaper["recent"][0]["became"]) == ("lease_expired", "pending")
    assert reaper["next_pass_at"].endswith("Z")
    worker = workers[0]
    assert (worker["host"], worker["kinds"], worker["concurrency"], worker["is_leader"]) == ("host", ["k"], 10, True)
    assert worker["heartbeat_at"].endswith("Z")


async def test_the_overview_as_json(ask: Caller) -> None:
    ask.worker.reasons = ["<script>alert(1)</script>"]
    data = await ask.get("/", headers={"Accept": "application/json"})

    assert (data.json["status"], data.json["leader"], data.json["ready"]) == ("failing", None, True)
    assert data.json["lease_owner"] == "host:<1>"
    assert data.json["live"]["runs"] == 0


# Events


async def frame(response: aiohttp.ClientResponse) -> str:
    async with asyncio.timeout(30):
        return (await response.content.readuntil(b"\n\n")).decode()


async def test_events_reach_a_listener_and_end_with_the_sidecar(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notifyworker.http.sidecar._SHUTDOWN_S", 300.0)  # nothing ends because this is over
    async with serve(dsn) as ask:
        assert ask.worker.sink is None  # nobody listens: the worker makes no event
        async with ask.session.get(ask.sidecar.url + "/events") as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert await frame(response) == "retry: 2000\n\n"
            ask.worker.sink({"run_id": uuid.UUID(int=1), "state": "completed", "kind": "a\nb"})
            expected = '{"run_id":"00000000-0000-0000-0000-000000000001","state":"completed","kind":"a\\nb"}'
            assert await frame(response) == f"event: run\ndata: {expected}\n\n"
            for number in range(150):
                ask.sidecar.publish({"number": number})
            assert await frame(response) == 'event: dropped\ndata: {"count":50}\n\n'
            assert await frame(response) == 'event: run\ndata: {"number":50}\n\n'
            async with asyncio.timeout(30):
                await ask.sidecar.stop()
                await response.content.read()
        await eventually(lambda: ask.worker.sink is None)


async def test_a_ping_keeps_a_silent_stream_open(ask: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PING_S", 0.01)
    async with ask.session.get(ask.sidecar.url + "/events") as response:
        await frame(response)
        assert await frame(response) == ": ping\n\n"


async def test_one_listener_too_many(ask: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LISTENERS", 2)
    async with ask.session.get(ask.sidecar.url + "/events"):
        async with ask.session.get(ask.sidecar.url + "/events"):
            await ask.refusal("GET", "/events", 503, None)

        async def is_free() -> bool:
            async with ask.session.get(ask.sidecar.url + "/events") as response:
                return response.status == 200

        await eventually(is_free)


async def test_a_listener_that_reads_nothing_does_not_hold_up_the_end(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notifyworker.http.sidecar._SHUTDOWN_S", 300.0)  # as above
    async with serve(dsn) as ask:
        reader, writer = await asyncio.open_connection("127.0.0.1", ask.port, limit=1000)
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"retry: 2000\n\n")

        def is_stuck() -> bool:
            ask.sidecar.publish({"much": "x" * 1_000_000})
            return any(listener._is_writing for listener in ask.sidecar._events._listeners)

        await eventually(is_stuck)
        async with asyncio.timeout(30):
            await ask.sidecar.stop()
        writer.close()


# Who may ask


def test_listening_for_all_wants_a_token() -> None:
    for host in ("127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost", "LOCALHOST"):
        check_listening(host, None)
    for host in ("0.0.0.0", "::", "", "10.0.0.1", "example.org", "127.0.0.1.example.org", "2130706433"):
        with pytest.raises(SettingsError, match="token"):
            check_listening(host, None)
        with pytest.raises(SettingsError):
            check_listening(host, "")
        check_listening(host, "t")


async def test_a_token_is_wanted_of_all_but_probes(dsn: str) -> None:
    async with serve(dsn, token=TOKEN, host="0.0.0.0") as ask:
        assert ask.sidecar.url.startswith("http://127.0.0.1:")
        for path in ("/healthz", "/readyz", "/livez", "/metrics"):
            assert (await ask.get(path, headers={"Host": "anything.example"})).status == 200
        wrong = [
            {}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "}, {"Authorization": "Bearer x"},
            {"Authorization": f"Basic {TOKEN}"}, {"Authorization": TOKEN}, {"Cookie": f"{COOKIE}={TOKEN}"}, {"Cookie": f"{COOKIE}="},
        ]  # fmt: skip
        for path in (
            "/",
            "/runs",
            "/leases",
            "/reaper",
            "/workers",
            "/events",
            "/absent",
            "//healthz",
            "/healthz/",
            f"/runs/{uuid.uuid4()}",
        ):
            for headers in wrong:
                answer = await ask.refusal("GET", path, 401, None, headers=headers)
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/runs", "/healthz", "/runs/x/cancel"):
            await ask.refusal("POST", path, 401, None, json={"kind": "k"})

        right = {"Authorization": f"bearer {TOKEN}"}
        assert (await ask.get("/runs", headers=right)).status == 200
        assert (await ask.post("/runs", json={"kind": "k"}, headers=right)).status == 201
        assert (await ask.post("/runs", json={"kind": "k"}, headers={**right, "Sec-Fetch-Site": "cross-site"})).status == 201
        assert (await ask.get("/absent", headers=right)).status == 404


async def test_the_session_cookie(dsn: str) -> None:
    async with serve(dsn, token=TOKEN) as ask:
        for options in ({"json": {"token": "x"}}, {"json": {"token": ""}}, {"data": {"token": "x"}}):
            await ask.refusal("POST", "/login", 401, None, **options)
        for options in ({"json": {}}, {"json": {"token": 1}}, {"data": {"other": "x"}}):
            await ask.refusal("POST", "/login", 400, "token", **options)
        await ask.refusal("POST", "/login", 403, None, json={"token": TOKEN}, headers={"Sec-Fetch-Site": "cross-site"})
        by_form = await ask.post("/login", data={"token": TOKEN})
        assert (by_form.status, by_form.headers["Location"]) == (303, "/")
        ask.session.cookie_jar.clear()
        by_json = await ask.post("/login", json={"token": TOKEN})
        cookie = by_json.headers["Set-Cookie"]
        assert by_json.status == 200
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert TOKEN not in cookie
        value = cookie.partition("=")[2].partition(";")[0]
        ask.session.cookie_jar.clear()

        mine = {"Cookie": f"{COOKIE}={value}"}
        assert (await ask.get("/runs", headers=mine)).status == 200
        assert (await ask.post("/runs", json={"kind": "k"}, headers={**mine, "Sec-Fetch-Site": "same-origin"})).status == 201
        await ask.refusal("POST", "/runs", 403, None, json={"kind": "k"}, headers={**mine, "Sec-Fetch-Site": "same-site"})
        await ask.refusal("POST", "/runs", 403, None, json={"kind": "k"}, headers={**mine, "Origin": "http://localhost:3000"})
        await ask.refusal("GET", "/runs", 401, None, headers={"Cookie": f"{COOKIE}={value[:-1]}"})
    async with serve(dsn, token=TOKEN) as after_a_restart:
        await after_a_restart.refusal("GET", "/runs", 401, None, headers=mine)


async def test_without_a_token_there_is_nothing_to_log_in_to(ask: Caller) -> None:
    await ask.refusal("POST", "/login", 404, None, json={"token": "x"})


async def test_without_a_token_other_sites_are_kept_out(ask: Caller) -> None:
    run = {"json": {"kind": "k"}}
    for site in ("cross-site", "same-site", "", "nonsense"):
        await ask.refusal("POST", "/runs", 403, None, headers={"Sec-Fetch-Site": site}, **run)
    for origin in ("null", "https://evil.example", "http://[", f"http://localhost:{ask.port}"):
        await ask.refusal("POST", "/runs", 403, None, headers={"Origin": origin}, **run)
    for headers in ({"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Origin": ask.sidecar.url}, {}):
        assert (await ask.post("/runs", headers=headers, **run)).status == 201
    assert (await ask.get("/runs", headers={"Sec-Fetch-Site": "cross-site"})).status == 200


async def test_without_a_token_the_host_must_be_this_one(ask: Caller) -> None:
    for host in (
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "[::2]:80",
        "x:y:z",
        "localhost:1@evil",
    ):
        for path in ("/runs", "/healthz", "/absent"):
            await ask.refusal("GET", path, 403, None, headers={"Host": host})
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:99", "[::1]", "[::1]:8080"):
        assert (await ask.get("/runs", headers={"Host": host})).status == 200
    absolute = b"GET http://localhost/runs HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert (await ask.raw(absolute)).status == 403
    assert (await ask.raw(b"GET /healthz HTTP/1.0\r\n\r\n")).status == 200


# What is no route, no HTTP, no fault of the asker


async def test_what_is_no_route(ask: Caller) -> None:
    await ask.refusal("GET", "/absent", 404, None)
    await ask.refusal("GET", "/runs/a/b/c", 404, None)
    wrong = await ask.refusal("DELETE", f"/runs/{uuid.uuid4()}", 405, None)
    assert wrong.headers["Allow"] == "GET,HEAD"
    await ask.refusal("PUT", "/runs", 405, None, data=b"{")


NO_HTTP = [
        b"garbage\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /runs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n0\r\n\r\n",
]  # fmt: skip


async def test_what_is_no_http(ask: Caller) -> None:
    for data in NO_HTTP:
        answer = await ask.raw(data)
        assert answer.status == 400, data
        assert (await ask.get("/livez")).status == 200


async def test_a_fault_of_ours_shows_nothing(ask: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[str]:
        message = f"SELECT secret FROM {ask.worker.dsn}"
        raise RuntimeError(message)

    monkeypatch.setattr(ask.worker, "health", fail)
    await ask.refusal("GET", "/healthz", 500, None)
    assert (await ask.get("/livez")).status == 200


async def test_connections_are_counted(ask: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    held = [await asyncio.open_connection("127.0.0.1", ask.port) for _ in range(2)]
    for _, each in held:  # those that wait for nothing are cut in place of the newest
        each.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await asyncio.gather(*(each.readuntil(b"retry: 2000\n\n") for each, _ in held))
    server = ask.sidecar._runner.server  # type: ignore[union-attr]
    await eventually(lambda: len(server.connections) == 2)

    reader, writer = await asyncio.open_connection("127.0.0.1", ask.port)
    async with asyncio.timeout(30):
        assert await reader.read() == b""
    for _, each in [*held, (reader, writer)]:
        each.close()
    await eventually(lambda: not server.connections)
    assert (await ask.get("/livez")).status == 200


# Starting, and a database that is away


async def test_a_port_that_is_taken(dsn: str) -> None:
    async with serve(dsn) as ask:
        worker = Watched(Settings.load(keywords={"dsn": dsn, "port": ask.port}), dsn)
        with pytest.raises(StartError, match=rf"port {ask.port} on 127.0.0.1 is in use \(.*--port 0") as caught:
            await Sidecar(worker).start()
        assert caught.value.hint


async def test_a_host_that_is_not_here(dsn: str) -> None:
    worker = Watched(Settings.load(keywords={"dsn": dsn, "host": "no-such-host.invalid", "port": 0, "token": "t"}), dsn)
    with pytest.raises(StartError, match=r"no-such-host\.invalid"):
        await Sidecar(worker).start()
    worker = Watched(Settings.load(keywords={"dsn": dsn, "host": "0.0.0.0", "port": 0}), dsn)
    with pytest.raises(SettingsError, match="token"):
        await Sidecar(worker).start()


async def test_start_and_stop_in_any_order(dsn: str) -> None:
    port = free_port()
    worker = Watched(Settings.load(keywords={"dsn": dsn, "port": port}), dsn)
    sidecar = Sidecar(worker)
    await sidecar.stop()
    for _ in range(20):
        await sidecar.start()
        assert sidecar.url == f"http://127.0.0.1:{port}"
        await asyncio.gather(sidecar.stop(), sidecar.stop())


async def test_its_connections_have_limits_of_their_own(ask: Caller) -> None:
    [row] = await ask.sidecar._pool.fetch(
        "SELECT current_setting('statement_timeout') AS s, current_setting('plan_cache_mode') AS p,"
        " current_setting('application_name') AS a"
    )

    assert tuple(row) == ("5s", "force_custom_plan", "notifyworker sidecar")


async def test_when_all_its_connections_are_in_use(ask: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ACQUIRE_S", 0.2)
    busy = [asyncio.create_task(ask.sidecar._pool.fetch("SELECT pg_sleep(60)")) for _ in range(pool.CONNECTIONS)]
    await ask.refusal("GET", "/runs", 503, None)
    assert (await ask.get("/healthz")).status == 200
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)
    monkeypatch.setattr(pool, "ACQUIRE_S", 5)

    assert (await ask.get("/runs")).status == 200


async def test_a_run_that_another_transaction_holds(ask: Caller, connection: Any) -> None:
    run_id = await ask.insert()
    async with connection.transaction():
        await connection.execute("SELECT FROM notifyworker.runs FOR UPDATE")
        answer = await ask.refusal("POST", f"/runs/{run_id}/cancel", 503, None)
    assert answer.headers["Retry-After"]
    assert (await ask.post(f"/runs/{run_id}/cancel")).status == 200


async def test_a_statement_without_an_end(ask: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(on: Any) -> Any:
        return await on.fetch("SET statement_timeout = '50ms'") or await on.fetch("SELECT pg_sleep(60)")

    async def deaf(on: Any) -> Any:
        return await on.fetch("SELECT pg_sleep(60)", timeout=0.05)

    for reads in (slow, deaf):
        monkeypatch.setattr(ask.worker.store, "workers_list", reads)
        await ask.refusal("GET", "/workers", 504, None)


async def test_a_schema_that_is_not_there(empty_dsn: str) -> None:
    async with serve(empty_dsn) as ask:
        await ask.refusal("GET", "/runs", 503, None)
        await ask.refusal("POST", "/runs", 503, None, json={"kind": "k"})


async def test_a_database_that_goes_and_comes_back() -> None:
    async with Cluster() as cluster:
        await migrate(cluster.dsn, "notifyworker")
        dsn = cluster.dsn.replace("postgres@", "postgres:geheim@")
        async with serve(dsn) as ask:
            run_id = await ask.insert()
            await cluster.stop()

            for path in ("/runs", f"/runs/{run_id}", "/leases", "/workers", "/reaper"):
                await ask.refusal("GET", path, 503, None)
            for path in ("/runs", f"/runs/{run_id}/cancel", f"/runs/{run_id}/retry"):
                await ask.refusal("POST", path, 503, None, json={"kind": "k"} if path == "/runs" else {})
            for path in ("/healthz", "/readyz", "/livez", "/metrics"):
                assert (await ask.get(path)).status == 200
            page = await ask.get("/")
            assert page.status == 503
            assert "The database has not answered since" in page.text
            assert (await ask.get("/", headers={"Accept": "application/json"})).json["status"] == "failing"
            async with serve(dsn) as second:  # it starts without a database
                assert (await second.get("/healthz")).status == 200
                await second.refusal("GET", "/runs", 503, None)

            await cluster.start()
            assert (await ask.get(f"/runs/{run_id}")).json["kind"] == "k"


async def test_the_worker_is_only_what_the_protocol_says(dsn: str) -> None:
    """The sidecar asks nothing of a worker that Observed does not have."""
    settings = Settings.load(keywords={"dsn": dsn, "port": 0})
    worker = SimpleNamespace(
        settings=settings, store=Store("notifyworker"), metrics=Metrics(), lease_owner="w", dsn=dsn, reaper_interval_s=1.0,
        health=list, restrictions=list, is_ready=lambda: True, publish_to=lambda _sink: None,
    )  # fmt: skip
    sidecar = Sidecar(worker)  # type: ignore[arg-type]
    await sidecar.start()
    try:
        async with aiohttp.ClientSession() as session:
            for path in ("/", "/healthz", "/runs", "/leases", "/reaper", "/workers", "/metrics"):
                async with session.get(sidecar.url + path) as response:
                    assert response.status == 200
    finally:
        await sidecar.stop()
