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
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from notifyworker.errors import SettingsError
from notifyworker.http.guesses import Guesses
from notifyworker.http.problem import Handler, Problem
from notifyworker.tokens import NamedToken

COOKIE = "notifyworker_session"

#: Routes for everybody: probes, metrics, the way in, and what the page is drawn with.
OPEN = frozenset({"/healthz", "/readyz", "/livez", "/metrics", "/login", "/assets/{name}"})

_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d*)?")


def check_listening(host: str, token: str | None, named: Sequence[NamedToken] = ()) -> None:
    """Raise SettingsError if anybody on the network could cancel runs."""
    if not token and not named and not _is_loopback(host):
        message = f"host: listening on {host or 'all interfaces'} without a token would let anybody in"
        raise SettingsError(message, hint="set NOTIFYWORKER_TOKEN, or listen on 127.0.0.1")


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name: whatever it stands for may change


@dataclass(frozen=True, slots=True)
class Actor:
    """Whoever asks: the name of a token, and whether it may change anything."""

    name: str
    may_write: bool = True


#: Who sent a request, once the guard has let it pass.
ACTOR = web.RequestKey("actor", Actor)
#: Where no token is wanted.
LOCAL = Actor("local")


class Guard:
    """The rule above, for one sidecar."""

    def __init__(self, token: str | None, host: str, named: Sequence[NamedToken] = ()) -> None:
        known = {Actor("token"): token} if token else {}
        known |= {Actor(one.name, may_write=one.role == "operator"): one.secret for one in named}
        self._tokens = {actor: secret.encode("utf-8", "surrogateescape") for actor, secret in known.items()}
        self._hosts = {"localhost", "127.0.0.1", "::1", host.strip("[]").lower()}
        self._guesses = Guesses()
        # What a browser keeps is not the token, and is worth nothing after a restart.
        key = secrets.token_bytes(32)
        self._sessions = {actor: hmac.digest(key, secret, hashlib.sha256).hex() for actor, secret in self._tokens.items()}

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a request pass, or raise Problem."""
        resource = request.match_info.route.resource
        is_bearer, actor = False, LOCAL
        if not self._tokens:
            self._check_host(request)
        elif resource is None or resource.canonical not in OPEN:
            given = self._bearer(request)
            is_bearer = given is not None
            known = given or self.of_session(request)
            if known is None:
                raise _unknown()
            actor = known
        if not is_bearer and _is_cross_site(request):
            raise Problem(403, "Forbidden", "another site's page sent this")
        if not actor.may_write and request.method not in {"GET", "HEAD", "OPTIONS"} and not _is_open(resource):
            raise Problem(403, "Forbidden", f"the token {actor.name!r} may look, and change nothing")
        request[ACTOR] = actor
        return await handler(request)

    @property
    def has_tokens(self) -> bool:
        """Whether anybody has to show one."""
        return bool(self._tokens)

    def log_in(self, request: web.Request, token: str, response: web.StreamResponse) -> None:
        """Put a session into the response to whoever has the token. Raises Problem."""
        if not self._tokens:
            raise Problem(404, "Not Found", "this sidecar has no token, and wants none")
        actor = self._of_token(request, token.encode("utf-8", "surrogatepass"))
        if actor is None:
            raise _unknown()
        response.set_cookie(COOKIE, self._sessions[actor], httponly=True, samesite="Strict", secure=request.secure, path="/")

    def log_out(self, response: web.StreamResponse) -> None:
        """Take the session out of a browser."""
        response.del_cookie(COOKIE, path="/")

    def of_session(self, request: web.Request) -> Actor | None:
        """Whose session this is. Not limited: nobody guesses 256 bits."""
        given = request.cookies.get(COOKIE, "").encode("utf-8", "surrogateescape")
        found = [actor for actor, session in self._sessions.items() if hmac.compare_digest(given, session.encode())]
        return found[0] if found else None

    def _bearer(self, request: web.Request) -> Actor | None:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        return self._of_token(request, given.strip().encode("utf-8", "surrogateescape")) if scheme.lower() == "bearer" else None

    def _of_token(self, request: web.Request, given: bytes) -> Actor | None:
        """Compare, in a time that tells nothing. Raises Problem where too many wrong ones came from this address."""
        if not self._tokens or not given:
            return None
        self._guesses.check(request.remote, given)
        found = [actor for actor, secret in self._tokens.items() if hmac.compare_digest(given, secret)]
        if found:
            return found[0]
        self._guesses.failed(request.remote, given)
        return None

    def _check_host(self, request: web.Request) -> None:
        host = request.headers.get("Host")
        if host is None:
            return  # HTTP/1.0: no browser
        name = _HOST.fullmatch(host)
        if name is None or name[1].strip("[]").lower() not in self._hosts:
            raise Problem(403, "Forbidden", "the Host header names another host than this one")


def _is_open(resource: web.AbstractResource | None) -> bool:
    return resource is not None and resource.canonical in OPEN | {"/logout"}


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
