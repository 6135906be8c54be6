"""
What a worker takes when there is nothing to do, and its memory when there is very much.

`idle`: transactions a second in its database (pg_stat_database, asked for from another one), CPU of the worker and of the
whole server, as per cents of a core. `pending`: its memory once it has drained the first N of the crowd, and the most
that it ever had until then.
"""

import time

from benchmarks import proc
from benchmarks.contender import Contender
from benchmarks.lab import Lab, Turn
from benchmarks.scenarios import Case, Column, Options, ours
from benchmarks.scenarios.backlog import CROWDS, crowded
from benchmarks.scenarios.drain import first_run
from benchmarks.scenarios.hot import started

NAME = "idle"
TITLE = "An idle worker, and one with a large backlog"
BASE = "us"
AGAINST = "idle"
PICTURE = False
COLUMNS = (
    Column("rss_mib", "worker's memory MiB", 1, higher_is_better=False),
    Column("peak_mib", "at most MiB", 1, higher_is_better=False),
    Column("transactions_per_s", "transactions/s", 2, higher_is_better=False),
    Column("worker_cpu_percent", "worker's CPU %", 2, higher_is_better=False),
    Column("server_cpu_percent", "server's CPU %", 2, higher_is_better=False),
)
STATS_S = 11.0  # an idle session hands in its statistics after 10 s
POLL_S = 0.05
TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{}'"


def cases(contenders: list[Contender], options: Options) -> list[Case]:
    variants = {AGAINST: 0, f"{options.crowd:,} pending": options.crowd}
    return [Case(c, variant, {"crowd": crowd}) for c in ours(contenders) for variant, crowd in variants.items()]


def run(lab: Lab, case: Case, options: Options) -> dict[str, float]:
    with lab.turn(case.contender) as turn:
        turn.run("prepare", 60)
        if case.parameters["crowd"]:
            return _loaded(turn, case.parameters["crowd"], options)
        return _idle(turn, options)


def _idle(turn: Turn, options: Options) -> dict[str, float]:
    worker = started(turn)
    time.sleep(STATS_S)
    question = TRANSACTIONS.format(turn.database)
    began, before = time.monotonic(), turn.lab.execute(question)
    worker_cpu, server_cpu = proc.cpu_s(worker.pid), turn.lab.server_cpu_s()
    time.sleep(options.idle_s)
    took = time.monotonic() - began
    figures = {
        "rss_mib": proc.memory_mib(worker.pid),
        "peak_mib": proc.memory_mib(worker.pid, "VmHWM"),
        "transactions_per_s": (turn.lab.execute(question) - before) / took,
        "worker_cpu_percent": 100 * (proc.cpu_s(worker.pid) - worker_cpu) / took,
        "server_cpu_percent": 100 * (turn.lab.server_cpu_s() - server_cpu) / took,
    }
    turn.check([worker])
    turn.stop([worker])
    return figures


def _loaded(turn: Turn, crowd: int, options: Options) -> dict[str, float]:
    crowded(turn.lab, turn.database, CROWDS["pending"], crowd)
    turn.lab.execute("VACUUM (ANALYZE)", turn.database)
    turn.lab.execute("CHECKPOINT")
    worker = turn.start("work")
    begin = first_run(turn, [worker])
    most = 0.0
    while turn.tallies.count() < min(options.n, crowd) and time.monotonic() - begin < options.window_s:
        turn.check([worker])
        most = max(most, proc.memory_mib(worker.pid))
        time.sleep(POLL_S)
    figures = {"rss_mib": proc.memory_mib(worker.pid), "peak_mib": max(most, proc.memory_mib(worker.pid, "VmHWM"))}
    turn.stop([worker], timeout_s=3)
    return figures
