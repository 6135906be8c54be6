"""
What waking costs the producers: single-row inserts, each its own transaction, by so many clients, a worker draining.

The clients are pgbench's, with prepared statements; each inserts again as soon as its last insert is committed.
"""

import os
import re
import subprocess
import time

from benchmarks.contender import Contender
from benchmarks.lab import Lab, Turn, TurnError
from benchmarks.scenarios import Case, Column, Options
from benchmarks.scenarios.load import READY_S, SETTLE_S, until

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
    taking = [contender for contender in contenders if NAME in contender.takes]
    found = [Case(c, f"{clients} clients", {"clients": clients}) for clients in options.clients for c in taking]
    # A deploy, or the death of all workers: the leader comes when the inserts are there already.
    late = {"clients": max(options.clients, key=lambda clients: -abs(clients - 32)), "late": 1}
    found += [Case(c, f"{late['clients']} clients, worker started after them", late) for c in taking if c.name == "us"]
    return found


def run(lab: Lab, case: Case, options: Options) -> dict[str, float]:
    with lab.turn(case.contender) as turn:
        turn.run("prepare", 60)
        turn.run("fill", 60, count=1)
        lab.execute("CHECKPOINT")
        if "late" in case.parameters:
            clients = _started(turn, case.parameters["clients"], options.seconds)
            time.sleep(1)
            worker = turn.start("work")
        else:
            worker = turn.start("work")
            until(turn, 1, READY_S)
            time.sleep(SETTLE_S)
            clients = _started(turn, case.parameters["clients"], options.seconds)
        figures = _finished(clients, options.seconds)
        executed = turn.tallies.count() - 1
        turn.check([worker])
        turn.stop([worker])
    inserted = figures.pop("inserted")
    return figures | {"executed_per_s": executed / options.seconds, "left": max(0.0, inserted - executed)}


def _started(turn: Turn, clients: int, seconds: float) -> "subprocess.Popen[str]":
    script = turn.directory / "insert.sql"
    script.write_text(SCRIPT)
    threads = min(clients, os.cpu_count() or 1)
    options = ["-n", "-M", "prepared", "-c", str(clients), "-j", str(threads), "-T", f"{seconds:.0f}", "-f", str(script)]
    command = [str(turn.lab.program("pgbench")), *options, turn.lab.dsn(turn.database)]
    return turn.own(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True))


def _finished(process: "subprocess.Popen[str]", seconds: float) -> dict[str, float]:
    try:
        out, err = process.communicate(timeout=seconds + 30)
    except subprocess.TimeoutExpired:
        message = "pgbench did not end"
        raise TurnError(message) from None
    found = {
        "inserted": re.search(r"actually processed: (\d+)", out),
        "latency_ms": re.search(r"latency average = ([\d.]+) ms", out),
        "inserts_per_s": re.search(r"tps = ([\d.]+)", out),
    }
    if process.returncode or not all(found.values()):
        message = f"pgbench: {err.strip()[-300:]}"
        raise TurnError(message)
    return {name: float(match[1]) for name, match in found.items() if match}
