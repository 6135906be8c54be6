"""
Many runs through a table that stays small: a producer and a worker together, as long as it takes.

The producer inserts 1,000 rows a statement, and waits while 20,000 are ahead of the worker: so the table is hot and never
large. In brackets: the figure divided by that without the leader's vacuum. That one is switched off from outside, by
taking MAINTAIN from the role whose member the worker's login is; its login is the same in both. Autovacuum looks
once a minute in both. Sizes and dead rows are the largest that were seen, four times a second.
"""

import itertools
import subprocess
import time
from dataclasses import dataclass

from benchmarks.contender import Contender
from benchmarks.lab import Asking, Lab, Turn, TurnError
from benchmarks.scenarios import Case, Column, Options, ours
from benchmarks.scenarios.load import READY_S, SETTLE_S, until

NAME = "hot"
TITLE = "A hot table: producer and worker together"
BASE = "us"
AGAINST = "leader may not vacuum"
COLUMNS = (
    Column("runs_per_s", "runs/s"),
    Column("last_to_first", "last tenth / first", 2),
    Column("table_mib", "table MiB", 1, higher_is_better=False),
    Column("total_mib", "with indexes MiB", 1, higher_is_better=False),
    Column("dead_rows", "dead rows", 0, higher_is_better=False),
    Column("vacuums", "vacuums", divided=False),
    Column("autovacuums", "by autovacuum", divided=False),
    Column("executed", "executed", divided=False),
)
BATCH, AHEAD = 1_000, 20_000
LONGEST_S = 150.0
PARTS = 10
LOOK_S = 0.25
POLL_S = 0.002
LOGIN = "bench_worker"

#: Of a lower priority than a probe has, so that a probe does not wait for what is ahead of it.
INSERT = (
    f"INSERT INTO notifyworker.runs (kind, priority, payload) SELECT 'bench', -1, '{{\"t\": 0}}' FROM generate_series(1, {BATCH})"
)
SIZES = """
SELECT ARRAY[pg_table_size('notifyworker.runs'), pg_total_relation_size('notifyworker.runs'),
             pg_stat_get_dead_tuples('notifyworker.runs'::regclass)]"""
VACUUMS = "SELECT ARRAY[vacuum_count, autovacuum_count] FROM pg_stat_user_tables WHERE relid = 'notifyworker.runs'::regclass"


def cases(contenders: list[Contender], _options: Options) -> list[Case]:
    return [Case(contender, variant) for contender in ours(contenders) for variant in (AGAINST, "leader vacuums")]


def run(lab: Lab, case: Case, options: Options) -> dict[str, float]:
    with lab.turn(case.contender) as turn:
        turn.run("prepare", 60)
        lab.make_login(LOGIN, member_of="notifyworker_worker")
        if case.variant == AGAINST:
            lab.execute("REVOKE MAINTAIN ON notifyworker.runs FROM notifyworker_worker", turn.database)
        worker = started(turn, dsn=lab.dsn(turn.database, LOGIN))
        growth = through(turn, worker, options.through)
        vacuums, autovacuums = lab.execute(VACUUMS, turn.database)
        turn.stop([worker])
    rates = growth.rates(PARTS)
    return growth.figures() | {
        "last_to_first": rates[-1] / rates[0],
        "vacuums": vacuums,
        "autovacuums": autovacuums,
        "trouble": turn.trouble,
    }


def started(turn: Turn, **options: object) -> "subprocess.Popen[bytes]":
    """A worker that has executed one run and done what a worker does after its start."""
    turn.run("fill", 60, count=1)
    turn.lab.execute("CHECKPOINT")
    worker = turn.start("work", **options)
    until(turn, 1, READY_S)
    time.sleep(SETTLE_S)
    turn.check([worker])
    return worker


@dataclass
class Growth:
    """What was seen while runs went through: moments with what was executed until then, and the largest sizes."""

    seen: list[tuple[float, int]]
    sizes: list[int]

    def _at(self, count: float) -> float:
        """When so many were executed, between what was seen before and after."""
        before = self.seen[0]
        for moment in self.seen:
            if moment[1] >= count:
                share = (count - before[1]) / (moment[1] - before[1]) if moment[1] > before[1] else 1.0
                return before[0] + share * (moment[0] - before[0])
            before = moment
        return self.seen[-1][0]

    def rates(self, parts: int) -> list[float]:
        """Runs a second of each part: equal parts of what was executed."""
        first, last = self.seen[0][1], self.seen[-1][1]
        step = (last - first) / parts
        moments = [self._at(first + step * part) for part in range(parts + 1)]
        return [step / max(1e-9, end - begin) for begin, end in itertools.pairwise(moments)]

    def figures(self) -> dict[str, float]:
        """Rate and sizes; each tenth's rate for the picture."""
        executed = self.seen[-1][1] - self.seen[0][1]
        table, total, dead = self.sizes
        tenths = {f"tenth_{number:02}": rate for number, rate in enumerate(self.rates(PARTS), 1)}
        return {
            "runs_per_s": executed / (self.seen[-1][0] - self.seen[0][0]),
            "executed": executed,
            "table_mib": table / 2**20,
            "total_mib": total / 2**20,
            "dead_rows": dead,
        } | tenths


def through(turn: Turn, worker: "subprocess.Popen[bytes]", n: int) -> Growth:
    """
    Insert runs, never too far ahead of the worker, until n more than the first few are executed or LONGEST_S have passed.

    What is seen begins when those few, that find the worker idle, are through; and the producer goes on to the end, so
    that neither the first part nor the last has the machine for itself.
    """
    dsn = turn.lab.dsn(turn.database)
    few = min(AHEAD, n // 10)
    base = turn.tallies.count()
    count, inserted, look_at, sizes = 0, 0, 0.0, [0, 0, 0]
    begin = now = time.monotonic()
    seen: list[tuple[float, int]] = []
    with Asking(dsn) as producer, Asking(dsn) as looker:
        while count < few + n and now - begin < LONGEST_S:
            if inserted - count < AHEAD:
                producer.value(INSERT)
                inserted += BATCH
            else:
                time.sleep(POLL_S)
            now, count = time.monotonic(), turn.tallies.count() - base
            if count >= few and (not seen or count > seen[-1][1]):
                seen.append((now, count))
            if now >= look_at:
                look_at = now + LOOK_S
                sizes = [max(pair) for pair in zip(sizes, looker.value(SIZES), strict=True)]
                turn.check([worker])
    if len(seen) < 2:
        message = f"{count:,} of {n:,} were executed within {now - begin:.0f} s: too few for a rate of their parts"
        raise TurnError(message)
    return Growth(seen, sizes)
