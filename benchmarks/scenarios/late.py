"""
Runs that become visible long after they were inserted: from the COMMIT, so many seconds after BEGIN, to the handler.

Twelve transactions, staggered: six insert at once after BEGIN and commit late, six insert right before they commit; all
have the `run_at` of their BEGIN, far behind what has been claimed meanwhile. `under load`: 400 single-row inserts a second
by pgbench, which is more than the leader lets notify for themselves. Under a `held snapshot` somebody else's, older
transaction stays open as well.
"""

import asyncio
import contextlib
import subprocess
import time

import asyncpg

from benchmarks.contender import Contender
from benchmarks.lab import Asking, Lab, Turn, TurnError
from benchmarks.scenarios import Case, Column, Options, ours
from benchmarks.scenarios.held import hold_snapshot
from benchmarks.scenarios.hot import started
from benchmarks.scenarios.inserts import SCRIPT
from benchmarks.scenarios.pickup import spread

NAME = "late"
TITLE = "A run committed long after its BEGIN: COMMIT to handler, ms"
BASE = "us"
AGAINST = "idle"
PICTURE = False
COLUMNS = (
    Column("max_ms", "max", 1, higher_is_better=False),
    Column("p50_ms", "p50", 2, higher_is_better=False),
    Column("left", "not picked up", 0, higher_is_better=False, divided=False),
    Column("others_per_s", "others/s", divided=False),
)
VARIANTS = (AGAINST, "under load", "held snapshot", "under load, held snapshot")
LATE = 12
APART_S = 0.25
LOAD_PER_S = 400
CATCH_UP_S = 10.0
INSERT = "INSERT INTO notifyworker.runs (kind, payload) VALUES ('bench', $1)"


def cases(contenders: list[Contender], _options: Options) -> list[Case]:
    return [Case(contender, variant) for contender in ours(contenders) for variant in VARIANTS]


def run(lab: Lab, case: Case, options: Options) -> dict[str, float]:
    with lab.turn(case.contender) as turn, contextlib.ExitStack() as stack:
        turn.run("prepare", 60)
        worker = started(turn)
        if "snapshot" in case.variant:
            hold_snapshot(stack.enter_context(Asking(lab.dsn(turn.database))))
        if "load" in case.variant:
            _load(turn, options.hold_s + LATE * APART_S + CATCH_UP_S + 5)
        before, begin = turn.tallies.count(), time.monotonic()
        asyncio.run(_committed_late(lab.dsn(turn.database), options.hold_s))
        others = (turn.tallies.count() - before) / (time.monotonic() - begin)
        deadline = time.monotonic() + CATCH_UP_S
        while len(latencies := turn.tallies.latencies_ms()) < LATE and time.monotonic() < deadline:
            time.sleep(0.1)
        turn.check([worker])
        turn.stop([worker])
    if not latencies:
        message = f"nothing was picked up within {CATCH_UP_S:g} s"
        raise TurnError(message)
    return spread(latencies) | {"left": LATE - len(latencies), "others_per_s": others, "trouble": turn.trouble}


def _load(turn: Turn, seconds: float) -> None:
    script = turn.directory / "insert.sql"
    script.write_text(SCRIPT)
    options = ["-n", "-M", "prepared", "-c", "8", "-R", str(LOAD_PER_S), "-T", f"{seconds:.0f}", "-f", str(script)]
    command = [str(turn.lab.program("pgbench")), *options, turn.lab.dsn(turn.database)]
    null = subprocess.DEVNULL
    turn.own(subprocess.Popen(command, stdout=null, stderr=null, text=True, start_new_session=True))


async def _committed_late(dsn: str, hold_s: float) -> None:
    async def one(place: int) -> None:
        commit_at = begin + hold_s + place * APART_S
        # The stamp is when COMMIT will be called.
        payload = f'{{"t": {int(commit_at * 1e9)}}}'
        await asyncio.sleep(place * APART_S)
        conn = await asyncpg.connect(dsn)
        try:
            async with conn.transaction():
                if place % 2:
                    await conn.execute(INSERT, payload)
                    await asyncio.sleep(commit_at - time.monotonic())
                else:
                    await asyncio.sleep(commit_at - 0.05 - time.monotonic())
                    await conn.execute(INSERT, payload)
                    await asyncio.sleep(commit_at - time.monotonic())
        finally:
            await conn.close()

    begin = time.monotonic()
    await asyncio.gather(*(one(place) for place in range(LATE)))
