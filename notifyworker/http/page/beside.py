"""A live run and its copy, side by side: their effects in line with each other, and their results, line by line."""

import difflib
import html
import re
from dataclasses import dataclass
from typing import Any

import orjson

from notifyworker.http.page.shown import as_json

_MOST_EFFECTS = 200
_MOST_LINES = 400
_LONGEST = 200_000  # characters that are read; longer ones are shown by their runs' own pages


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a result; `mark` is what of it differs, and nothing where all is the same."""

    before: str
    mark: str = ""
    after: str = ""
    differs: bool = False


def results(live: str | None, shadow: str | None) -> tuple[list[Line], list[Line]]:
    """Both results as indented JSON, with what differs marked. Text goes in as PostgreSQL prints it: no number is read."""
    ours, theirs = _lines(live), _lines(shadow)
    left: list[Line] = []
    right: list[Line] = []
    for how, a, b, c, d in difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if how == "equal":
            left += [Line(line) for line in ours[a:b]]
            right += [Line(line) for line in theirs[c:d]]
            continue
        both = min(b - a, d - c)
        for one, other in zip(ours[a : a + both], theirs[c : c + both], strict=True):
            left.append(_marked(one, other))
            right.append(_marked(other, one))
        left += [Line(line, differs=True) for line in ours[a + both : b]]
        right += [Line(line, differs=True) for line in theirs[c + both : d]]
    return left, right


def _marked(line: str, other: str) -> Line:
    """What stands between their common beginning and their common end."""
    begin = _common(line, other)
    end = _common(line[begin:][::-1], other[begin:][::-1])
    return Line(line[:begin], line[begin : len(line) - end], line[len(line) - end :], differs=True)


def _common(line: str, other: str) -> int:
    """How many characters both begin with."""
    return next((n for n, (a, b) in enumerate(zip(line, other, strict=False)) if a != b), min(len(line), len(other)))


def _lines(text: str | None) -> list[str]:
    if text is None:
        return ["(none)"]
    told = html.unescape(re.sub(r"<[^>]*>", "", as_json(text[:_LONGEST])))
    lines = told.split("\n")
    return [*lines[:_MOST_LINES], f"… {len(lines) - _MOST_LINES:,} more lines"] if len(lines) > _MOST_LINES else lines


def effects(live: str | None, shadow: str | None) -> list[dict[str, Any]] | None:
    """Both lists in line with each other: `name`, `live`, `shadow`, `verdict`. None: the live ones were not recorded."""
    ours, theirs = _entries(live), _entries(shadow) or []
    if ours is None:
        return None
    found: list[dict[str, Any]] = []
    one, other = [_text(entry) for entry in ours], [_text(entry) for entry in theirs]
    for how, a, b, c, d in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        for place in range(max(b - a, d - c)):
            mine = ours[a + place] if a + place < b else None
            its = theirs[c + place] if c + place < d else None
            verdict = "same" if how == "equal" else "missing" if its is None else "not by live" if mine is None else "differs"
            name = (mine or its or {}).get("name", "")
            if verdict == "differs" and mine and its and mine.get("name") != its.get("name"):
                name = f"{mine.get('name')}, {its.get('name')}"
            found.append({"name": name, "live": _call(mine), "shadow": _call(its), "verdict": verdict})
    return found


def _entries(text: str | None) -> list[dict[str, Any]] | None:
    if text is None or len(text) > _LONGEST:
        return None
    try:
        loaded = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return [entry for entry in loaded if isinstance(entry, dict)][:_MOST_EFFECTS] if isinstance(loaded, list) else None


def _text(entry: dict[str, Any]) -> str:
    return orjson.dumps(entry, option=orjson.OPT_SORT_KEYS).decode()


def _call(entry: dict[str, Any] | None) -> str | None:
    """What an effect was called with, in a line."""
    if entry is None:
        return None
    if "sha256" in entry:
        return f"{entry.get('bytes')} bytes, SHA-256 {str(entry['sha256'])[:12]}…"
    if "more" in entry:
        return f"{entry['more']} more"
    args, kwargs = entry.get("args"), entry.get("kwargs")
    told = [orjson.dumps(value).decode() for value in (args if isinstance(args, list) else [])]
    told += [f"{name}={orjson.dumps(value).decode()}" for name, value in (kwargs if isinstance(kwargs, dict) else {}).items()]
    return ", ".join(told)[:500]
