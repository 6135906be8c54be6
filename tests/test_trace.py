"""Spans: who inserts a run and who executes it are found in one trace."""

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from servers import SURELY_S, eventually
from test_life import insert, settled

from notifyworker import Client, InvalidRun, Retry, Run, Snooze

PAGE = (Path(__file__).parents[1] / "docs" / "traces.md").read_text()


@pytest.fixture
def spans(monkeypatch):
    """A provider for this test alone: the library has one of a process, and sets it once."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


async def named(exporter, name: str, count: int = 1) -> list:
    """Spans of this name, once there are so many: they end after their run is settled."""
    await eventually(lambda: sum(span.name == name for span in exporter.get_finished_spans()) == count)
    return [span for span in exporter.get_finished_spans() if span.name == name]


async def test_the_request_that_enqueues_and_the_handler_are_in_one_trace(spans, make_worker, connection, dsn):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        trace.get_current_span().set_attribute("seen", run.headers["traceparent"])

    async with worker, Client(dsn) as client:
        with trace.get_tracer("app").start_as_current_span("request") as request:
            run_id = await client.enqueue("a", headers={"mine": 1})
        assert (await settled(connection, run_id))["state"] == "completed"
        (send,) = await named(spans, "send a")
        (process,) = await named(spans, "process a")

    assert request.get_span_context().trace_id == send.context.trace_id == process.context.trace_id
    assert send.parent.span_id == request.get_span_context().span_id
    assert (process.parent.span_id, process.links[0].context.span_id) == (send.context.span_id,) * 2
    assert (send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert send.attributes == {
        "messaging.system": "notifyworker", "messaging.operation.name": "send", "messaging.operation.type": "send",
        "messaging.destination.name": "a", "messaging.message.id": str(run_id),
    }  # fmt: skip
    assert process.attributes["notifyworker.state"] == "completed"
    assert process.attributes["messaging.operation.type"] == "process"
    assert f"{send.context.span_id:016x}" in process.attributes["seen"]
    assert (await settled(connection, run_id))["headers"].startswith('{"mine": 1')


async def test_every_attempt_has_its_span_and_a_failed_one_says_why(spans, make_worker, connection):
    worker = make_worker()

    @worker.handler("a", retry=Retry(max_attempts=2, delay=0), timeout=SURELY_S)
    def handle(run: Run) -> None:
        if run.lease_token == 1:
            raise Snooze(0)
        if run.attempt == 1:
            raise ZeroDivisionError("of mine")

    (statement,) = re.findall(r"^```sql\n(.*?);\n```", PAGE, re.MULTILINE | re.DOTALL)
    async with worker:
        run_id = await connection.fetchval(statement.replace("email.send", "a") + " RETURNING run_id")
        await settled(connection, run_id)
        snoozed, failed, done = await named(spans, "process a", 3)

    assert {f"{span.context.trace_id:032x}" for span in (snoozed, failed, done)} == {"4bf92f3577b34da6a3ce929d0e0e4736"}
    assert [span.attributes["notifyworker.state"] for span in (snoozed, failed, done)] == ["pending", "pending", "completed"]
    assert [span.status.status_code for span in (snoozed, failed, done)] == [StatusCode.UNSET, StatusCode.ERROR, StatusCode.UNSET]
    assert failed.attributes["error.type"] == "ZeroDivisionError"
    (event,) = failed.events
    assert event.attributes["exception.message"] == "of mine"
    assert 'raise ZeroDivisionError("of mine")' in event.attributes["exception.stacktrace"]


@pytest.mark.parametrize("headers", ['{"traceparent": 7}', '{"traceparent": "00-xx"}', '{"n": 1e400}'])
async def test_what_is_no_trace_context_begins_a_trace(spans, make_worker, connection, headers):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        run_id = await connection.fetchval(
            "INSERT INTO notifyworker.runs (kind, headers) VALUES ('a', $1) RETURNING run_id", headers
        )
        assert (await settled(connection, run_id))["state"] == "completed"
        (process,) = await named(spans, "process a")
    assert (process.parent, process.links) == (None, ())


async def test_a_batch_is_one_span_and_what_is_refused_is_refused_as_ever(spans, dsn):
    async with Client(dsn) as client:
        await client.enqueue_many("a", [{}, {}])
        with pytest.raises(InvalidRun, match="headers: must be an object"):
            await client.enqueue("a", headers=[1])
    ok, refused = await named(spans, "send a", 2)
    assert ok.attributes["messaging.batch.message_count"] == 2
    assert refused.status.status_code is StatusCode.ERROR


async def test_a_slot_is_kept_from_span_to_span(spans, make_worker, connection):
    worker = make_worker(concurrency=1)
    slots = set()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        slots.add(worker._conductor.slots.get(run.run_id).task)

    async with worker:
        for _ in range(3):
            await settled(connection, await insert(connection, "a"))
    assert len(slots) == 1


async def test_nothing_is_done_where_no_tracer_is_configured(make_worker, connection, dsn):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> dict:
        return run.headers

    async with worker, Client(dsn) as client:
        assert (await settled(connection, await client.enqueue("a")))["result"] == "{}"
        assert worker._conductor._tracer is None


def test_the_library_is_not_imported_for_it():
    program = "import sys, notifyworker; notifyworker.Worker, notifyworker.Client; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


async def test_the_pages_example(spans, dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    monkeypatch.setattr(trace, "set_tracer_provider", lambda provider: provider.shutdown())
    page = types.ModuleType("traces_page")
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(example, "traces.md", "exec"), page.__dict__)
    async with page.worker:
        await settled(connection, await insert(connection, "email.send"))
        (process,) = await named(spans, "process email.send")
        (smtp,) = await named(spans, "smtp")
    assert smtp.parent.span_id == process.context.span_id


def test_the_page_names_every_attribute():
    code = (Path(__file__).parents[1] / "notifyworker" / "trace.py").read_text()
    used = set(re.findall(r'"((?:messaging|notifyworker|error)\.[a-z_.]+)"', code))
    assert used == set(re.findall(r"`((?:messaging|notifyworker|error)\.[a-z_.]+)`", PAGE))
