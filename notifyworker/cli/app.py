"""The table of commands. None of these modules imports at its top what only a command needs."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter
from cyclopts.help import DefaultFormatter, PanelSpec
from rich.box import Box

from notifyworker.cli import output, version
from notifyworker.cli.bench import bench
from notifyworker.cli.capacity import capacity
from notifyworker.cli.config import config_set, config_show
from notifyworker.cli.demo import demo
from notifyworker.cli.dev import dev
from notifyworker.cli.doctor import doctor, healthcheck
from notifyworker.cli.emit import emit
from notifyworker.cli.examples import EXIT_CODES, examples_of
from notifyworker.cli.failed import failed
from notifyworker.cli.history import export, prune, retention_list, retention_set
from notifyworker.cli.init import init
from notifyworker.cli.limits import limits_list, limits_remove, limits_set
from notifyworker.cli.many import cancel_many, enqueue_many, retry_many
from notifyworker.cli.mcp import mcp
from notifyworker.cli.pauses import pause, pauses, resume
from notifyworker.cli.runs import cancel, enqueue, replay, retry, runs_list, show
from notifyworker.cli.schedules import schedules_delete, schedules_list, schedules_pause, schedules_put, schedules_resume
from notifyworker.cli.schema import migrate, schema
from notifyworker.cli.shadow import (
    shadow_back,
    shadow_compare,
    shadow_mirror,
    shadow_mirrors,
    shadow_promote,
    shadow_replay,
    shadow_report,
    shadow_reset,
    shadow_unmirror,
    shadow_versions,
)
from notifyworker.cli.shares import shares_list, shares_set
from notifyworker.cli.status import status
from notifyworker.cli.tail import tail
from notifyworker.cli.top import top
from notifyworker.cli.worker import worker
from notifyworker.cli.workers import workers_drain, workers_list

_HELP = """\
Run what is inserted into a Postgres table.

Begin with `notifyworker demo`, or with a project of your own: `notifyworker init`, then `notifyworker dev app:worker`."""

_EPILOGUE = f"""\
The database: --dsn, else NOTIFYWORKER_DSN, DATABASE_URL, or libpq's PGHOST and the like. `notifyworker COMMAND --help` has \
examples. --json prints data for programs, --no-color or NO_COLOR leaves colours out.

{EXIT_CODES}"""


def make_app() -> App:
    """Build the command line; the result of calling it is the exit code, or None for 0."""
    app = App(
        name="notifyworker",
        help=_HELP,
        help_epilogue=_EPILOGUE,
        help_format="plaintext",
        help_formatter=_formatter(),
        version=version,
        default_parameter=Parameter(show_default=False),
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
    )

    def completion(
        shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(name="SHELL", help="bash, zsh or fish.")], /
    ) -> None:
        """Print a script that completes commands and options in your shell."""
        output.line(app.generate_completion(prog_name="notifyworker", shell=shell))

    runs = _group("runs", "List, show, follow, cancel, retry and replay runs.")
    _add(runs, None, list=runs_list, show=show, tail=tail, cancel=cancel, retry=retry, replay=replay)
    _add(runs, None, cancel_many=cancel_many, retry_many=retry_many)
    schedules = _group("schedules", "Runs that are inserted by the clock.")
    _add(schedules, None, list=schedules_list, put=schedules_put, pause=schedules_pause, resume=schedules_resume)
    _add(schedules, None, delete=schedules_delete)
    limits = _group("limits", "How many runs at once, and how many begin in a time.")
    _add(limits, None, list=limits_list, set=limits_set, remove=limits_remove)
    shares = _group("shares", "What part of the slots a project gets.")
    _add(shares, None, list=shares_list, set=shares_set)
    shadow = _group("shadow", "Copies of live runs by another version, what they show, and which version is live.")
    _add(shadow, None, mirror=shadow_mirror, mirrors=shadow_mirrors, unmirror=shadow_unmirror, compare=shadow_compare)
    _add(shadow, None, report=shadow_report, promote=shadow_promote, versions=shadow_versions, replay=shadow_replay)
    _add(shadow, None, reset=shadow_reset, back=shadow_back)
    workers = _group("workers", "The fleet, and who of it is to claim nothing more.")
    _add(workers, None, list=workers_list, drain=workers_drain)
    retention = _group("retention", "How long settled runs of kinds and projects are kept.")
    _add(retention, None, list=retention_list, set=retention_set)
    config = _group("config", "Settings: what holds, and what is one for the whole fleet.")
    _add(config, None, show=config_show, set=config_set)
    _add(app, Group("To begin", sort_key=1), demo=demo, init=init, dev=dev)
    _add(app, Group("To work", sort_key=2), worker=worker, enqueue=enqueue, enqueue_many=enqueue_many, emit=emit)
    _add(
        app,
        Group("To look", sort_key=3),
        status=status,
        top=top,
        runs=runs,
        failed=failed,
        doctor=doctor,
        healthcheck=healthcheck,
    )
    steer = Group("To steer", sort_key=4)
    _add(app, steer, pause=pause, resume=resume, pauses=pauses, schedules=schedules, limits=limits, shares=shares)
    _add(app, steer, workers=workers, config=config)
    _add(app, steer, shadow=shadow)
    house = Group("To keep house", sort_key=5)
    _add(app, house, migrate=migrate, schema=schema, retention=retention, prune=prune, export=export, bench=bench)
    _add(app, house, capacity=capacity, mcp=mcp, completion=completion)
    return app


def _formatter() -> DefaultFormatter:
    """Headings and columns, without frames: easy to read, to copy, and to search in."""
    blank = Box("\n".join(["    "] * 8))
    return DefaultFormatter(panel_spec=PanelSpec(box=blank, padding=(0, 0)))


def _group(name: str, text: str) -> App:
    return App(name=name, help=text)


def _add(app: App, group: Group | None, **commands: App | Callable[..., Any]) -> None:
    """Add commands; their order is that of a newcomer, not of the alphabet. An underscore stands for a hyphen."""
    for underscored, command in commands.items():
        name = underscored.replace("_", "-")
        place = len(list(app)) + 1
        if isinstance(command, App):
            command.sort_key = place
            if group is not None:
                command.group = group
            app.command(command)
        else:
            whole = name if app.name[0] == "notifyworker" else f"{app.name[0]} {name}"
            text = _unfolded(inspect.getdoc(command) or "")
            app.command(command, name=name, sort_key=place, group=group, help=text, help_epilogue=examples_of(whole))


def _unfolded(text: str) -> str:
    """Return paragraphs as one line each: a terminal folds them as wide as it is."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
