"""
What waking costs the producers: single-row inserts, each its own transaction, by so many clients, a worker draining.

The clients are pgbench's, with prepared statements; each inserts again as soon as its last insert is committed.
"""

import os
import re
import subprocess

from benchmarks.contender import Contender
from benchmarks.lab import Lab, Turn, TurnError
from benchmarks.scenarios import Case, Column, Options
from benchmarks.scenarios.load import READY_S, until

NAME = "inserts"
TITLE = "Inserts a second: single rows, a worker draining"
BASE = "us-no-trigger"
COLUMNS = (
    Column("inserts_per_s", "inserts/s"),
    Column("latency_ms", "ms an insert", 2, higher_is_better=False),
    Column("executed_per_s", "executed/s"),
    Column("left", "left at the end", 0, higher_is_better=False),
)
SCRIPT = "INSERT INTO notifyworker.runs (kind, payload) VALUES ('bench', '{\"t\": 0}');\n"


def cases(contenders: list[Contender], options: Options) -> list[Case]:
    return [
        Case(contender, f"{clients} clients", {"clients": clients})
        for clients in options.clients
        for contender in contenders
        if NAME in contender.takes
    ]


def run(lab: Lab, case: Case, options: Options) -> dict[str, float]:
    with lab.turn(case.contender) as turn:
        turn.run("prepare", 60)
        turn.run("fill", 60, count=1)
        lab.execute("CHECKPOINT")
        worker = turn.start("work")
        until(turn, 1, READY_S)
        figures = _pgbench(turn, case.parameters["clients"], options.seconds)
        executed = turn.tallies.count() - 1
        turn.check([worker])
        turn.stop([worker])
    inserted = figures.pop("inserted")
    return figures | {"executed_per_s": executed / options.seconds, "left": max(0.0, inserted - executed)}


def _pgbench(turn: Turn, clients: int, seconds: float) -> dict[str, float]:
    script = turn.directory / "insert.sql"
    script.write_text(SCRIPT)
    threads = min(clients, os.cpu_count() or 1)
    options = ["-n", "-M", "prepared", "-c", str(clients), "-j", str(threads), "-T", f"{seconds:.0f}", "-f", str(script)]
    done = subprocess.run(
        [str(turn.lab.program("pgbench")), *options, turn.lab.dsn(turn.database)],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 30,
    )
    found = {
        "inserted": re.search(r"actually processed: (\d+)", done.stdout),
        "latency_ms": re.search(r"latency average = ([\d.]+) ms", done.stdout),
        "inserts_per_s": re.search(r"tps = ([\d.]+)", done.stdout),
    }
    if done.returncode or not all(found.values()):
        message = f"pgbench: {done.stderr.strip()[-300:]}"
        raise TurnError(message)
    return {name: float(match[1]) for name, match in found.items() if match}
