"""
Connections: made with a deadline, hardened against silence, thrown away when in doubt.

asyncpg gives up a query that timed out, but not its connection, on which the next query would hang as well; it sets no
keepalive, so that a half-open connection stays silent for ever; and a cut connection tells nothing about what the
server did before. Everything that talks to the database goes through here, so that these are dealt with once.
"""

import asyncio
import re
import socket
import ssl
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias
from urllib.parse import parse_qsl, urlsplit

import asyncpg
from asyncpg.exceptions import TargetServerAttributeNotMatched as _NotMatched

from notifyworker import hosts
from notifyworker.errors import DatabaseUnavailable, SettingsError
from notifyworker.settings import CONNECT_S

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

#: Errors of which a loop recovers by connecting again or trying later. Whatever else is raised is a mistake of ours.
#: InternalClientError: asyncpg is told of the server's end in the middle of sending, and loses track of its own state.
DatabaseError = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)

#: One class id of two-int advisory locks is this project's; the other int is made from the schema's *name*, which is
#: the same on every node and differs between installations in one database.
LOCK_CLASS = 0x6E77726B

#: Of our sessions and migrations: names that are written without a schema are the server's own.
SEARCH_PATH = "pg_catalog, pg_temp"


_NOTHING: Mapping[str, str] = MappingProxyType({})


class Queryable(Protocol):
    """What a statement is executed on: a Link, an asyncpg connection or a pool."""

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[asyncpg.Record]:  # noqa: ASYNC109 - asyncpg's own signature
        """Execute and return all rows."""


@dataclass(frozen=True, slots=True)
class GateLocks:
    """The second ints of the three locks of the wake gate, and of the migration's."""

    leader: int
    coalesced: int
    silent: int
    migrate: int

    @classmethod
    def of(cls, schema: str) -> "GateLocks":
        """Derive them from the schema's name."""

        def number(use: str) -> int:
            return zlib.crc32(f"{schema}:{use}".encode()) - 2**31

        return cls(leader=number("leader"), coalesced=number("coalesced"), silent=number("silent"), migrate=number("migrate"))


async def home(dsn: str, schema: str) -> str:  # noqa: ARG001 - the seam; on one server every schema is at home
    """Which server a schema lives on. Asked at each connect; the identity where nothing is sharded."""
    return dsn


async def connect(dsn: str, *, schema: str, purpose: str, session: Mapping[str, str] = _NOTHING) -> Connection:
    """
    Open a connection within CONNECT_S seconds, or twice that through a pooler; of several hosts, to the first that does.

    A pooler is known by refusing our startup parameters, or else by the process id that it invents: through one it is
    opened without them and without prepared statements. `session` overrides single ones of them. Raises asyncpg's
    errors, OSError or TimeoutError; `explain` turns them into a sentence.
    """
    name = f"notifyworker {purpose}"

    async def opened(where: str) -> Connection:
        direct = await _open_direct(where, name, {**_SESSION, **session}, at_first=_NO_TRANSACTION_TIMEOUT)
        return direct or await _open_pooled(where, name)

    try:
        connection = await hosts.first(hosts.each(await home(dsn, schema)), opened)
    except (asyncpg.ClientConfigurationError, ValueError, OverflowError) as error:  # the last: a port beyond 65535
        if isinstance(error, ssl.SSLError):
            raise
        if "certificate" in str(error):  # verify-full without sslrootcert: it names the file that asyncpg looks for
            message = f"dsn: {str(error).splitlines()[0]}"
            raise SettingsError(message, hint="sslrootcert=FILE, with the certificate of who signed the server's") from None
        message = "dsn: not a PostgreSQL connection string, or with options that do not fit together"
        raise SettingsError(message, hint="postgresql://user:password@host:5432/database") from None
    _keep_alive(connection)
    return connection


async def connect_plainly(dsn: str, *, schema: str, purpose: str) -> Connection:
    """Open a connection for somebody else's statements: with the database's own settings, but noticed when it is dead."""
    name = f"notifyworker {purpose}"

    async def opened(where: str) -> Connection:
        direct = await _open_direct(where, name, _ALIVE)
        pooled = {"application_name": name}
        return direct or await asyncpg.connect(where, timeout=CONNECT_S, statement_cache_size=0, server_settings=pooled)

    connection = await hosts.first(hosts.each(await home(dsn, schema)), opened)
    _keep_alive(connection)
    return connection


async def reconnect(dsn: str, *, schema: str, purpose: str, session: Mapping[str, str] = _NOTHING) -> Connection:
    """
    Open a connection with a DSN that was good when the worker started.

    What makes it unusable now, such as a certificate file that is being replaced, may pass: a loop tries again. Raises
    DatabaseError alone.
    """
    try:
        return await connect(dsn, schema=schema, purpose=purpose, session=session)
    except SettingsError as error:
        raise asyncpg.InterfaceError(str(error)) from None


async def _open_direct(dsn: str, name: str, session: Mapping[str, str], *, at_first: str = "") -> "Connection | None":
    try:
        connection = await asyncpg.connect(dsn, timeout=CONNECT_S, server_settings={**session, "application_name": name})
    except asyncpg.ProtocolViolationError:
        return None
    try:
        if await is_direct(connection):
            if at_first:
                await connection.execute(at_first, timeout=CONNECT_S)
            return connection
    except BaseException:
        connection.terminate()
        raise
    connection.terminate()
    return None


async def _open_pooled(dsn: str, name: str) -> Connection:
    connection = await asyncpg.connect(dsn, timeout=CONNECT_S, statement_cache_size=0, server_settings={"application_name": name})
    try:
        # asyncpg asks the server about types that it does not know yet, with `jit` switched off meanwhile. Outside of a
        # transaction it may switch it on again on another of the pooler's connections.
        async with asyncio.timeout(CONNECT_S):
            await connection.execute("BEGIN")
            await connection.fetch(_TYPES)
            await connection.execute("COMMIT")
    except BaseException:
        connection.terminate()
        raise
    return connection


#: Every type of a parameter or a column in our statements that asyncpg has to ask for.
_TYPES = """
SELECT NULL::boolean[], NULL::smallint[], NULL::integer[], NULL::bigint[], NULL::float8[], NULL::interval[], NULL::timestamptz[],
       NULL::uuid[], NULL::jsonb[]
"""


async def is_direct(connection: Connection, *, timeout_s: float = CONNECT_S) -> bool:
    """Say whether no pooler is between: one hands out a process id that it invented. One round trip."""
    # Neither parameters nor rows: so it leaves no prepared statement behind on a connection that others use too.
    mine = f"SELECT WHERE pg_backend_pid() = {connection.get_server_pid()}"
    return await connection.execute(mine, timeout=timeout_s) == "SELECT 1"


#: A server before 17 has no such setting, and refuses a session that asks for it at its start.
_NO_TRANSACTION_TIMEOUT = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout'"
#: How the server notices that a client has gone.
_ALIVE = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "3",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20s",
    "client_connection_check_interval": "2s",
}
#: For sessions whose locks tell that a worker lives, or leads: of a host that has vanished the server knows after 9 s. What
#: is silent for so long its worker has given up itself, seconds before.
SOON_MISSED = {
    "tcp_keepalives_idle": "3",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "2",
    "tcp_user_timeout": "8s",
}
#: What our own statements are executed with. The planner's choices are narrowed since statistics of a queue are always
#: stale: every statement here is meant to be executed by nested loops over indexes, planned once.
_OURS = {
    # A function that somebody put into the schema public could fit a call of ours better than the server's own.
    "search_path": SEARCH_PATH,
    "statement_timeout": "30s",
    "lock_timeout": "2s",
    "jit": "off",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
}
#: For every direct connection of ours. Low limits that a role may have are ours to set: each statement has its own deadline.
_SESSION = {
    **_ALIVE,
    **_OURS,
    "idle_in_transaction_session_timeout": "60s",
    "idle_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    # A claim or a renewal that a crash of the server takes back would give a live worker's run to another.
    "synchronous_commit": "on",
}
#: For statements of ours at the end of somebody else's transaction. From there on it has a run locked, which nobody
#: could take over if this process were frozen now: so the server ends it when nothing more comes.
IN_TRANSACTION = "; ".join(
    f"SET LOCAL {name} = {value if name == 'search_path' else repr(value)}"
    for name, value in {**_OURS, "idle_in_transaction_session_timeout": "5s"}.items()
)


def _keep_alive(connection: Connection) -> None:
    """Switch on the client's half of TCP keepalive; asyncpg has no option for it."""
    transport = getattr(connection, "_transport", None)
    raw = transport.get_extra_info("socket") if transport is not None else None
    if raw is None or raw.family == getattr(socket, "AF_UNIX", None):
        return
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 15_000)):
        if hasattr(socket, option):
            raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def is_refusal(error: BaseException) -> bool:
    """Say whether the server answered "no": nothing was written. Anything else leaves the outcome unknown."""
    return isinstance(error, asyncpg.PostgresError) and not str(error.sqlstate or "08").startswith(("08", "57P0"))


def is_of_use(error: BaseException) -> bool:
    """Say whether the session is worth keeping: it has answered, and its server was not made one that takes no writes."""
    return is_refusal(error) and not isinstance(error, asyncpg.ReadOnlySQLTransactionError)


def is_queue_full(error: BaseException) -> bool:
    """Say whether a commit failed since its notification found no room: the next try stays silent, and passes."""
    return isinstance(error, asyncpg.ProgramLimitExceededError) and error.server_source_filename == "async.c"


def is_poison(error: BaseException) -> bool:
    """Say whether the server refused a value, so that the same batch without it would pass."""
    is_value = isinstance(error, asyncpg.PostgresError) and str(error.sqlstate or "").startswith(("22", "23", "54"))
    return is_value and not is_queue_full(error)


def brief(error: BaseException) -> str:
    """One line of an error for a log: no DETAIL, which quotes rows, and no DSN."""
    if isinstance(error, asyncpg.PostgresError):
        return f"{error.sqlstate} {error.args[0] if error.args else type(error).__name__}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


_UNTOLD = "the database of the DSN"
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d+)?")


def describe(dsn: str) -> str:
    """Name a database for people: user, host, port and name, never the password."""
    try:
        parts = urlsplit(dsn)
    except ValueError:
        return _UNTOLD
    # A password with a character that a URL may not have (/ ? #) ends the host early, and what follows is the password's.
    if parts.scheme not in {"postgres", "postgresql"} or (("@" in dsn) and "@" not in parts.netloc):
        return _UNTOLD
    host = parts.netloc.rpartition("@")[2]
    if not all(_HOST.fullmatch(one) for one in host.split(",")):
        return _UNTOLD  # no host was given, and what stands in its place may be a password
    user = parts.netloc.rpartition("@")[0].partition(":")[0]
    return f"{user + '@' if user else ''}{host or 'the local socket'}{parts.path}"


def _explain_tls(error: BaseException, dsn: str) -> DatabaseUnavailable | None:
    where = describe(dsn)
    if isinstance(error, ssl.SSLError):
        why = getattr(error, "verify_message", None) or error.reason or error
        return DatabaseUnavailable(f"TLS with {where} failed: {why}", hint="see sslmode and sslrootcert of the DSN")
    if isinstance(error, ConnectionError) and "SSL upgrade" in str(error):
        return DatabaseUnavailable(
            f"{where} has no TLS, which sslmode of the DSN asks for", hint="switch it on, or change sslmode"
        )
    if isinstance(error, FileNotFoundError):
        for name, value in parse_qsl(urlsplit(dsn).query):
            if name in {"sslrootcert", "sslcert", "sslkey", "sslcrl"} and not Path(value).exists():
                return DatabaseUnavailable(f"{where}: {name} of the DSN names a file that is not there", hint=value)
    return None


def explain(error: BaseException, dsn: str) -> DatabaseUnavailable:
    """Turn what a connection attempt raised into one sentence that says what to change."""
    where = describe(dsn)
    if isinstance(error, DatabaseUnavailable):
        return error
    if (of_tls := _explain_tls(error, dsn)) is not None:
        return of_tls
    if isinstance(error, _NotMatched):
        return DatabaseUnavailable(f"no host of {where} is what target_session_attrs of the DSN asks for", hint="all standbys?")
    if isinstance(error, asyncpg.TooManyConnectionsError):
        hint = "a worker takes up to nine: raise max_connections, or CONNECTION LIMIT of the role or the database"
        return DatabaseUnavailable(f"{where} has no connection left: {error.args[0]}", hint=hint)
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return DatabaseUnavailable(f"{where}: {error.args[0]}", hint="create it, or correct the DSN")
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        return DatabaseUnavailable(f"{where} refuses this login: {error.args[0]}", hint="check user and password of the DSN")
    if isinstance(error, socket.gaierror):
        return DatabaseUnavailable(f"the host of {where} is unknown", hint="check the DSN")
    if isinstance(error, TimeoutError):
        return DatabaseUnavailable(f"{where} does not answer within {CONNECT_S:g} s", hint="check host, port and firewall")
    if isinstance(error, OSError):
        return DatabaseUnavailable(f"can't connect to {where}", hint="is the server running there, and the port right?")
    return DatabaseUnavailable(f"{where}: {brief(error)}")


class Link:
    """
    One connection, for one statement at a time, made anew after anything that leaves it in doubt.

    A statement that fails is not repeated here: only the caller knows whether that is right.
    """

    def __init__(self, opener: Callable[[], Awaitable[Connection]], *, deadline_s: float = 10.0) -> None:
        self._opener = opener
        self._deadline_s = deadline_s
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        self._closed = False

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[asyncpg.Record]:  # noqa: ASYNC109 - asyncpg's own signature
        """Execute and return all rows. Raises DatabaseError."""
        async with self._turn:
            connection = await self._open()
            try:
                return await connection.fetch(query, *args, timeout=timeout or self._deadline_s)
            except BaseException as error:  # timed out, cut, cancelled: what is on the wire now is anybody's guess
                if not is_of_use(error):
                    self.terminate()
                raise

    async def open(self) -> None:
        """Connect now, and not at the first statement. Raises DatabaseError."""
        async with self._turn:
            await self._open()

    async def _open(self) -> Connection:
        if self._closed:
            message = "connection is closed"
            raise asyncpg.InterfaceError(message)
        if self._connection is None or self._connection.is_closed():
            self._connection = None
            self._connection = await self._opener()
        return self._connection

    def terminate(self) -> None:
        """Drop the connection without a word to the server; the next statement opens another."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    def close(self) -> None:
        """Drop it for good."""
        self._closed = True
        self.terminate()
