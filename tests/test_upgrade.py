"""A new version while runs come in, and a database that moves: what is there goes on, once, and nothing is lost."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Self

import asyncpg
import copies
import pytest
from servers import eventually
from structlog.testing import capture_logs
from test_cli import call, refused, start

from notifyworker import Run, SchemaTooNew, Worker
from notifyworker.migrate import newest

PRESENT, FOLLOWING = str(newest()), str(newest() + 1)
APP = """
import asyncio
from notifyworker import Run, Worker
from notifyworker.migrate import newest

worker = Worker(concurrency=2)

@worker.handler("new.work")
@worker.handler("work")
async def work(run: Run) -> dict:
    await asyncio.sleep(0.02)
    return {"by": newest()}
"""


@pytest.fixture
def next_version(tmp_path: Path) -> Path:
    """What a later version may do to tables in use."""
    return copies.next_version(
        tmp_path / "next",
        "ALTER TABLE {schema}.runs ADD COLUMN next text;\n"
        "ALTER TABLE {schema}.run_history ADD COLUMN next text;\n"
        "ALTER TABLE {schema}.workers ADD COLUMN next text;\n"
        "CREATE INDEX runs_next ON {schema}.runs (next) WHERE next IS NOT NULL;\n",
    )


@contextlib.asynccontextmanager
async def at_work(folder: Path, env: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker process. At the end of the block it drains, and has had nothing to complain of."""
    process = await start("worker", "app:worker", "--no-sidecar", cwd=folder, env=env)
    try:
        yield process
        assert process.returncode is None
        process.terminate()
        _, said = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 0
    lines = [json.loads(line) for line in said.decode().splitlines() if line.startswith("{")]
    assert [line for line in lines if line["level"] not in {"debug", "info"}] == []


class Producer:
    """Inserts for as long as the block lasts, as fast as it is worked off."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.kinds = ["work"]
        self.inserted: Counter[str] = Counter()
        self._is_over = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._produce())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.end()

    async def end(self) -> None:
        self._is_over.set()
        await self._task

    async def _produce(self) -> None:
        connection = await asyncpg.connect(self._dsn)
        while not self._is_over.is_set():
            for kind in list(self.kinds):
                if await connection.fetchval("SELECT count(*) FROM notifyworker.runs WHERE kind = $1", kind) < 10:
                    await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT $1 FROM generate_series(1, 10)", kind)
                    self.inserted[kind] += 10
            with contextlib.suppress(TimeoutError):  # a pace that leaves the machine to the workers
                await asyncio.wait_for(self._is_over.wait(), 0.02)
        await connection.close()


async def test_old_and_new_workers_side_by_side(
    dsn: str, connection: asyncpg.Connection, tmp_path: Path, next_version: Path
) -> None:
    """The old version is this process's, the new one has a migration more and a handler for a kind of its own."""
    (tmp_path / "app.py").write_text(APP)
    env = {"NOTIFYWORKER_DSN": dsn}
    new = {**env, "PYTHONPATH": str(next_version)}
    old = Worker(dsn, concurrency=2)

    @old.handler("work")
    async def work(run: Run) -> dict:
        await asyncio.sleep(0.02)  # so that neither of two workers can do it all
        return {"by": newest()}

    async def done(kind: str, by: str) -> int:
        return await connection.fetchval(DONE, kind, by)

    async def goes_on(kind: str, by: str) -> None:
        """Twenty runs more than now."""
        enough = await done(kind, by) + 20

        async def reached() -> bool:
            return await done(kind, by) >= enough

        await eventually(reached)

    async with Producer(dsn) as producer, contextlib.AsyncExitStack() as fleet:
        with capture_logs() as told:
            async with old:
                await goes_on("work", PRESENT)
                migrating = await start("migrate", env=new)
                said, _ = await migrating.communicate()
                assert f"is at version {FOLLOWING}" in said.decode()
                await goes_on("work", PRESENT)  # the old one, on the new schema

                producer.kinds.append("new.work")
                await fleet.enter_async_context(at_work(tmp_path, new))
                await goes_on("work", FOLLOWING)
                await goes_on("work", PRESENT)  # beside the new one
                await goes_on("new.work", FOLLOWING)
                assert old._conductor is not None
                assert old._conductor.health() == []
        assert [line for line in told if line["log_level"] not in {"debug", "info"}] == []

        # Who is started now must be new; what only inserts need not.
        message = f"is at version {FOLLOWING}, newer than this code, which knows {PRESENT} (install a newer notifyworker)"
        with pytest.raises(SchemaTooNew) as error:
            await old.__aenter__()
        assert message in str(error.value)
        assert message in await refused(3, "migrate", env=env)
        assert (await call("enqueue", "work", env=env)).code == 0
        producer.inserted["work"] += 1
        await goes_on("work", FOLLOWING)
        await producer.end()
        await eventually(lambda: _is_empty(connection))

    rows = await connection.fetch("SELECT kind, state, attempt, errors FROM notifyworker.all_runs")
    assert Counter(row["kind"] for row in rows) == producer.inserted
    assert {(row["state"], row["attempt"]) for row in rows} == {("completed", 1)}
    codes = {error["code"] for row in rows for error in json.loads(row["errors"])}
    assert codes <= {"interrupted"}  # claimed in the moment in which its worker was stopped, and given back
    assert await done("new.work", PRESENT) == 0


DONE = "SELECT count(*) FROM notifyworker.run_history WHERE kind = $1 AND result->>'by' = $2"


async def _is_empty(connection: asyncpg.Connection) -> bool:
    return not await connection.fetchval("SELECT count(*) FROM notifyworker.runs")
