"""
What a handler writes to run.log, kept with its run: the last lines of each lease, bounded in number and in size.

They are written with the worker's heartbeats, and together with the run's settle; never a statement a line. Knows the logger of
the user's own choice only as something that has methods named after levels.
"""

import asyncio
import logging
import sys
import threading
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote
from uuid import UUID

from notifyworker import payload as payloads
from notifyworker.database import DatabaseError, Link, brief, is_refusal
from notifyworker.mask import SECRETS, without_secrets
from notifyworker.observe import log
from notifyworker.run import Outcome, Run
from notifyworker.run_log_store import NewLog, RunLogStore
from notifyworker.settings import Settings

LINE_BYTES = 2000
_EVENT_BYTES = 1000
_BATCH_CHARACTERS = 4 * 1024 * 1024
_SHORTEST_SECRET = 4  # a shorter one would be found in every other word
_LEVELS = {
    "debug": "debug", "info": "info", "msg": "info", "warning": "warning", "warn": "warning", "error": "error", "err": "error",
    "exception": "error", "critical": "critical", "fatal": "critical",
}  # fmt: skip


class Lines:
    """The last lines of one lease. Handlers write them, perhaps from threads."""

    def __init__(self, run: Run, limit: int, secrets: Collection[str]) -> None:
        self.run_id = run.run_id
        self.lease_token = run.lease_token
        self._secrets = secrets
        self._kept: deque[str] = deque(maxlen=limit)
        self._count = 0
        self._written = 0
        self._lock = threading.Lock()

    def add(self, level: str, event: Any, fields: dict[str, Any]) -> None:
        """Keep one line: what is no JSON as text, what is too long cut, secrets hidden. Never raises."""
        head = {"at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"), "level": level}
        shown = without_secrets({"event": event, **fields}, self._secrets)
        line = payloads.encode_leniently({**head, **shown})
        if len(line.encode()) > LINE_BYTES:
            short = payloads.clean_text(str(shown["event"]), _EVENT_BYTES)
            line = payloads.encode_leniently({**head, "event": short, "cut": True})
        with self._lock:
            self._kept.append(line)
            self._count += 1

    @property
    def is_dirty(self) -> bool:
        """Whether there are lines that were not written yet."""
        return self._count > self._written

    def snapshot(self, *, is_whole: bool) -> tuple[NewLog, int]:
        """Return what is to be written, and what `wrote` is to be told once it is."""
        with self._lock:
            lines, count = list(self._kept), self._count
        text = f"[{','.join(lines)}]"
        return NewLog(self.run_id, self.lease_token, text, len(lines), count - len(lines), is_whole), count

    def wrote(self, count: int) -> None:
        """Take note that so many lines were written."""
        self._written = count


class KeptLogger:
    """The user's logger, and what it is told is kept as well, if it would show it."""

    def __init__(self, inner: Any, lines: Lines, fields: dict[str, Any]) -> None:
        self._inner = inner
        self._lines = lines
        self._fields = fields

    def bind(self, **fields: Any) -> "KeptLogger":
        """As structlog's: a logger that has these fields too."""
        return KeptLogger(self._inner.bind(**fields), self._lines, {**self._fields, **fields})

    def unbind(self, *names: str) -> "KeptLogger":
        """As structlog's: a logger without these fields."""
        rest = {name: value for name, value in self._fields.items() if name not in names}
        return KeptLogger(self._inner.unbind(*names), self._lines, rest)

    def log(self, level: int, event: Any = None, *args: Any, **fields: Any) -> Any:
        """Write a line of this level, given as logging's number."""
        self._keep(logging.getLevelName(level).lower(), event, args, fields)
        return self._inner.log(level, event, *args, **fields)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        level = _LEVELS.get(name) or _LEVELS.get(name.removeprefix("a"))
        if level is None:
            return method

        def call(event: Any = None, *args: Any, **fields: Any) -> Any:
            if name.endswith("exception"):
                fields.setdefault("exc_info", True)
            self._keep(level, event, args, fields)
            return method(event, *args, **fields)

        return call

    def _keep(self, level: str, event: Any, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        shows = getattr(self._inner, "is_enabled_for", None)
        if shows is not None and not shows(logging.getLevelNamesMapping().get(level.upper(), logging.CRITICAL)):
            return
        if args:
            try:
                event = event % args
            except (TypeError, ValueError):  # the user's logger will say so
                event = f"{event} {args}"
        given = {**self._fields, **fields}
        if (raised := given.pop("exc_info", None)) and (error := _error_of(raised)) is not None:
            given["exception"] = f"{type(error).__name__}: {without_secrets(error, ())}"
        self._lines.add(level, event, given)


def _error_of(exc_info: Any) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    return exc_info[1] if isinstance(exc_info, tuple) else sys.exc_info()[1]


@dataclass(slots=True)
class RunLogs:
    """The logs of one worker's runs. `limit`: how many lines of a run are kept; 0: none."""

    store: RunLogStore
    link: Link
    lease_owner: str
    limit: int
    interval_s: float
    secrets: Collection[str]
    _open: dict[tuple[UUID, int], Lines] = field(default_factory=dict, init=False)

    def keeping(self, run: Run, inner: Any) -> Any:
        """Return a logger that keeps what `inner` is told."""
        if self.limit == 0:
            return inner
        lines = self._open[run.run_id, run.lease_token] = Lines(run, self.limit, self.secrets)
        return KeptLogger(inner, lines, {})

    def forget(self, ended: Iterable[Run | Outcome]) -> None:
        """Keep no more of these leases, whose runs are settled, given back or lost."""
        if self._open:
            for one in ended:
                self._open.pop((one.run_id, one.lease_token), None)

    async def run(self) -> None:
        """Write what was logged since, as often as leases are renewed, until cancelled."""
        while True:
            await asyncio.sleep(self.interval_s)
            await self._write([lines for lines in self._open.values() if lines.is_dirty], is_whole=False)

    async def finish(self, leases: Iterable[tuple[UUID, int]]) -> None:
        """Write all of these, whose handlers have ended, before they are settled: afterwards it is refused."""
        if self._open:
            await self._write([lines for lease in leases if (lines := self._open.get(lease)) is not None], is_whole=True)

    async def _write(self, open_lines: Sequence[Lines], *, is_whole: bool) -> None:
        taken = [(lines, *lines.snapshot(is_whole=is_whole)) for lines in open_lines]
        taken = [one for one in taken if one[1].line_count]
        while taken:
            size = 1
            while size < len(taken) and sum(len(new.lines) for _, new, _ in taken[: size + 1]) < _BATCH_CHARACTERS:
                size += 1
            batch, taken = taken[:size], taken[size:]
            if await self._put([new for _, new, _ in batch]):
                for lines, _, count in batch:
                    lines.wrote(count)

    async def _put(self, logs: Sequence[NewLog]) -> bool:
        """Write them, again if the connection was cut. Not for ever: a run's outcome does not wait for what was said about it."""
        for is_last in (False, True):
            try:
                await self.store.run_logs_put(self.link, self.lease_owner, logs, keep=self.limit)
            except DatabaseError as error:
                if is_last or is_refusal(error):
                    log.warning("run_log_not_written", runs=len(logs), error=brief(error))
                    return False
            else:
                return True
        return False


def secrets_of(settings: Settings) -> list[str]:
    """List what of a worker's own settings nobody may read."""
    dsns = [dsn.get_secret_value() for dsn in (settings.dsn, settings.listen_dsn, settings.admin_dsn) if dsn is not None]
    secrets = {found["url"] or found["word"] for dsn in dsns for found in SECRETS.finditer(dsn)}
    if settings.token is not None:
        secrets.add(settings.token.get_secret_value())
    return [secret for secret in secrets | {unquote(secret) for secret in secrets} if len(secret) >= _SHORTEST_SECRET]
