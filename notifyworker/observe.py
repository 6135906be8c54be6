"""
What an operator hears of a worker: log events and metrics. Knows no database.

An event names a fact that has been committed already, except those that say that something could not be done.
"""

import contextlib
import logging
import os
import sys
import time
import traceback
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Literal, TextIO, cast

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

log: Any = structlog.get_logger("notifyworker")

_configured: tuple[Literal["auto", "console", "json"], str] | None = None
_CAUSES = 5  # of an error, that are told
_BATCHES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800)


class _Stderr:
    """Standard error, of which perhaps nobody reads any more, or whose disk is full: what can't be written ends nothing."""

    def write(self, text: str) -> None:
        """Write, or lose it: a log that raised would end a loop, or keep a signal from being heard."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        """As `write`."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


def configure_logging(log_format: Literal["auto", "console", "json"], log_level: str) -> None:
    """Write logs to stderr: for people on a terminal, as JSON lines elsewhere. Only the command line calls this."""
    in_colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    global _configured  # noqa: PLW0603 - as structlog's own, which is one of a process
    _configured = log_format, log_level
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    renderer: Any = (
        structlog.processors.JSONRenderer(serializer=_dumps)
        if as_json
        # With rich at hand structlog's own choice prints the local variables of every frame: DSN, token, payloads.
        else structlog.dev.ConsoleRenderer(colors=in_colour, exception_formatter=structlog.dev.plain_traceback)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if as_json else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Stderr())),
        cache_logger_on_first_use=True,
    )


def configured() -> tuple[Literal["auto", "console", "json"], str] | None:
    """Return what `configure_logging` was called with, for processes of ours to do the same; None: it was not."""
    return _configured


def _dumps(event: dict[str, Any], **_options: Any) -> str:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


def outline(error: BaseException) -> str:
    """Say where an error came from: its type and lines of code, and those of its causes. Never its text, which may quote anything."""
    told: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(told) < _CAUSES:
        told.append(type(cause).__name__ + "\n" + "".join(traceback.format_tb(cause.__traceback__)))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "because of ".join(told)


def is_debug() -> bool:
    """Whether anybody wants to hear of single runs. Asked before a batch of debug events is made, which costs more."""
    return bool(log.is_enabled_for(logging.DEBUG))


class Durations(Collector):
    """
    A histogram of seconds by kind, observed once and more a run.

    prometheus_client's own takes three locks an observation, and two look-ups by label; this one, on the event loop
    alone, adds to two plain numbers and is turned into the library's form when it is scraped.
    """

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._by_kind: dict[str, tuple[list[int], list[float]]] = {}
        registry.register(self)

    def observe(self, kind: str, seconds: float) -> None:
        """Count one more."""
        known = self._by_kind.get(kind)
        if known is None:
            known = self._by_kind[kind] = [0] * (len(_SECONDS) + 1), [0.0]
        known[0][bisect_left(_SECONDS, seconds)] += 1
        known[1][0] += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """For the registry."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=["kind"])
        bounds = [*(str(float(bound)) for bound in _SECONDS), "+Inf"]
        for kind, (counts, total) in list(self._by_kind.items()):
            family.add_metric([kind], list(zip(bounds, accumulate(counts), strict=True)), total[0])
        yield family


class Queue(Collector):
    """What the queue was at the last look at it; empty of a worker that does not look. Remembers when it was scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._runs: dict[tuple[str, str], int] = {}
        self._oldest_s: dict[str, float] = {}
        self._held_s: float | None = None
        self._scraped_at = float("-inf")
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """For the registry, which would scrape to learn the names otherwise."""
        return iter(self._families())

    def was_scraped_within(self, seconds: float) -> bool:
        """Whether anybody wants to know."""
        return time.monotonic() - self._scraped_at <= seconds

    def saw(self, runs: dict[tuple[str, str], int], oldest_s: dict[str, float], held_s: float) -> None:
        """Take note of a look: runs by kind and state, seconds by kind, seconds."""
        self._runs, self._oldest_s, self._held_s = runs, oldest_s, held_s

    def forget(self) -> None:
        """Show nothing from now on."""
        self._runs, self._oldest_s, self._held_s = {}, {}, None

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        self._scraped_at = time.monotonic()
        runs, oldest, held = families = self._families()
        for (kind, state), number in self._runs.items():
            runs.add_metric([kind, state], number)
        for kind, seconds in self._oldest_s.items():
            oldest.add_metric([kind], seconds)
        if self._held_s is not None:
            held.add_metric([], self._held_s)
        yield from families

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily("notifyworker_queue_runs", "Runs that are due, for later, and executed.", labels=["kind", "state"]),
            GaugeMetricFamily(
                "notifyworker_queue_oldest_seconds", "For how long the oldest due run has been due.", labels=["kind"]
            ),
            GaugeMetricFamily(
                "notifyworker_horizon_held_seconds", "Age of the oldest transaction that keeps dead rows.", labels=[]
            ),
        )


class Metrics:
    """Prometheus metrics of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.claims = Counter("notifyworker_claims", "Claims by what they found.", ["found"], registry=registry)
        self.claim_batch = Histogram(
            "notifyworker_claim_batch_runs", "Runs taken by a claim that found some.", buckets=_BATCHES, registry=registry
        )
        self.claimed = Counter("notifyworker_runs_claimed", "Runs claimed.", ["kind"], registry=registry)
        self.finished = Counter(
            "notifyworker_runs_finished", "Attempts that ended, by the state the run went to.", ["kind", "to"], registry=registry
        )
        self.pickup = Durations("notifyworker_pickup_seconds", "From when a run was ready until it was claimed.", registry)
        self.execution = Durations("notifyworker_execution_seconds", "How long handlers took.", registry)
        self.running = Gauge("notifyworker_runs_running", "Runs that this worker executes now.", registry=registry)
        self.slots = Gauge("notifyworker_slots", "Runs that this worker may execute at once.", registry=registry)
        self.wakes = Counter("notifyworker_wakes", "What made the worker look.", ["source"], registry=registry)
        self.lost = Counter("notifyworker_leases_lost", "Leases that another took, or that a cancel ended.", registry=registry)
        self.refused = Counter(
            "notifyworker_outcomes_refused", "Outcomes that came too late and were refused by the fence.", registry=registry
        )
        self.stuck = Gauge("notifyworker_handlers_stuck", "Handlers that go on though their run was ended.", registry=registry)
        self.ignored = Counter(
            "notifyworker_cancellations_ignored", "Handlers that ignored their run's end for 2 s.", ["kind"], registry=registry
        )
        self.heartbeats = Counter("notifyworker_heartbeats", "Heartbeats by outcome.", ["outcome"], registry=registry)
        self.late = Counter("notifyworker_heartbeats_late", "Heartbeats that took twice their interval.", registry=registry)
        self.beat_age = Gauge(
            "notifyworker_heartbeat_age_seconds", "Since the last heartbeat that the database answered.", registry=registry
        )
        self.connections = Gauge(
            "notifyworker_connections_used", "Connections of a pool that are in use.", ["pool"], registry=registry
        )
        self.connections_allowed = Gauge(
            "notifyworker_connections_allowed", "Connections that a pool may have.", ["pool"], registry=registry
        )
        self.queue = Queue(registry)
        self.settle_batch = Histogram(
            "notifyworker_settle_batch_runs",
            "Runs written by one settle.",
            buckets=_BATCHES,
            registry=registry,
        )
        self.stalls = Counter("notifyworker_loop_stalls", "Times the event loop was found not turning.", registry=registry)
        self.reaped = Counter("notifyworker_reaped", "Runs taken from workers.", ["reason", "became"], registry=registry)
        self.vacuums = Counter("notifyworker_vacuums", "Times this worker vacuumed the live table as leader.", registry=registry)
        self.compared = Counter(
            "notifyworker_shadow_compared",
            "Copies compared with their live runs, by what was found.",
            ["kind", "found"],
            registry=registry,
        )
        self.copies = Gauge("notifyworker_shadow_copies", "Copies of live runs that this worker holds.", registry=registry)
        self.database_errors = Counter(
            "notifyworker_database_errors", "Statements that failed, by loop.", ["loop"], registry=registry
        )
        self.reconnects = Counter("notifyworker_reconnects", "Connections made anew.", ["connection"], registry=registry)
        self.places = Gauge(
            "notifyworker_places_taken",
            "Places of limits and keys that are taken; as the leader's last pass saw it.",
            registry=registry,
        )
        self.waiting = Gauge(
            "notifyworker_runs_waiting",
            "Runs that wait for a key, up to 10,000; as the leader's last pass saw it.",
            registry=registry,
        )
        self.listening = Gauge("notifyworker_listening", "1 while NOTIFY can be heard.", registry=registry)
        self.leading = Gauge("notifyworker_leading", "1 while this worker leads the fleet.", registry=registry)
        self.coalescing = Gauge("notifyworker_coalescing", "1 while the leader wakes in place of the inserts.", registry=registry)
        self.queue_usage = Gauge(
            "notifyworker_notification_queue_ratio",
            "Fill of the server's notification queue; from one half on inserts wake nobody.",
            registry=registry,
        )
