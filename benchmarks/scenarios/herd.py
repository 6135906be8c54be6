"""
Many idle workers that listen, while 100 single-row inserts a second arrive: what the server pays for each.

Each worker is a process of its own, with its default connections. CPU is that of all of the server's processes together
(/proc), over the time of the inserts and divided by their number, so with what the workers do when idle; `net` is without
what the server used in as many seconds before the inserts began. Where the producer could not keep to the schedule, its
own figure says so: pickup, insert call to handler, is then that of a machine at its limit. In brackets: the figure
divided by that of one worker.
"""

import time

from benchmarks import proc
from benchmarks.contender import Contender
from benchmarks.lab import Asking, Lab, Turn, TurnError
from benchmarks.scenarios import Case, Column, Options, ours
from benchmarks.scenarios.load import CATCH_UP_S, SETTLE_S, until
from benchmarks.scenarios.pickup import spread

NAME = "herd"
TITLE = "Idle workers that listen, 100 inserts a second"
BASE = "us"
AGAINST = "1 workers"
PICTURE = False
COLUMNS = (
    Column("cpu_ms", "server CPU ms an insert", 2, higher_is_better=False),
    Column("net_cpu_ms", "net", 2, higher_is_better=False),
    Column("idle_cpu_percent", "server CPU % of a core before", 1, higher_is_better=False),
    Column("workers_cpu_ms", "workers' CPU ms an insert", 2, higher_is_better=False),
    Column("inserts_per_s", "inserts/s", divided=False),
    Column("p50_ms", "pickup p50", 2, higher_is_better=False),
    Column("p99_ms", "pickup p99", 2, higher_is_better=False),
    Column("left", "not picked up", 0, higher_is_better=False, divided=False),
    Column("connections", "connections", 0, higher_is_better=False, divided=False),
)
PER_S = 100
ALL_UP_S = 180.0


def cases(contenders: list[Contender], options: Options) -> list[Case]:
    return [Case(c, f"{number} workers", {"workers": number}) for c in ours(contenders) for number in options.workers]


def run(lab: Lab, case: Case, options: Options) -> dict[str, float]:
    with lab.turn(case.contender) as turn:
        turn.run("prepare", 60)
        lab.execute("CHECKPOINT")
        workers = [turn.start("work") for _ in range(case.parameters["workers"])]
        connections = _all_up(turn, len(workers))
        time.sleep(SETTLE_S)
        began, used = time.monotonic(), lab.server_cpu_s()
        time.sleep(options.seconds)
        idle = (lab.server_cpu_s() - used) / (time.monotonic() - began)
        began, used = time.monotonic(), lab.server_cpu_s()
        theirs = sum(proc.cpu_s(worker.pid) for worker in workers)
        said = turn.run("produce", options.seconds + 30, rate=PER_S, seconds=options.seconds)
        picked = until(turn, said["inserts"], CATCH_UP_S)
        used, took = lab.server_cpu_s() - used, time.monotonic() - began
        theirs = sum(proc.cpu_s(worker.pid) for worker in workers) - theirs
        turn.check(workers)
        latencies = turn.tallies.latencies_ms()
        turn.stop(workers)
    if not latencies:
        message = "nothing was picked up"
        raise TurnError(message)
    return spread(latencies) | {
        "cpu_ms": 1e3 * used / said["inserts"],
        "net_cpu_ms": 1e3 * max(0.0, used - idle * took) / said["inserts"],
        "idle_cpu_percent": 100 * idle,
        "workers_cpu_ms": 1e3 * theirs / said["inserts"],
        "inserts_per_s": said["inserts_per_s"],
        "left": said["inserts"] - picked,
        "connections": connections,
        "trouble": turn.trouble,
    }


def _all_up(turn: Turn, number: int) -> int:
    """Wait until all are present; return how many connections they have."""
    deadline = time.monotonic() + ALL_UP_S
    with Asking(turn.lab.dsn(turn.database)) as asking:
        while asking.value("SELECT count(*) FROM notifyworker.workers") < number:
            if time.monotonic() > deadline:
                message = f"not all of the {number} workers were up within {ALL_UP_S:g} s"
                raise TurnError(message)
            time.sleep(0.2)
        return int(asking.value("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'notifyworker %'"))
