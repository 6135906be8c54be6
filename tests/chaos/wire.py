"""What the proxy reads of PostgreSQL's protocol: messages, the text of each statement, and rules about them."""

import asyncio
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Literal

ENCRYPTION_REQUESTS = (b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30")
At = Literal["request", "answer"]
READY = b"Z\0\0\0\x05"  # and one byte more: the end of an answer


def statement(name: str) -> str:
    """What identifies a statement of ours on the wire: the first line of its file in notifyworker/sql/."""
    return (resources.files("notifyworker") / "sql" / f"{name}.sql").read_text(encoding="utf-8").splitlines()[0]


@dataclass(slots=True)
class Rule:
    """
    What to do once with the `nth` statement that contains `text` (and `argument` among its parameters).

    At its request, or at its answer; `deed` is executed in the proxy's thread at that moment, with the proxy's name. Then the connection is
    cut, the message goes on its way, or it is held until `let_go`.
    """

    text: str
    at: At
    then: Literal["cut", "pass", "hold"]
    argument: bytes = b""
    purpose: str | None = None
    nth: int = 1
    deed: Callable[[str], None] = lambda _name: None
    fired: threading.Event = field(default_factory=threading.Event)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    def matches(self, purpose: str, text: str, arguments: bytes) -> bool:
        """Whether this is the statement, counting those before it."""
        if self.fired.is_set() or self.text not in text or self.argument not in arguments:
            return False
        if self.purpose is not None and self.purpose != purpose:
            return False
        self.nth -= 1
        if self.nth > 0:
            return False
        self.fired.set()
        return True


class Messages:
    """Messages of the protocol out of a stream of bytes."""

    def __init__(self, *, has_startup: bool) -> None:
        self._buffer = b""
        self.in_startup = has_startup

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Type, body and the whole of each message that is complete."""
        self._buffer += data
        while True:
            head = 0 if self.in_startup else 1
            if len(self._buffer) < head + 4:
                return
            size = head + struct.unpack_from("!I", self._buffer, head)[0]
            if len(self._buffer) < size:
                return
            whole, self._buffer = self._buffer[:size], self._buffer[size:]
            kind = b"" if self.in_startup else whole[:1]
            if self.in_startup and whole[4:8] not in ENCRYPTION_REQUESTS:
                self.in_startup = False
            yield kind, whole[head + 4 :], whole


class Follower:
    """Follows the names of a client's statements and portals."""

    def __init__(self) -> None:
        self._prepared: dict[bytes, str] = {}
        self._portals: dict[bytes, tuple[str, bytes]] = {}
        self._executed: tuple[str, bytes] | None = None

    def rule_for(self, kind: bytes, body: bytes, purpose: str, rules: Sequence[Rule]) -> Rule | None:
        """The rule for this message: the Sync that ends an Execute, or a simple query."""
        found = None
        if kind == b"Q":
            found = (body[:-1].decode(errors="replace"), b"")
        elif kind == b"P":
            name, text = body.split(b"\0", 2)[:2]
            self._prepared[name] = text.decode(errors="replace")
        elif kind == b"B":
            portal, name = body.split(b"\0", 2)[:2]
            self._portals[portal] = (self._prepared.get(name, ""), body if rules else b"")
        elif kind == b"E":
            self._executed = self._portals.get(body.split(b"\0", 1)[0])
        elif kind == b"S":
            found, self._executed = self._executed, None
        if found is None:
            return None
        return next((rule for rule in rules if rule.matches(purpose, *found)), None)
