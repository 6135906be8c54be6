"""
The demo's workers: processes of this installation, started as a user starts them.

Each has a session of its own, so that Ctrl-C reaches the demo alone, and a pipe from the demo as its standard input,
whose end it does not survive: nothing is left running, however the demo ends.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from notifyworker.cli.demo_handlers import GUARD, OUTBOX
from notifyworker.errors import NotifyWorkerError

_STOP_S = 10.0


class Member:
    """One worker process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        self.url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.was_killed = False
        self._last: deque[str] = deque(maxlen=5)
        self._reader = asyncio.create_task(self._read(), name=f"log of {name}")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def check(self) -> None:
        """Raise NotifyWorkerError if it has ended, with its last words."""
        if self.process.returncode is not None and not self.was_killed:
            message = f"{self.name} ended with exit code {self.process.returncode}: {' | '.join(self._last) or 'no log'}"
            raise NotifyWorkerError(message)

    async def kill(self) -> None:
        """End it as a crash does."""
        self.was_killed = True
        self._signal(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> None:
        """Ask it to drain; insist after a while."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self.process.wait()
        self._signal(signal.SIGKILL)
        await self.process.wait()
        self._reader.cancel()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended, and so has its group
            if self.process.returncode is None:
                os.killpg(self.process.pid, number)

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while True:
            try:
                raw = await self.process.stderr.readline()
            except ValueError:  # a line beyond the limit: its rest is another line
                continue
            if not raw:
                return
            self._last.append(raw.decode(errors="replace").strip()[:500])
            with contextlib.suppress(ValueError):
                event = json.loads(raw)
                if isinstance(event, dict) and event.get("event") == "sidecar_listening" and not self.url.done():
                    self.url.set_result(str(event["url"]).rstrip("/"))


class Fleet:
    """The demo's processes; leaving it ends them all."""

    def __init__(self, environment: Mapping[str, str], *, dsn: str, schema: str, project: str, work: Path) -> None:
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH", "")]))
        self._environment = {
            **environment,
            "PYTHONPATH": path,  # also where the demo was started from a checkout that is not installed
            "NOTIFYWORKER_DSN": dsn,
            "NOTIFYWORKER_SCHEMA": schema,
            "NOTIFYWORKER_PROJECT_IDS": project,
            "NOTIFYWORKER_LOG_FORMAT": "json",
            "NOTIFYWORKER_DRAIN_TIMEOUT_S": "1",
            OUTBOX: str(work / "outbox"),
            GUARD: "1",
        }
        self._work = work
        self.members: list[Member] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await asyncio.gather(*(member.stop() for member in self.members))

    async def start(self, *options: str) -> Member:
        """Start one more worker."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "notifyworker", "worker", "notifyworker.cli.demo_handlers:worker", *options),
            env=self._environment,
            cwd=self._work,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=2**20,
        )
        member = Member(f"worker {len(self.members) + 1}", process)
        self.members.append(member)
        return member

    def check(self) -> None:
        """Raise NotifyWorkerError if a worker has ended that should not have."""
        for member in self.members:
            member.check()


async def fetch_json(url: str) -> Any:
    """GET, past any proxy that the environment names. Raises NotifyWorkerError."""
    from urllib.request import ProxyHandler, build_opener

    def get() -> Any:
        with build_opener(ProxyHandler({})).open(url, timeout=10) as answer:
            return json.load(answer)

    try:
        return await asyncio.to_thread(get)
    except (OSError, ValueError) as error:
        message = f"{url} does not answer as it should: {error}"
        raise NotifyWorkerError(message) from None
