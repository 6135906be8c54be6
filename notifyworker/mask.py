"""What nobody may read in a log or an error: passwords of DSNs, and what is named as a secret."""

import re
from collections.abc import Collection, Mapping
from typing import Any

HIDDEN = "***"

#: A password in a URL, or beside its name in a DSN of libpq's other form.
SECRETS = re.compile(r"(://[^:/@\s]*:)(?P<url>\S*)@|(password=)(?P<word>[^\s&]+)", re.IGNORECASE)
_NAMES = re.compile(r"passw|secret|token|authorization|api_?key|cookie|credential", re.IGNORECASE)
_DEPTH = 10


def masked(text: str) -> str:
    """Hide passwords in a text."""
    return SECRETS.sub(lambda found: f"{found[1]}{HIDDEN}@" if found[1] else f"{found[3]}{HIDDEN}", text)


def without_secrets(value: Any, known: Collection[str], depth: int = 0) -> Any:
    """Hide passwords, these known secrets, and whatever text stands under a name such as token, in a value for JSON."""
    if isinstance(value, str):
        for secret in known:
            value = value.replace(secret, HIDDEN)
        return masked(value)
    if depth > _DEPTH:
        return value if isinstance(value, int | float) else HIDDEN
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(item, str | bytes) and _NAMES.search(str(key)) else without_secrets(item, known, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [without_secrets(item, known, depth + 1) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return without_secrets(_text_of(value), known, depth)


def _text_of(value: Any) -> str:
    try:
        return str(value) if isinstance(value, BaseException) else repr(value)
    except Exception as error:  # noqa: BLE001 - an object whose own __repr__ raises
        return f"<{type(value).__name__}, whose text can't be had: {type(error).__name__}>"
