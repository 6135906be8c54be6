"""
The command `notifyworker`: the only place that turns errors into exit codes.

What a command needs is imported when it runs, so that `--version` and `--help` are quick.
"""

import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from cyclopts import App, CycloptsError

from notifyworker.errors import InvalidRun, NotifyWorkerError, SettingsError, StartError

DONE, FAILED, WRONG_USE, NOT_STARTED, NOT_DRAINED = 0, 1, 2, 3, 4

_EXIT_CODES = """\
Exit codes: 0 done, or drained in time; 1 what was asked failed; 2 wrong use: arguments, settings, MODULE:ATTR; \
3 could not start: database, schema or port; 4 the drain's deadline passed; 130, 143 ended by a second signal."""
_SECRETS = re.compile(r"(://[^:/@\s]*:)\S*@|(password=)[^\s&]+", re.IGNORECASE)


def main(tokens: Sequence[str] | None = None) -> NoReturn:
    """Do what the command line says and exit."""
    try:
        code = _app()(tokens)
        sys.stdout.flush()
    except CycloptsError as error:
        _tell(str(error), see=f"{' '.join(['notifyworker', *(error.command_chain or ())])} --help")
        code = WRONG_USE
    except NotifyWorkerError as error:
        _tell(str(error))
        code = exit_code(error)
    except BrokenPipeError:  # the reader of our output has left, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def exit_code(error: NotifyWorkerError) -> int:
    """Return what the contract says."""
    if isinstance(error, SettingsError | InvalidRun):
        return WRONG_USE
    return NOT_STARTED if isinstance(error, StartError) else FAILED


def masked(text: str) -> str:
    """Hide passwords: nothing of ours prints one, but a mistyped command line may be quoted back."""
    return _SECRETS.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", text)


def _tell(text: str, *, see: str = "") -> None:
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in masked(text))
    print(f"error: {shown}{f' See: {see}' if see else ''}", file=sys.stderr, flush=True)


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415 - only when asked for

    return version("notifyworker")


def _app() -> App:
    app = App(
        name="notifyworker",
        help="Run what is inserted into a Postgres table.",
        help_epilogue=_EXIT_CODES,
        help_format="plaintext",
        version=_version,
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        default_parameter=None,
    )
    here = "notifyworker.cli"
    app.command(f"{here}.demo:demo", name="demo", sort_key=1)
    app.command(f"{here}.worker:dev", name="dev", sort_key=2)
    app.command(f"{here}.worker:worker", name="worker", sort_key=3)
    app.command(f"{here}.schema:migrate", name="migrate", sort_key=4)
    app.command(f"{here}.schema:schema", name="schema", sort_key=5)
    app.command(f"{here}.runs:enqueue", name="enqueue", sort_key=6)
    runs = App(name="runs", help="List, show, cancel and retry runs.", sort_key=7)
    runs.command(f"{here}.runs:runs_list", name="list")
    runs.command(f"{here}.runs:show", name="show")
    runs.command(f"{here}.runs:cancel", name="cancel")
    runs.command(f"{here}.runs:retry", name="retry")
    app.command(runs)
    app.command(f"{here}.status:status", name="status", sort_key=8)
    config = App(name="config", help="Settings that hold for the whole fleet.", sort_key=9)
    config.command(f"{here}.schema:config_set", name="set")
    app.command(config)
    app.command(f"{here}.schema:prune", name="prune", sort_key=10)
    return app
