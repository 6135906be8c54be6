"""
Spans of OpenTelemetry, by its conventions for messaging: `send` where a client enqueues, `process` around a handler.

What links them is `traceparent` in a run's headers, whoever has put it there. Off, without any cost, where the program has
configured no tracer: the library is not even imported here unless the program has done so.
"""

import sys
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from notifyworker import payload as payloads
from notifyworker.errors import Code
from notifyworker.run import Outcome, Run, State

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_SYSTEM = "notifyworker"


def tracer() -> "Tracer | None":
    """Return the tracer of whoever has configured one; None: nobody has."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None or isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
        return None
    found: Tracer = api.get_tracer("notifyworker")
    return found


@contextmanager
def sending(kind: str, headers: Mapping[str, Any] | None) -> "Iterator[tuple[Mapping[str, Any] | None, Sent]]":
    """Trace an insert. Yields the headers for the run, with `traceparent`, and what takes its id; both do nothing while off."""
    using = tracer()
    if using is None:
        yield headers, Sent(None)
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    with using.start_as_current_span(f"send {kind}", kind=SpanKind.PRODUCER, attributes=_facts("send", kind)) as span:
        carrier: dict[str, Any] = {}
        TraceContextTextMapPropagator().inject(carrier)
        # One that is no object is refused where it is checked.
        yield {**carrier, **(headers or {})} if headers is None or isinstance(headers, Mapping) else headers, Sent(span)


class Sent:
    """The span of an insert."""

    def __init__(self, span: "Span | None") -> None:
        self._span = span

    def as_run(self, run_id: UUID) -> UUID:
        """Note which run it became, and return it."""
        if self._span is not None:
            self._span.set_attribute("messaging.message.id", str(run_id))
        return run_id

    def as_batch(self, count: int) -> None:
        """Note how many runs it became."""
        if self._span is not None:
            self._span.set_attribute("messaging.batch.message_count", count)


async def processing(using: "Tracer", run: Run, executing: Awaitable[Outcome | None]) -> Outcome | None:
    """Trace one attempt: a span that is current in its handler, in the trace of whoever has inserted the run."""
    from opentelemetry.trace import Link, SpanKind, get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract(_carrier(run))
    sent = get_current_span(parent).get_span_context()
    facts = _facts("process", run.kind) | {
        "messaging.message.id": str(run.run_id),
        "notifyworker.project_id": run.project_id,
        "notifyworker.attempt": run.attempt,
        "notifyworker.is_shadow": run.is_shadow,
    }
    links = [Link(sent)] if sent.is_valid else []
    kind = SpanKind.CONSUMER
    with using.start_as_current_span(f"process {run.kind}", context=parent, kind=kind, links=links, attributes=facts) as span:
        outcome = await executing
        _end(span, outcome)
        return outcome


def _facts(operation: str, kind: str) -> dict[str, Any]:
    return {
        "messaging.system": _SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": kind,
    }


def _carrier(run: Run) -> dict[str, str]:
    """Return the run's trace context; a producer may have put anything there."""
    try:
        headers = run.headers
    except ValueError:  # what Python can't hold: its handler will be told
        return {}
    return {name: headers[name] for name in ("traceparent", "tracestate") if isinstance(headers.get(name), str)}


def _end(span: "Span", outcome: Outcome | None) -> None:
    from opentelemetry.trace import Status, StatusCode

    if outcome is None:
        span.set_attribute("notifyworker.state", "lost")
        return
    span.set_attribute("notifyworker.state", str(outcome.to))
    if outcome.error is None or outcome.to is State.CANCELLED or (not outcome.counts):
        return
    entry = payloads.decode(outcome.error)
    raised, _, message = entry["message"].partition(": ")
    span.set_attribute("error.type", raised if entry["code"] == Code.RAISED else entry["code"])
    span.set_status(Status(StatusCode.ERROR, entry["message"].partition("\n")[0]))
    if entry["code"] == Code.RAISED:
        told = {"exception.type": raised, "exception.message": message, "exception.stacktrace": entry["traceback"] or ""}
        span.add_event("exception", told)
