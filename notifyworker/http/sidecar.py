"""The HTTP sidecar of one worker: what of it starts and ends, and in which order."""

import asyncio
import errno
import ssl

from aiohttp import web

from notifyworker.errors import StartError
from notifyworker.http.answer import secure
from notifyworker.http.auth import Guard, check_listening
from notifyworker.http.body import bodies
from notifyworker.http.connections import protocols, served
from notifyworker.http.events import Events
from notifyworker.http.observed import Observed
from notifyworker.http.page.actions import Actions
from notifyworker.http.page.live import Live
from notifyworker.http.page.pages import Pages
from notifyworker.http.pool import CONNECTIONS, Pool
from notifyworker.http.problem import problems
from notifyworker.http.routes import Routes
from notifyworker.http.tls import HANDSHAKE_S, server_context
from notifyworker.observe import log

_SHUTDOWN_S = 2.0  # for requests that are being answered
_ROOM_BYTES = 65_536  # for what stands around the payload in the body of POST /runs


class Sidecar:
    """Serves one worker over HTTP. It never touches the worker's connections, and needs no database to start."""

    def __init__(self, worker: Observed) -> None:
        self._worker = worker
        self._settings = worker.settings
        self._token = self._settings.token.get_secret_value() if self._settings.token else None
        self._pool = Pool(worker.dsn, self._settings.schema_name)
        read_dsn = self._settings.read_dsn.get_secret_value() if self._settings.read_dsn else worker.dsn
        self._page_pool = Pool(read_dsn, self._settings.schema_name, purpose="page")
        self._events = Events(self._events_heard)
        self._has_listeners = False
        self._live = Live(self._hear)
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._port = self._settings.port
        self._stopping = asyncio.Lock()

    @property
    def url(self) -> str:
        """Where it listens; with the port that it got, once started."""
        host = self._settings.host.strip("[]")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - told, not bound
        scheme = "https" if self._settings.tls_cert else "http"
        return f"{scheme}://[{host}]:{self._port}" if ":" in host else f"{scheme}://{host}:{self._port}"

    def publish(self, event: dict[str, object]) -> None:
        """Tell all listeners of /events. On the event loop only."""
        self._events.publish(event)
        self._live.changed()

    def _events_heard(self, is_heard: bool) -> None:  # noqa: FBT001 - called back with it alone
        self._has_listeners = is_heard
        self._hear()

    def _hear(self) -> None:
        """Let the worker make no event that nobody wants: for pages one is enough, until they were drawn."""
        pulse = self._noted if self._live.is_curious else None
        self._worker.publish_to(self.publish if self._has_listeners else pulse)

    def _noted(self, _event: dict[str, object]) -> None:
        self._live.changed()

    async def start(self) -> None:
        """Listen. Raises SettingsError where anybody could come in or the certificate is unusable, StartError if the port can't be had."""
        check_listening(self._settings.host, self._token, self._settings.named_tokens)
        context = server_context(self._settings.tls_cert, self._settings.tls_key)
        try:
            await self._pool.open()
            await self._page_pool.open()
            for name, pool in (("sidecar", self._pool), ("page", self._page_pool)):
                self._worker.metrics.connections.labels(name).set_function(pool.used)
                self._worker.metrics.connections_allowed.labels(name).set(CONNECTIONS)
            self._runner = web.AppRunner(self._application(), shutdown_timeout=_SHUTDOWN_S, handler_cancellation=True)
            await self._runner.setup()
            await self._listen(self._runner, context)
        except BaseException:
            await self.stop()
            raise
        log.info("sidecar_listening", url=self.url)

    async def stop(self) -> None:
        """Listen no more, end streams at once and other requests soon. Safe to call twice, or without a start."""
        async with self._stopping:
            self._worker.publish_to(None)
            if self._server is not None:
                self._server.close()
                self._server = None
            self._events.close()
            await self._live.close()
            if self._runner is not None:
                await self._runner.cleanup()
                self._runner = None
            self._pool.close()
            self._page_pool.close()

    def _application(self) -> web.Application:
        guard = Guard(self._token, self._settings.host, self._settings.named_tokens)
        pages = Pages(self._worker, self._page_pool, guard, self._live)
        actions = Actions(self._worker, self._pool, pages)
        limited = bodies(lambda: self._worker.max_payload_bytes + _ROOM_BYTES)
        application = web.Application(middlewares=[problems, pages.told, guard.middleware, limited, served, pages.drawn])
        application.on_response_prepare.append(secure)
        application.add_routes(Routes(self._worker, self._pool, self._events).table())
        application.add_routes([*pages.table(), *actions.table()])
        return application

    async def _listen(self, runner: web.AppRunner, context: ssl.SSLContext | None) -> None:
        host, port = self._settings.host.strip("[]"), self._settings.port
        assert runner.server is not None
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                protocols(runner.server), host or None, port, ssl=context, ssl_handshake_timeout=HANDSHAKE_S if context else None
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                message = f"port {port} on {host} is in use"
                hint = "another worker on this host? give --port 0 for a free one, or --no-sidecar"
            else:
                message = f"can't listen on {host}, port {port}: {error.strerror or type(error).__name__}"
                hint = "check --host and --port; ports below 1024 are for root"
            raise StartError(message, hint=hint) from None
        self._port = self._server.sockets[0].getsockname()[1]
