"""
One Settings, validated once at start. Suffixes are units: _s seconds, _bytes bytes, _days days.

What wins: command line, then environment (`NOTIFYWORKER_` + the name in capitals), then keyword of Worker, then
default. A value that is refused is told by its name and what was wrong with it, never with a password.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from notifyworker.errors import SettingsError
from notifyworker.tokens import NamedToken, named_tokens_of

#: Deadlines that no user needs to turn, in seconds. They enter the sums that are checked below.
CONNECT_S = 5.0
PRESENCE_DEADLINE_S = 2.0
PRESENCE_RECONNECT_S = 2.0
CANCEL_S = 2.0

_LONGEST_NAME = 200  # as the columns
#: What stands in the database, so that it is one for the whole fleet.
FLEET_SETTINGS = ("reaper_interval_s", "max_payload_bytes", "max_result_bytes", "idempotency_window_s", "history_retention_days")

#: Where a proxy may show the page.
PREFIX = r"(/[A-Za-z0-9._~-]+){0,8}"
TRACE_ID = "{trace_id}"

_LAPSE = 0.9  # of a lease without a renewal: then it may be another's soon

_SECRETS = frozenset({"dsn", "listen_dsn", "admin_dsn", "read_dsn", "token", "tokens"})
_Seconds = Annotated[float, Field(gt=0, le=86400 * 366, allow_inf_nan=False)]
_Names = Annotated[list[str] | None, NoDecode]


class Settings(BaseSettings):
    """How one worker behaves. `Settings.load()` is the way in; see the README's table for every meaning."""

    model_config = SettingsConfigDict(
        env_prefix="NOTIFYWORKER_", extra="forbid", hide_input_in_errors=True, frozen=True, env_ignore_empty=True
    )

    dsn: SecretStr | None = None
    listen_dsn: SecretStr | None = None
    admin_dsn: SecretStr | None = None
    read_dsn: SecretStr | None = None
    schema_name: str = Field("notifyworker", alias="schema", validation_alias="NOTIFYWORKER_SCHEMA")

    project_ids: _Names = None
    kinds: _Names = None
    concurrency: int = Field(10, ge=1, le=10_000)
    prefetch: int = Field(0, ge=0, le=10_000)
    replaced_slots: int = Field(10, ge=0, le=10_000)
    priority_ageing_s: _Seconds | None = None
    processes: int | None = Field(None, ge=1, le=10_000)
    shadow: Literal["honour", "enforce"] = "honour"
    shadow_share: float = Field(0.1, ge=0, le=1, allow_inf_nan=False)

    listen: bool = True
    poll_interval_s: _Seconds = 5.0
    progress_interval_s: float = Field(0.5, ge=0, le=3600, allow_inf_nan=False)
    lease_s: _Seconds = 60.0
    heartbeat_interval_s: _Seconds = 15.0
    reaper_interval_s: _Seconds = 60.0
    stall_limit_s: _Seconds | None = None
    presumed_dead_s: _Seconds = 10.0
    presence_ping_s: _Seconds = 3.0
    on_lapse: Literal["exit", "log"] | None = None
    transaction_connections: int = Field(10, ge=1, le=10_000)
    synchronous_commit: Literal["on", "off", "local", "remote_write", "remote_apply"] = "on"
    idle_sleep_s: _Seconds | None = None
    idle_after_s: _Seconds = 60.0
    drain_timeout_s: float = Field(30.0, ge=0, le=86400, allow_inf_nan=False)

    max_payload_bytes: int = Field(1_048_576, ge=2, le=268_435_456)
    max_result_bytes: int = Field(1_048_576, ge=2, le=268_435_456)
    idempotency_window_s: float = Field(86_400.0, ge=0, le=31_622_400, allow_inf_nan=False)
    history_retention_days: int = Field(30, ge=1, le=36_500)

    wake_coalesce_per_s: float = Field(300.0, gt=0, allow_inf_nan=False)
    wake_tick_s: float = Field(0.004, ge=0.001, le=1, allow_inf_nan=False)

    sidecar: bool | None = None
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65_535)
    token: SecretStr | None = None
    tokens: SecretStr | None = None
    prefix: str | None = None
    trace_url: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    run_log_lines: int = Field(200, ge=0, le=1000)
    log_format: Literal["auto", "console", "json"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def load(cls, command_line: Mapping[str, Any] | None = None, keywords: Mapping[str, Any] | None = None) -> Self:
        """Gather what is set where, and check it. Raises SettingsError, which names what to change."""
        given = _known(command_line or {}), _known(keywords or {})

        class Loaded(cls):  # type: ignore[valid-type, misc]  # the sources are the class's own affair
            @classmethod
            def settings_customise_sources(
                cls, settings_cls: type[BaseSettings], env_settings: PydanticBaseSettingsSource, **_other: Any
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                layers = [InitSettingsSource(settings_cls, init_kwargs=layer) for layer in given]
                return layers[0], env_settings, layers[1]

        with _without_kubernetes_port():
            try:
                return Loaded()
            except ValidationError as error:
                raise SettingsError(_told(error)) from None

    @classmethod
    def sources(cls, command_line: Mapping[str, Any] | None = None, keywords: Mapping[str, Any] | None = None) -> dict[str, str]:
        """Say of each setting where `load` takes it from: command line, environment, keyword or default."""
        with _without_kubernetes_port():
            said = EnvSettingsSource(cls)()
        layers = _known(command_line or {}), said, _known(keywords or {})
        found: dict[str, str] = {}
        for field in cls.model_fields:
            name = "schema" if field == "schema_name" else field
            variable = f"NOTIFYWORKER_{name.upper()}"
            told = ("command line", f"environment: {variable}", "keyword")
            found[name] = next(
                (t for t, layer in zip(told, layers, strict=True) if {field, name, variable} & set(layer)), "default"
            )
        return found

    @field_validator("project_ids", "kinds", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        is_list = isinstance(value, list | tuple) and len(value) > 0
        if value is not None and not (is_list and all(isinstance(v, str) and 1 <= len(v) <= _LONGEST_NAME for v in value)):
            message = "give one or more names of 1 to 200 characters, separated by commas"
            raise ValueError(message)
        return value

    @field_validator("schema_name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,39}", value) or value.startswith("pg_"):
            message = "use 1 to 40 lower-case letters, digits and underscores, not starting with a digit or with pg_"
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _certificate_with_its_key(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            message = f"{missing}: is missing, and {given} is given: TLS needs the certificate and its key"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _in_proportion(self) -> Self:
        if self.lease_s < 3 * self.heartbeat_interval_s:
            message = (
                f"lease_s={self.lease_s:g} is shorter than three times heartbeat_interval_s="
                f"{self.heartbeat_interval_s:g}: two lost heartbeats would lose the lease; raise the one or lower the other"
            )
            raise ValueError(message)
        worst = self.heartbeat_interval_s + self.heartbeat_deadline_s + CANCEL_S
        if worst >= self.lapse_s:
            message = (
                f"lease_s={self.lease_s:g} must be above {worst / _LAPSE:.3g}: heartbeat_interval_s={self.heartbeat_interval_s:g}, "
                f"its deadline of {self.heartbeat_deadline_s:g} and {CANCEL_S:g} seconds to cancel have to fit into nine tenths "
                "of a lease; raise lease_s or lower heartbeat_interval_s"
            )
            raise ValueError(message)
        worst = self.presence_ping_s + PRESENCE_DEADLINE_S + PRESENCE_RECONNECT_S + CANCEL_S
        if worst >= self.presumed_dead_s:
            message = (
                f"presumed_dead_s={self.presumed_dead_s:g} must be above {worst:g}: presence_ping_s="
                f"{self.presence_ping_s:g} plus 6 seconds to notice, reconnect and cancel, or runs could be taken from a "
                "worker that still executes them; raise presumed_dead_s or lower presence_ping_s"
            )
            raise ValueError(message)
        return self

    @field_validator("prefix")
    @classmethod
    def _is_path(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(PREFIX, value):
            message = "give the path below which a proxy shows the page, such as /queue, without a slash at its end"
            raise ValueError(message)
        return value

    @field_validator("trace_url")
    @classmethod
    def _is_template(cls, value: str | None) -> str | None:
        if value is not None and (TRACE_ID not in value or not re.fullmatch(r"https?://[^\s\"'<>\\]+", value)):
            message = f"give the address of a trace in your tracing UI, with {TRACE_ID} where its id stands: https://HOST/trace/{TRACE_ID}"
            raise ValueError(message)
        return value

    @field_validator("tokens")
    @classmethod
    def _are_tokens(cls, value: SecretStr | None) -> SecretStr | None:
        named_tokens_of(value.get_secret_value() if value else None)
        return value

    @property
    def named_tokens(self) -> list[NamedToken]:
        """The tokens that have a name and a role."""
        return named_tokens_of(self.tokens.get_secret_value() if self.tokens else None)

    @property
    def heartbeat_deadline_s(self) -> float:
        """How long one heartbeat may take."""
        return min(5.0, 0.8 * self.heartbeat_interval_s)

    @property
    def lapse_s(self) -> float:
        """The age of the last renewal at which this worker has to end what it runs, or itself."""
        return _LAPSE * self.lease_s

    @property
    def names_a_database(self) -> bool:
        """Whether anything says where the database is."""
        return database_url(self.dsn) is not None

    def require_dsn(self) -> str:
        """Where the database is. Raises SettingsError if nothing says it."""
        if dsn := database_url(self.dsn):
            return dsn
        message = "no database is given"
        raise SettingsError(message, hint="set --dsn, NOTIFYWORKER_DSN, DATABASE_URL, or libpq's PGHOST or PGSERVICE")


def database_url(dsn: SecretStr | None) -> str | None:
    """The DSN, else `DATABASE_URL`, else an empty DSN where libpq's variables name a database; else None."""
    if dsn is not None:
        return dsn.get_secret_value()
    if url := os.environ.get("DATABASE_URL"):
        return url
    return "postgresql://" if any(os.environ.get(v) for v in ("PGHOST", "PGSERVICE", "PGDATABASE")) else None


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` is a method of pydantic's models, so the field has another name; None means: not given."""
    names = {"schema" if name == "schema_name" else name for name in Settings.model_fields}
    if unknown := sorted(set(given) - names):
        message = f"unknown setting: {', '.join(unknown)}"
        raise SettingsError(message, hint=f"there are: {', '.join(sorted(names))}")
    return {("NOTIFYWORKER_SCHEMA" if name == "schema" else name): v for name, v in given.items() if v is not None}


def _told(error: ValidationError) -> str:
    """One line a fault: the setting, what was wrong, and the value where it is no secret."""
    lines = []
    for fault in error.errors(include_url=False):
        name = str(fault["loc"][0]).lower().removeprefix("notifyworker_") if fault["loc"] else ""
        told = fault["msg"].removeprefix("Value error, ")
        if name and name not in _SECRETS and fault["type"] != "extra_forbidden":
            told += f", not {fault['input']!r}"
        lines.append(f"{name}: {told}" if name else told)
    return "; ".join(lines)


class _without_kubernetes_port:  # noqa: N801 - used as a verb
    """A service named notifyworker makes Kubernetes set NOTIFYWORKER_PORT=tcp://..: its own, not ours."""

    was_told = False

    def __enter__(self) -> None:
        self.hidden = os.environ.get("NOTIFYWORKER_PORT", "")
        if self.hidden.startswith("tcp://") and not type(self).was_told:
            from notifyworker.observe import log

            type(self).was_told = True
            log.warning("kubernetes_port_ignored", variable="NOTIFYWORKER_PORT", hint="set enableServiceLinks: false")
        if self.hidden.startswith("tcp://"):
            del os.environ["NOTIFYWORKER_PORT"]

    def __exit__(self, *_exc: object) -> None:
        if self.hidden.startswith("tcp://"):
            os.environ["NOTIFYWORKER_PORT"] = self.hidden
