"""
Options that several commands share. Each is declared once, here; None means that it was not given.

The names are those of Settings, which alone knows ranges and defaults. It is not imported before a command runs, since
pydantic would make `--help` slow; a test sees to it that both have the same names.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    from notifyworker.settings import Settings

_LEADING = {"allow_leading_hyphen": True}  # a negative number is refused for its value, not for its looks

Json: TypeAlias = Annotated[bool, Parameter(negative="", help="Print one JSON document.")]
Watch: TypeAlias = Annotated[
    bool, Parameter(negative="", help="Look again and again, until Ctrl-C; with --json one document a line.")
]
INTERVAL_S = 2.0
Interval: TypeAlias = Annotated[float, Parameter(help="Seconds between two looks [default: 2].", **_LEADING)]


@Parameter(name="*", group=Group("Database", sort_key=20))
@dataclass(frozen=True, slots=True)
class DatabaseOptions:
    """Where the installation is."""

    dsn: Annotated[
        str | None,
        Parameter(help="Database [env: NOTIFYWORKER_DSN, DATABASE_URL, PG*]. A password is better given by environment."),
    ] = None
    admin_dsn: Annotated[str | None, Parameter(help="Where schema changes go, if elsewhere than --dsn.")] = None
    schema: Annotated[str | None, Parameter(help="The schema that everything lives in [default: notifyworker].")] = None

    def given(self) -> dict[str, Any]:
        """Return what stands on the command line."""
        return {f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) is not None}

    def load(self) -> "Settings":
        """Gather all settings. Raises SettingsError."""
        from notifyworker.settings import Settings

        log_early("auto", "warning")
        return Settings.load(command_line=self.given())


@Parameter(name="*", group=Group("Settings", sort_key=30))
@dataclass(frozen=True, slots=True)
class WorkerOptions(DatabaseOptions):
    """Every setting. What is not given comes from NOTIFYWORKER_*, then from the Worker's keywords, then by default."""

    listen_dsn: Annotated[str | None, Parameter(help="Direct connection for LISTEN, where --dsn is a pooler's.")] = None
    project_ids: Annotated[str | None, Parameter(help="Projects that are claimed: a,b [default: all].")] = None
    kinds: Annotated[str | None, Parameter(help="Kinds that are claimed: a,b [default: those with a handler].")] = None
    concurrency: Annotated[int | None, Parameter(help="Runs at once [default: 10].", **_LEADING)] = None
    prefetch: Annotated[int | None, Parameter(help="Runs claimed beyond the free slots [default: 0].", **_LEADING)] = None
    replaced_slots: Annotated[
        int | None, Parameter(help="Handlers that ignore their end in whose place others run [default: 10].", **_LEADING)
    ] = None
    priority_ageing_s: Annotated[
        float | None, Parameter(help="A run that waits so long counts one priority more [default: none].", **_LEADING)
    ] = None
    processes: Annotated[int | None, Parameter(help="For handlers that compute [default: processors].", **_LEADING)] = None
    read_dsn: Annotated[str | None, Parameter(help="Where the page reads, such as a replica [default: --dsn].")] = None
    listen: Annotated[
        bool | None, Parameter(help="Hear notifications [default: yes]; else poll alone.", negative="--no-listen")
    ] = None
    poll_interval_s: Annotated[float | None, Parameter(help="Fallback poll [default: 5].", **_LEADING)] = None
    progress_interval_s: Annotated[
        float | None, Parameter(help="How often a run's progress is written [default: 0.5].", **_LEADING)
    ] = None
    lease_s: Annotated[float | None, Parameter(help="Lease; at least three heartbeats [default: 60].", **_LEADING)] = None
    heartbeat_interval_s: Annotated[float | None, Parameter(help="Renewal of leases [default: 15].", **_LEADING)] = None
    reaper_interval_s: Annotated[float | None, Parameter(help="Reaper of stale runs [default: 60].", **_LEADING)] = None
    stall_limit_s: Annotated[
        float | None, Parameter(help="Give up leases when the event loop stands still so long [default: none].", **_LEADING)
    ] = None
    presumed_dead_s: Annotated[float | None, Parameter(help="A worker absent for so long is dead [default: 10].", **_LEADING)] = (
        None
    )
    presence_ping_s: Annotated[float | None, Parameter(help="Ping of the heartbeat session [default: 3].", **_LEADING)] = None
    on_lapse: Annotated[
        Literal["exit", "log"] | None, Parameter(help="When no lease could be renewed in time [default: exit].")
    ] = None
    drain_timeout_s: Annotated[float | None, Parameter(help="Time to finish at shutdown [default: 30].", **_LEADING)] = None
    idle_sleep_s: Annotated[
        float | None, Parameter(help="Idle, send the database nothing for so long [default: none].", **_LEADING)
    ] = None
    idle_after_s: Annotated[float | None, Parameter(help="How long it is idle before it does so [default: 60].", **_LEADING)] = (
        None
    )
    transaction_connections: Annotated[
        int | None, Parameter(help="Connections for run.transaction(), opened when needed [default: 10].", **_LEADING)
    ] = None
    synchronous_commit: Annotated[
        Literal["on", "off", "local", "remote_write", "remote_apply"] | None,
        Parameter(help="Of settles; off: a crash of the server may bring the last half second's runs back [default: on]."),
    ] = None
    shadow: Annotated[
        Literal["honour", "enforce"] | None, Parameter(help="Enforce: every run is a shadow run [default: honour].")
    ] = None
    shadow_share: Annotated[
        float | None, Parameter(help="Part of the slots for copies of live runs [default: 0.1].", **_LEADING)
    ] = None
    max_payload_bytes: Annotated[int | None, Parameter(help="Expected limit of payloads [default: 1048576].", **_LEADING)] = None
    max_result_bytes: Annotated[int | None, Parameter(help="Limit of results [default: 1048576].", **_LEADING)] = None
    idempotency_window_s: Annotated[
        float | None, Parameter(help="A key is refused for so long after its settle [default: 86400].", **_LEADING)
    ] = None
    history_retention_days: Annotated[int | None, Parameter(help="Settled runs are kept so long [default: 30].", **_LEADING)] = (
        None
    )
    sidecar: Annotated[bool | None, Parameter(help="Serve HTTP [default: yes].", negative="--no-sidecar")] = None
    host: Annotated[str | None, Parameter(help="Where the sidecar listens [default: 127.0.0.1].")] = None
    port: Annotated[int | None, Parameter(help="Its port; 0 for a free one [default: 8080].", **_LEADING)] = None
    token: Annotated[str | None, Parameter(help="What its clients must show. Better given as NOTIFYWORKER_TOKEN.")] = None
    tokens: Annotated[
        str | None, Parameter(help="NAME:operator:SECRET or NAME:viewer:SECRET, ... Better given as NOTIFYWORKER_TOKENS.")
    ] = None
    prefix: Annotated[str | None, Parameter(help="The path below which a proxy shows the page [default: none].")] = None
    trace_url: Annotated[
        str | None, Parameter(help="Where the page's links to traces lead, with {trace_id} in it [default: no links].")
    ] = None
    tls_cert: Annotated[Path | None, Parameter(help="Its certificate with the chain, a PEM file [default: no TLS].")] = None
    tls_key: Annotated[Path | None, Parameter(help="The certificate's key, a PEM file without a password.")] = None
    run_log_lines: Annotated[
        int | None, Parameter(help="Lines of run.log kept with a run; 0: none [default: 200].", **_LEADING)
    ] = None
    log_format: Annotated[
        Literal["auto", "console", "json"] | None, Parameter(help="Auto: JSON unless on a terminal [default: auto].")
    ] = None
    log_level: Annotated[Literal["debug", "info", "warning", "error"] | None, Parameter(help="[default: info].")] = None


NO_DATABASE_OPTIONS = DatabaseOptions()
NO_WORKER_OPTIONS = WorkerOptions()


def log_early(log_format: str | None = None, log_level: str | None = None) -> None:
    """Send what is logged before the settings are known to stderr, in the form that they most likely ask for."""
    from notifyworker.observe import configure_logging

    form = log_format or os.environ.get("NOTIFYWORKER_LOG_FORMAT")
    level = log_level or os.environ.get("NOTIFYWORKER_LOG_LEVEL")
    configure_logging(
        "json" if form == "json" else "console" if form == "console" else "auto",
        level if level in {"debug", "info", "warning", "error"} else "info",
    )
