"""Plays all acts side by side, then the storm, and gathers the rows of the table."""

import asyncio
import contextlib
import random
import shutil
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from servers import Cluster

from chaos import failover, families, faults, many_hosts, mixture, network, outages, schedules  # noqa: F401 - they register what they do
from chaos.acts import ACTS, Act, Skip
from chaos.arena import CONF, Arena, arena, prepare
from chaos.forms import Form
from chaos.storm import FAULTS, Storm
from chaos.table import Row
from chaos.thread import ProxyThread

MIXTURE = "all of it at once"


class Play:
    """One run of the harness."""

    def __init__(self, form: Form, seed: int, directory: Path, tell: Callable[[Row, float], None]) -> None:
        self.form = form
        self.seed = seed
        self.directory = directory
        self.tell = tell
        self.thread = ProxyThread()
        self._turns = asyncio.Semaphore(form.side_by_side)

    async def perform(self, acts: list[Act], *, storm: bool) -> list[Row]:
        """Perform these, and the storm beside them or after."""
        order = random.Random(self.seed).sample(acts, len(acts))
        async with Cluster(conf=CONF) as shared:
            await prepare(shared)
            try:
                tasks = [asyncio.create_task(self._act(act, shared)) for act in order]
                rows = await asyncio.gather(*tasks)
                if storm:
                    rows += await self._storm()
            finally:
                self.thread.stop()
        places = {act.name: i for i, act in enumerate(acts)}
        return sorted(rows, key=lambda row: places.get(row.fault, len(places)))

    async def _act(self, act: Act, shared: Cluster) -> Row:
        async with self._turns:
            row = Row(act.name, bound_s=act.bound_s(self.form) + act.has_slack * self.form.slack_s)

            async def script(a: Arena) -> None:
                row.recovery_s = await act.script(a)

            began = time.monotonic()
            await self._played(row, script, None if act.needs_server else shared, self.form.act_s)
            self.tell(row, time.monotonic() - began)
            return row

    async def _storm(self) -> list[Row]:
        began = time.monotonic()
        row = Row(MIXTURE, bound_s=self.form.drain_s)
        rows = {name: Row(f"mixture: {name}", runs=None) for name in sorted(FAULTS)}

        async def script(a: Arena) -> None:
            storm = Storm(a)
            a.is_mixed = True
            a.gil_is_frozen = True
            try:
                await storm.blow()
            finally:
                for name, one in rows.items():
                    one.injected = storm.fired[name]

        await self._played(row, script, None, 3 * self.form.mixture_s + self.form.act_s)
        self.tell(row, time.monotonic() - began)
        return [*rows.values(), row]

    async def _played(self, row: Row, script: "Callable[[Arena], object]", shared: Cluster | None, limit_s: float) -> None:
        seed = zlib.crc32(f"{self.seed}:{row.fault}".encode())
        directory = Path(tempfile.mkdtemp(dir=self.directory))
        try:
            async with arena(
                name=row.fault, form=self.form, shared=shared, directory=directory, thread=self.thread, seed=seed
            ) as a:
                try:
                    async with asyncio.timeout(limit_s):
                        await script(a)  # type: ignore[misc]
                except Skip as skip:
                    row.skipped = str(skip)
                    return
                except Exception as error:  # a script that fails is a red row, not the end of the play
                    row.wrong.append(f"{type(error).__name__}: {error}")
                healed_at = time.monotonic()
                verdict = await a.verdict()
                row.injected, row.runs, row.notes = a.injected, verdict.runs, a.notes
                if row.fault == MIXTURE:  # until nothing was left to do
                    row.recovery_s = a.drained_at - healed_at
                row.lost, row.double = len(verdict.lost), len(verdict.double)
                row.wrong += [*a.wrong, *verdict.lost, *verdict.double, *verdict.wrong]
                if not verdict.runs:
                    row.wrong.append("no run was inserted")
                packages = {e.facts["package"] for e in a.reader.entries if e.what == "up"}
                if packages != a.packages:
                    row.wrong.append(f"the workers were made of {packages}")
        except Exception as error:  # as above
            row.wrong.append(f"the arena: {type(error).__name__}: {error}")
        if row.is_red:
            row.wrong.append(f"its ledger and logs are in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.asynccontextmanager
async def scratch() -> AsyncIterator[Path]:
    """A directory that stays if anything is left in it."""
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        yield directory
    finally:
        with contextlib.suppress(OSError):
            directory.rmdir()


def chosen(only: str, *, short: bool = False) -> list[Act]:
    """Those whose name contains one of these words, comma-separated; for none all, or all of the short form."""
    words = [word.strip() for word in only.split(",") if word.strip()]
    if not words:
        return [act for act in ACTS if not (short and act.is_long)]
    return [act for act in ACTS if any(word in act.name for word in words)]
