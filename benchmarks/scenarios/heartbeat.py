"""
The heartbeat of a worker that executes many runs at once: how long its one statement takes in the server.

Read from the server's log (log_min_duration_statement 0 in this turn's database): bind and execute together. A heartbeat a
second instead of each 15 seconds, for more of them; handlers that wait. `statements` are those that renewed leases,
for each time that the worker noted its presence. In brackets: the figure divided by that of one run.
"""

import dataclasses
import re
import time

from benchmarks.contender import Contender
from benchmarks.figures import percentile
from benchmarks.lab import Lab, TurnError
from benchmarks.scenarios import Case, Column, Options, ours
from benchmarks.scenarios.load import READY_S, until

NAME = "heartbeat"
TITLE = "The heartbeat's statement, ms in the server"
BASE = "us"
AGAINST = "1 running"
PICTURE = False
COLUMNS = (
    Column("p50_ms", "p50", 2, higher_is_better=False),
    Column("max_ms", "max", 2, higher_is_better=False),
    Column("beats", "heartbeats", divided=False),
    Column("statements", "statements", 2, higher_is_better=False, divided=False),
)
RUNNING = (1, 1_000)
ENVIRONMENT = {
    "BENCH_HOLD": "600",
    "NOTIFYWORKER_CONCURRENCY": "1000",
    "NOTIFYWORKER_HEARTBEAT_INTERVAL_S": "1",
    "NOTIFYWORKER_DRAIN_TIMEOUT_S": "0",
}
#: A statement in the log, and what is told by the words in it: sql/heartbeat.sql and sql/worker_present.sql.
LOGGED = re.compile(r"duration: ([\d.]+) ms +(bind|execute) [^:]*: (.*?)(?=\n\d{4}-\d\d-\d\d |\Z)", re.DOTALL)
RENEWS, PRESENT = "SET lease_expires_at = now()", 'INSERT INTO "notifyworker".workers'


def cases(contenders: list[Contender], _options: Options) -> list[Case]:
    held = [dataclasses.replace(c, environment=c.environment | ENVIRONMENT) for c in ours(contenders)]
    return [Case(contender, f"{running:,} running", {"running": running}) for contender in held for running in RUNNING]


def run(lab: Lab, case: Case, options: Options) -> dict[str, float]:
    running = case.parameters["running"]
    with lab.turn(case.contender) as turn:
        turn.run("prepare", 60)
        lab.execute(f"ALTER DATABASE {turn.database} SET log_min_duration_statement = 0")
        lab.execute(f"ALTER DATABASE {turn.database} SET log_parameter_max_length = 0")
        turn.run("fill", 60, count=running)
        lab.execute("CHECKPOINT")
        worker = turn.start("work")
        if until(turn, running, READY_S) < running:
            message = f"not all of the {running} were running within {READY_S:g} s"
            raise TurnError(message)
        time.sleep(1.5)  # the first heartbeat that has all of them is in the past
        mark = lab.log_size()
        time.sleep(options.seconds)
        logged = lab.log_since(mark)
        turn.check([worker])
        turn.stop([worker], timeout_s=3)
    return _told(logged)


def _told(logged: str) -> dict[str, float]:
    took, present, bind = [], 0, 0.0
    for duration, step, text in LOGGED.findall(logged):
        if RENEWS in text:
            if step == "execute":
                took.append(bind + float(duration))
            bind = float(duration) if step == "bind" else 0.0
        elif PRESENT in text and step == "execute":
            present += 1
    if not took:
        message = "no heartbeat was seen in the server's log"
        raise TurnError(message)
    return {"p50_ms": percentile(took, 50), "max_ms": max(took), "beats": present, "statements": len(took) / max(1, present)}
