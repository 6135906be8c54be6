"""`notifyworker doctor` and `notifyworker healthcheck`: is all well, and what to do if not."""

import shutil
import signal
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from notifyworker.cli import DONE, FAILED, output
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions, Json
from notifyworker.errors import NotifyWorkerError, SettingsError

if TYPE_CHECKING:
    from notifyworker.doctor import Finding

_DEADLINE_S = 3.0
_PLURALS = {"warning": "s", "note": "s"}
_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "failing": "bold red"}


async def doctor(
    *,
    listen_dsn: Annotated[str | None, Parameter(help="Direct connection for LISTEN, where --dsn is a pooler's.")] = None,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> int:
    """
    Examine an installation and its surroundings, and say what to do about each finding.

    It changes nothing and waits for nobody's lock. As the schema's owner it sees most. Exit code 1 if something is
    failing; warnings and notes are 0.
    """
    from notifyworker.cli.options import log_early
    from notifyworker.database import describe
    from notifyworker.doctor import Verdict, examine, worst
    from notifyworker.settings import Settings

    log_early("auto", "warning")
    settings = Settings.load(command_line={**database.given(), "listen_dsn": listen_dsn})
    with output.busy("examining"):
        found = await examine(settings)
    verdict = worst(found)
    if json:
        output.document(
            {
                "database": describe(settings.require_dsn()),
                "schema": settings.schema_name,
                "verdict": verdict,
                "findings": [{"name": f.name, "verdict": f.verdict, "seen": f.seen, "todo": f.todo or None} for f in found],
            }
        )
    else:
        _show(found)
    return FAILED if verdict is Verdict.FAILING else DONE


def healthcheck(
    *,
    host: Annotated[str | None, Parameter(help="Where the sidecar listens [default: NOTIFYWORKER_HOST, 127.0.0.1].")] = None,
    port: Annotated[int | None, Parameter(help="Its port [default: NOTIFYWORKER_PORT, 8080].")] = None,
    url: Annotated[str | None, Parameter(help="In place of both: http://host:port/readyz, for instance.")] = None,
    json: Json = False,
) -> int:
    """Ask a worker's sidecar how it is: exit code 0 if it answers that all is well within 3 s, else 1."""
    from http.client import HTTPException

    asked = url or _healthz(host, port)
    try:
        status, text = _answer(asked)
    except ValueError:
        message = f"url: not an http address: {asked!r}"
        raise SettingsError(message, hint="http://127.0.0.1:8080/healthz") from None
    except TimeoutError:
        message = f"{asked}: no answer within {_DEADLINE_S:g} s"
        raise NotifyWorkerError(message) from None
    except (OSError, HTTPException) as error:
        why = "nobody answers there" if isinstance(error, ConnectionRefusedError) else f"{error or type(error).__name__}"
        message = f"{asked}: {why}"
        raise NotifyWorkerError(message) from None
    if json:
        output.document({"url": asked, "status": status, "answer": text})
    else:
        output.line(f"{status} {output.printable(' '.join(text.split()))}")
    return DONE if status == 200 else FAILED  # noqa: PLR2004 - HTTP's own number


def _answer(url: str) -> tuple[int, str]:
    """Status and body. By the standard library, since a container asks every few seconds: aiohttp is slow to import."""
    from http.client import HTTPConnection, HTTPSConnection
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        message = "no http address"
        raise ValueError(message)
    secure = parts.scheme == "https"
    connection = (HTTPSConnection if secure else HTTPConnection)(parts.hostname, parts.port, timeout=_DEADLINE_S)
    # The socket's deadline is of each read anew; this one is of all of it.
    signal.signal(signal.SIGALRM, _too_late)
    signal.setitimer(signal.ITIMER_REAL, _DEADLINE_S)
    try:
        connection.request("GET", parts._replace(scheme="", netloc="", fragment="").geturl() or "/")
        answer = connection.getresponse()
        return answer.status, answer.read(2000).decode(errors="replace")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.close()


def _too_late(_signal: int, _frame: object) -> None:
    raise TimeoutError


def _healthz(host: str | None, port: int | None) -> str:
    from notifyworker.settings import Settings

    settings = Settings.load(command_line={"host": host, "port": port})
    # Who listens everywhere is asked over loopback.
    name = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.host, settings.host)  # noqa: S104 - not bound, asked
    return f"http://{f'[{name}]' if ':' in name else name}:{settings.port}/healthz"


def _show(found: "list[Finding]") -> None:
    """One finding a paragraph, folded on a terminal; elsewhere each of its two parts on one line."""
    names = max(len(finding.name) for finding in found)
    margin = " " * (len("failing") + 2 + names + 2)
    for finding in found:
        head = f"{finding.verdict:<9}{finding.name.ljust(names)}  "
        for number, text in enumerate(_folded(finding.seen, len(margin))):
            if number:
                output.line(margin + text)
            else:
                _headed(head, finding.verdict, text)
        for number, text in enumerate(_folded(finding.todo, len(margin) + 3) if finding.todo else []):
            output.line(f"{margin}{'   ' if number else '-> '}{text}")
    counted = {verdict: sum(finding.verdict == verdict for finding in found) for verdict in reversed(_STYLES)}
    output.line("")
    output.line(", ".join(f"{n} {verdict}{_PLURALS.get(verdict, '') if n != 1 else ''}" for verdict, n in counted.items()))


def _folded(text: str, margin: int) -> list[str]:
    lines = [line if line.isprintable() else output.printable(line) for line in text.splitlines()] or [""]
    if not sys.stdout.isatty():
        return lines
    width = max(30, shutil.get_terminal_size().columns - margin)
    folded = []
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()))
        folded += textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent) or [""]
    return folded


def _headed(head: str, verdict: str, text: str) -> None:
    if not sys.stdout.isatty():
        output.line(head + text)
        return
    from rich.console import Console
    from rich.text import Text

    shown = Text(head + text)
    shown.stylize(_STYLES[verdict], 0, len(verdict))
    Console(highlight=False).print(shown, soft_wrap=True)
