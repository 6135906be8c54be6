"""
What an installation will need: connections, workers, WAL and disk, from what it is asked to do.

The constants were measured on PostgreSQL 18 by `python -m benchmarks.capacity`, which also fails when a forecast is off
by more than a quarter. JSON is taken as it comes, not compressed: real payloads above 2 kB may need less.
"""

import math
from dataclasses import dataclass

#: Of one worker: claims, settles, what else it writes, LISTEN, heartbeat, gate; and the vacuum of the one that leads.
CONNECTIONS = 6
LEADERS_CONNECTIONS = 1
SIDECAR_CONNECTIONS = 2
#: What one worker process does of runs that do nothing, and so an upper bound, on a core of its own.
RUNS_PER_S_OF_A_PROCESS = 20_000
#: So much of its slots a fleet may use on average, or runs wait for one.
USE = 0.7

_WAL_BYTES = 1200  # insert, claim and settle of a run with no payload
_WAL_PER_PAYLOAD_BYTE = 2.3  # at the insert, and at the move into the history
_WAL_PER_RESULT_BYTE = 1.1
_HISTORY_BYTES = 240  # a settled run with its entries in the indexes
_INLINE_BYTES = 2000  # beyond, PostgreSQL stores a value in pieces
_PIECE_BYTES = 1996
_STORED_PIECE_BYTES = 2075
_DEAD_BYTES = 400  # what stays in the live table of a run that is gone, while a snapshot is held
_SECONDS_A_DAY = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked: runs a second on average and at the peak, how long one takes, and how large it is."""

    runs_per_s: float
    peak_per_s: float
    duration_s: float
    payload_bytes: int
    result_bytes: int
    retention_days: float
    concurrency: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What that needs. Bytes a second are of the average; workers and connections are for the peak."""

    workers: int
    connections: int
    wal_bytes_per_s: float
    history_bytes: float
    held_bytes_per_hour: float


def forecast(load: Load) -> Forecast:
    """Say what this load needs."""
    slots = load.peak_per_s * load.duration_s / USE
    processes = load.peak_per_s / RUNS_PER_S_OF_A_PROCESS / USE
    workers = max(1, math.ceil(slots / load.concurrency), math.ceil(processes))
    connections = workers * (CONNECTIONS + SIDECAR_CONNECTIONS) + LEADERS_CONNECTIONS
    wal = _WAL_BYTES + _WAL_PER_PAYLOAD_BYTE * load.payload_bytes + _WAL_PER_RESULT_BYTE * load.result_bytes
    kept = _HISTORY_BYTES + _stored(load.payload_bytes) + _stored(load.result_bytes)
    dead = _DEAD_BYTES + (2 * load.payload_bytes if load.payload_bytes <= _INLINE_BYTES else _stored(load.payload_bytes))
    return Forecast(
        workers=workers,
        connections=connections,
        wal_bytes_per_s=load.runs_per_s * wal,
        history_bytes=load.runs_per_s * kept * load.retention_days * _SECONDS_A_DAY,
        held_bytes_per_hour=load.runs_per_s * dead * 3600,
    )


def _stored(size: int) -> float:
    return size if size <= _INLINE_BYTES else math.ceil(size / _PIECE_BYTES) * _STORED_PIECE_BYTES
