"""
Who may ask: a token, or nobody but this machine.

Without a token the sidecar listens on loopback only. That keeps other machines out, but not a page in this machine's
browser: what another site sends (CSRF), and a name of another site that points to 127.0.0.1 (DNS rebinding), is told by
the request's head and refused.
"""

import hashlib
import hmac
import ipaddress
import re
import secrets
from urllib.parse import urlsplit

from aiohttp import web

from notifyworker.errors import SettingsError
from notifyworker.http.guesses import Guesses
from notifyworker.http.problem import Handler, Problem

COOKIE = "notifyworker_session"

#: Routes for everybody: probes, metrics, the way in, and what the page is drawn with.
OPEN = frozenset({"/healthz", "/readyz", "/livez", "/metrics", "/login", "/assets/{name}"})

_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d*)?")


def check_listening(host: str, token: str | None) -> None:
    """Raise SettingsError if anybody on the network could cancel runs."""
    if not token and not _is_loopback(host):
        message = f"host: listening on {host or 'all interfaces'} without a token would let anybody in"
        raise SettingsError(message, hint="set NOTIFYWORKER_TOKEN, or listen on 127.0.0.1")


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name: whatever it stands for may change


class Guard:
    """The rule above, for one sidecar."""

    def __init__(self, token: str | None, host: str) -> None:
        self._token = token.encode("utf-8", "surrogateescape") if token else None
        self._hosts = {"localhost", "127.0.0.1", "::1", host.strip("[]").lower()}
        self._guesses = Guesses()
        # What a browser keeps is not the token, and is worth nothing after a restart.
        self._session = hmac.digest(secrets.token_bytes(32), self._token or b"", hashlib.sha256).hex()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a request pass, or raise Problem."""
        resource = request.match_info.route.resource
        is_bearer = False
        if self._token is None:
            self._check_host(request)
        elif resource is None or resource.canonical not in OPEN:
            is_bearer = self._is_bearer(request)
            if not is_bearer and not self._has_session(request):
                raise _unknown()
        if not is_bearer and _is_cross_site(request):
            raise Problem(403, "Forbidden", "another site's page sent this")
        return await handler(request)

    def log_in(self, request: web.Request, token: str, response: web.StreamResponse) -> None:
        """Put a session into the response to whoever has the token. Raises Problem."""
        if self._token is None:
            raise Problem(404, "Not Found", "this sidecar has no token, and wants none")
        if not self._is_token(request, token.encode("utf-8", "surrogatepass")):
            raise _unknown()
        response.set_cookie(COOKIE, self._session, httponly=True, samesite="Strict", secure=request.secure, path="/")

    def _has_session(self, request: web.Request) -> bool:
        """Not limited: nobody guesses 256 bits."""
        given = request.cookies.get(COOKIE, "").encode("utf-8", "surrogateescape")
        return hmac.compare_digest(given, self._session.encode())

    def _is_bearer(self, request: web.Request) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self._is_token(request, given.strip().encode("utf-8", "surrogateescape"))

    def _is_token(self, request: web.Request, given: bytes) -> bool:
        """Compare, in a time that tells nothing. Raises Problem where too many wrong ones came from this address."""
        if self._token is None or not given:
            return False
        self._guesses.check(request.remote, given)
        if hmac.compare_digest(given, self._token):
            return True
        self._guesses.failed(request.remote, given)
        return False

    def _check_host(self, request: web.Request) -> None:
        host = request.headers.get("Host")
        if host is None:
            return  # HTTP/1.0: no browser
        name = _HOST.fullmatch(host)
        if name is None or name[1].strip("[]").lower() not in self._hosts:
            raise Problem(403, "Forbidden", "the Host header names another host than this one")


def _is_cross_site(request: web.Request) -> bool:
    """Say whether a page of another origin makes a browser send this. A client that is no browser sends neither header."""
    if request.method in {"GET", "HEAD"}:
        return False
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in {"same-origin", "none"}
    origin = request.headers.get("Origin")  # older browsers, and any browser over plain HTTP from another machine
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != request.headers.get("Host", "").lower()
    except ValueError:
        return True


def _unknown() -> Problem:
    detail = "send the token as Authorization: Bearer, or POST it to /login"
    return Problem(401, "Unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})
