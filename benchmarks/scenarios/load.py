"""
How long inserts wait while others arrive: single-row inserts on a schedule, each from its call to its handler.

A producer's process with as many connections as the rate needs, beside a worker's process. The clock is the
machine's. Where the producer could not keep to the schedule, as on a machine too small for the rate, its own figure
says so; the latency is then that of a system at its limit.
"""

import time

from benchmarks.contender import Contender
from benchmarks.lab import Lab, Turn, TurnError
from benchmarks.scenarios import Case, Column, Options
from benchmarks.scenarios.pickup import spread

NAME = "load"
TITLE = "Pickup while inserts arrive: insert call to handler, ms"
BASE = "floor"
COLUMNS = (
    Column("p50_ms", "p50", 2, higher_is_better=False),
    Column("p99_ms", "p99", 2, higher_is_better=False),
    Column("max_ms", "max", 1, higher_is_better=False),
    Column("inserts_per_s", "inserts/s", 0),
    Column("left", "not picked up", 0, higher_is_better=False),
)
READY_S = 30.0
SETTLE_S = 4.0  # a worker may have things to do after its start, such as to become the leader
CATCH_UP_S = 5.0


def cases(contenders: list[Contender], _options: Options) -> list[Case]:
    rates = sorted({rate for contender in contenders for rate in contender.rates})
    return [
        Case(contender, f"at {rate:,}/s", {"rate": rate})
        for rate in rates
        for contender in contenders
        if NAME in contender.takes and rate in contender.rates
    ]


def run(lab: Lab, case: Case, options: Options) -> dict[str, float]:
    with lab.turn(case.contender) as turn:
        turn.run("prepare", 60)
        turn.run("fill", 60, count=1)  # whose execution says that the worker is up
        lab.execute("CHECKPOINT")
        worker = turn.start("work")
        until(turn, 1, READY_S)
        turn.check([worker])
        time.sleep(SETTLE_S)
        said = turn.run("produce", options.seconds + 30, rate=case.parameters["rate"], seconds=options.seconds)
        picked = until(turn, 1 + said["inserts"], CATCH_UP_S)
        turn.check([worker])
        time.sleep(0.05)  # a contender without shared memory writes its latencies every 10 ms
        latencies = turn.tallies.latencies_ms()
        turn.stop([worker])
    if not latencies:
        message = "nothing was picked up"
        raise TurnError(message)
    return spread(latencies) | {"inserts_per_s": said["inserts_per_s"], "left": 1 + said["inserts"] - picked}


def until(turn: Turn, count: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while (executed := turn.tallies.count()) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    if not executed:
        message = f"no run was executed within {seconds:g} s"
        raise TurnError(message)
    return executed
