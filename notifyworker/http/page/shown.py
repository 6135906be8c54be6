"""How numbers, times and JSON are shown: filters of the templates. What they return as Markup, they have escaped."""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup, escape

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
LONGEST_JSON = 60_000  # characters on a page; the whole is one request away
_TOKEN = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?|(-?\d[\d.eE+-]*|true|false|null)|(.)', re.DOTALL)


def number(value: float | None) -> str:
    """12,345; a dash for nothing."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"  # noqa: PLR2004 - two digits are enough


def count(value: int, cap: int | None = None) -> str:
    """A count, with a plus where it was not counted further."""
    return f"{value:,}" + ("+" if cap is not None and value >= cap else "")


def duration(seconds: float | None) -> str:
    """3 ms, 1.4 s, 12 s, 4 min, 1 m 42 s, 3 h, 6 d: two digits or so of what was measured."""
    if seconds is None:
        return "–"  # noqa: RUF001 - a dash
    seconds = abs(seconds)
    if seconds < 0.9995:  # noqa: PLR2004
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:  # noqa: PLR2004
        return f"{seconds:.1f} s".replace(".0 s", " s")
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.0f} h"
    return f"{seconds / _DAY:.0f} d"


def size(value: float) -> str:
    """312 B, 48 kB, 1.2 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}".replace(".0 ", " ")
    return f"{value:.0f} B"


def percent(part: float, whole: float) -> str:
    """A share of a whole."""
    if not whole:
        return "0 %"
    share = 100 * part / whole
    return f"{share:.1f} %" if 0 < share < 10 else f"{share:.0f} %"  # noqa: PLR2004


def rated(rate: float) -> str:
    """99.98 %, never rounded up: 100 % is said of all alone."""
    return f"{math.floor(round(rate * 1e6) / 100) / 100:.2f} %".replace(".00 %", " %")


def plural(value: int, one: str, many: str | None = None) -> str:
    """1 run, 2 runs."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def _element(moment: datetime, text: str, form: str) -> Markup:
    exact = moment.astimezone(UTC)
    machine = exact.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    title = exact.strftime("%Y-%m-%d %H:%M:%S.") + f"{exact.microsecond // 1000:03d} UTC"
    return Markup('<time datetime="{}" title="{}" data-f="{}"{}>{}</time>').format(
        machine, title, form, Markup(' class="m"') if form not in {"ago", "for"} else "", text
    )


def ago(moment: datetime | None, now: datetime, suffix: str = " ago") -> Markup | str:
    """How long since, or until, as a <time> with the exact moment."""
    if moment is None:
        return "never"
    seconds = (now - moment).total_seconds()
    text = f"{duration(max(0.0, seconds))}{suffix}" if seconds > -1 else f"in {duration(seconds)}"
    return _element(moment, text, "ago" if suffix else "for")


def clock(moment: datetime | None, now: datetime, form: str = "s") -> Markup | str:
    """A time of day, or a date where that is another; the script turns it into the viewer's zone. `form`: m, s or ms."""
    if moment is None:
        return "–"  # noqa: RUF001 - a dash
    exact = moment.astimezone(UTC)
    day = "" if abs((now - exact).total_seconds()) < 20 * _HOUR else f"{exact.day} {exact:%b} "
    text = {"m": exact.strftime("%H:%M"), "s": exact.strftime("%H:%M:%S")}.get(
        form, exact.strftime("%H:%M:%S.") + f"{exact.microsecond // 1000:03d}"
    )
    return _element(moment, day + text, form)


def as_json(text: str | None) -> Markup:
    """JSON as PostgreSQL prints it, indented and coloured; nothing is read, so that numbers stay as they are."""
    if text is None:
        return Markup("null")
    cut, text = max(0, len(text) - LONGEST_JSON), text[:LONGEST_JSON]
    parts: list[str] = []
    depth = 0
    for match in _TOKEN.finditer(text):
        word, colon, plain, mark = match.groups()
        if word is not None and colon is not None:
            parts.append(f'<span class="k">{escape(word)}</span>: ')
        elif word is not None or plain is not None:
            parts.append(f'<span class="v">{escape(word or plain)}</span>')
        elif mark in {"{", "["}:
            depth += 1
            is_empty = text[match.end() : match.end() + 1] in {"}", "]"}
            parts.append(mark if is_empty else f"{mark}\n{_indent(depth)}")
        elif mark in {"}", "]"}:
            depth = max(0, depth - 1)
            is_empty = text[match.start() - 1 : match.start()] in {"{", "["}
            parts.append(mark if is_empty else f"\n{_indent(depth)}{mark}")
        elif mark == ",":
            parts.append(f",\n{_indent(depth)}")
        elif not mark.isspace():
            parts.append(str(escape(mark)))
    if cut:
        parts.append(f'\n<span class="k">… {cut:,} more characters</span>')
    return Markup("".join(parts))  # noqa: S704 - each part is escaped above


def _indent(depth: int) -> str:
    return "  " * min(depth, 20)


def trace(text: str) -> Markup:
    """A traceback: frames of libraries and of ours are dim, the last line stands out."""
    lines = text.rstrip().splitlines()[-400:]
    parts, is_dim = [], False
    for index, line in enumerate(lines):
        if line.startswith('  File "'):
            is_dim = any(part in line for part in ("site-packages", "/notifyworker/", "/asyncio/", "/lib/python", "<frozen"))
        is_last = index == len(lines) - 1
        kind = "hl" if is_last else "k" if is_dim and line.startswith("  ") else ""
        parts.append(Markup('<span class="{}">{}</span>').format(kind, line) if kind else escape(line))
    return Markup("\n").join(parts)


def query_of(values: Mapping[str, Any], **changed: Any) -> str:
    """A query string of what is given, with some of it changed; None leaves one out."""
    merged = {name: value for name, value in {**values, **changed}.items() if value not in {None, ""}}
    return "?" + urlencode(merged) if merged else "?"


def short(worker: str | None) -> str:
    """A worker's name without what is random in it: host and process."""
    return (worker or "").rpartition(":")[0] or (worker or "–")  # noqa: RUF001 - a dash


FILTERS: dict[str, Any] = {
    "number": number, "count_": count, "duration": duration, "size": size, "json": as_json, "trace": trace, "short": short,
}  # fmt: skip
