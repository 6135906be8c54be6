"""The table of commands. None of these modules imports at its top what only a command needs."""

from collections.abc import Callable
from typing import Any

from cyclopts import App, Parameter

from notifyworker.cli import version
from notifyworker.cli.bench import bench
from notifyworker.cli.demo import demo
from notifyworker.cli.doctor import doctor, healthcheck
from notifyworker.cli.limits import limits_list, limits_remove, limits_set
from notifyworker.cli.pauses import pause, pauses, resume
from notifyworker.cli.runs import cancel, enqueue, retry, runs_list, show
from notifyworker.cli.schedules import schedules_delete, schedules_list, schedules_pause, schedules_put, schedules_resume
from notifyworker.cli.schema import config_set, migrate, prune, schema
from notifyworker.cli.shares import shares_list, shares_set
from notifyworker.cli.status import status
from notifyworker.cli.worker import dev, worker

_EXIT_CODES = """\
Exit codes: 0 done, or drained in time; 1 what was asked failed or is not fine; 2 wrong use: arguments, settings, MODULE:ATTR; \
3 could not start: database, schema or port; 4 the drain's deadline passed; 130, 143 ended by a second signal."""


def make_app() -> App:
    """Build the command line; the result of calling it is the exit code, or None for 0."""
    app = App(
        name="notifyworker",
        help="Run what is inserted into a Postgres table.",
        help_epilogue=_EXIT_CODES,
        help_format="plaintext",
        version=version,
        default_parameter=Parameter(show_default=False),
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
    )
    runs = App(name="runs", help="List, show, cancel and retry runs.")
    _add(runs, list=runs_list, show=show, cancel=cancel, retry=retry)
    schedules = App(name="schedules", help="Runs that are inserted by the clock.")
    _add(schedules, list=schedules_list, put=schedules_put, pause=schedules_pause, resume=schedules_resume)
    _add(schedules, delete=schedules_delete)
    limits = App(name="limits", help="How many runs at once, and how many begin in a time.")
    _add(limits, list=limits_list, set=limits_set, remove=limits_remove)
    shares = App(name="shares", help="What part of the slots a project gets.")
    _add(shares, list=shares_list, set=shares_set)
    config = App(name="config", help="Settings that hold for the whole fleet.")
    _add(config, set=config_set)
    _add(app, demo=demo, dev=dev, worker=worker, migrate=migrate, schema=schema)
    _add(app, enqueue=enqueue, runs=runs, status=status, doctor=doctor, healthcheck=healthcheck)
    _add(app, schedules=schedules, limits=limits, pause=pause, resume=resume, pauses=pauses, shares=shares)
    _add(app, config=config, prune=prune, bench=bench)
    return app


def _add(app: App, **commands: App | Callable[..., Any]) -> None:
    """Add commands; their order is that of a newcomer, not of the alphabet."""
    for name, command in commands.items():
        place = len(list(app)) + 1
        if isinstance(command, App):
            command.sort_key = place
            app.command(command)
        else:
            app.command(command, name=name, sort_key=place)
