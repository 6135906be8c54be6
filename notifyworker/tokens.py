"""The tokens of the sidecar that have a name, so that what is done by hand can be told to have been done by somebody."""

import re
from dataclasses import dataclass

SHORTEST_SECRET = 8


@dataclass(frozen=True, slots=True)
class NamedToken:
    """A token of the sidecar: whose, what it may (operator: all; viewer: look), and what its holder shows."""

    name: str
    role: str
    secret: str


def named_tokens_of(text: str | None) -> list[NamedToken]:
    """Read NAME:ROLE:SECRET, separated by commas. Raises ValueError, which repeats nothing of them."""
    found: list[NamedToken] = []
    for number, entry in enumerate(text.split(",") if text is not None else (), 1):
        name, _, rest = entry.strip().partition(":")
        role, _, secret = rest.partition(":")
        if not re.fullmatch(r"[\w.@-]{1,100}", name) or role not in {"operator", "viewer"} or len(secret) < SHORTEST_SECRET:
            message = (
                f"entry {number} must be NAME:operator:SECRET or NAME:viewer:SECRET, the secret of at least {SHORTEST_SECRET} "
                "characters and without a comma"
            )
            raise ValueError(message)
        if name in {"token", "local", *(other.name for other in found)} or secret in {other.secret for other in found}:
            message = f"entry {number} has a name or a secret that is taken"
            raise ValueError(message)
        found.append(NamedToken(name, role, secret))
    return found
