"""docs/backups.md: a dump of a database at work, restored into a newer PostgreSQL, and what becomes of what was running."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from servers import Cluster, _programs, eventually
from test_doctor import patient_of
from test_life import insert, run_of, settled, state

from notifyworker import NotifyWorkerError, Run, Worker
from notifyworker.doctor import drift
from notifyworker.doctor.finding import Verdict
from notifyworker.embedded import binaries
from notifyworker.migrate import migrate

PAGE = (Path(__file__).parents[1] / "docs" / "backups.md").read_text()


def has_both() -> bool:
    try:
        return all((binaries(major) / "pg_dump").exists() for major in (16, 18))
    except NotifyWorkerError:
        return False


def worker_of(dsn: str, executed: list[object], until: asyncio.Event) -> Worker:
    """Whose leases end soon after a dump is restored."""
    worker = Worker(dsn, lease_s=4, heartbeat_interval_s=0.5)

    @worker.handler("held")
    async def held(run: Run) -> None:
        executed.append(run.run_id)
        await until.wait()

    @worker.handler("quick")
    async def quick(run: Run) -> None:
        executed.append(run.run_id)

    return worker


async def move(old: str, new: str, folder: Path) -> str:
    """As the page says it."""
    (commands,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    path = os.pathsep.join([str(_programs(18)), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    env |= {"OLD": old, "NEW": new, "PATH": path, "LC_ALL": "C.UTF-8"}
    done = await asyncio.to_thread(
        subprocess.run,
        ["sh", "-e"],
        input=commands,
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stderr.splitlines() if 'role "postgres" already exists' not in line] == []
    return done.stdout


@pytest.mark.skipif(not has_both(), reason="pg_dump and servers of two major versions come with notifyworker[embedded]")
async def test_a_dump_with_runs_that_were_running(tmp_path: Path) -> None:
    there: list[object] = []
    here: list[object] = []
    over = asyncio.Event()
    async with Cluster(major=16) as old, Cluster(major=18) as new:
        await migrate(old.dsn, "notifyworker")
        source = await asyncpg.connect(old.dsn)
        await source.execute("CREATE ROLE shop LOGIN; GRANT notifyworker_producer TO shop")
        await source.execute("UPDATE notifyworker.settings SET value = '0.5' WHERE name = 'reaper_interval_s'")
        await source.execute("SELECT notifyworker.set_limit(kind => 'other', max_running => 5)")
        async with worker_of(old.dsn, there, over):
            held = await insert(source, "held", concurrency_key="k")
            behind = await insert(source, "held", concurrency_key="k")
            done = await insert(source, "quick", idempotency_key="once")
            await settled(source, done)
            later = await insert(source, "quick", run_at=await source.fetchval("SELECT now() + interval '1 hour'"))
            await eventually(lambda: held in there)
            told = await move(old.dsn, new.dsn, tmp_path)
            assert "drift" in told
            over.set()
            await settled(source, held)  # the two know nothing of each other
        await source.close()
        over.clear()

        target = await asyncpg.connect(new.dsn)
        async with patient_of(new.dsn) as patient:
            assert [finding.verdict for finding in await drift.drift(patient)] == [Verdict.OK], await drift.drift(patient)
        assert await state(target, held) == "running"
        async with worker_of(new.dsn, here, over):
            await eventually(lambda: held in here)
            assert await state(target, behind) == "pending"  # its key is taken, as it was
            over.set()
            for run_id in (held, behind):
                await settled(target, run_id)
        run = await run_of(target, held)
        assert (run["state"], run["attempt"], run["lease_token"]) == ("completed", 2, 2)
        assert [error["code"] for error in json.loads(run["errors"])] == ["E-RUN-002"]
        assert sorted(here) == sorted([held, behind])  # and not what was settled before
        assert await state(target, later) == "pending"
        again = "SELECT notifyworker.enqueue('quick', idempotency_key => 'once')"
        assert await target.fetchval(again) == done
        await target.execute("SELECT notifyworker.set_limit(kind => 'another', max_running => 5)")
        assert await target.fetchval("SELECT count(DISTINCT limit_id) FROM notifyworker.limits") == 2
        await target.execute("SET ROLE shop; INSERT INTO notifyworker.runs (kind) VALUES ('quick'); RESET ROLE")
        await target.close()
