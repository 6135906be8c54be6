"""
Whether a copy has done the same as its live run: its result, its effects, its failure; and where it has not.

Paths are those of the JSON: `result.items.0.price`, `effects.1.kwargs.to`; `*` in a rule stands for any one name or place.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from notifyworker import payload as payloads
from notifyworker.mask import masked

_LINES = 50
_LINE_CHARACTERS = 300
_DIFF_BYTES = 8 * 1024


class _Nothing:
    def __repr__(self) -> str:
        return "(nothing)"


_NOTHING = _Nothing()
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far numbers may be apart: `amount`, or `amount` times the live one."""

    amount: float
    is_relative: bool = False

    def covers(self, live: float, shadow: float) -> bool:
        """Whether these two are as good as the same."""
        return abs(live - shadow) <= (self.amount * abs(live) if self.is_relative else self.amount)


@dataclass(frozen=True, slots=True)
class Rules:
    """How a kind is compared: what does not count, what may be apart, and whether effects must come in the same order."""

    ignored: tuple[Path, ...] = ()
    tolerances: Mapping[Path, Tolerance] = field(default_factory=dict)
    ordered: bool = True


@dataclass(frozen=True, slots=True)
class Side:
    """How one of the two ended. `effects` None: they were not recorded."""

    state: str
    result: Any = None
    effects: Sequence[Any] | None = None
    error_code: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ways` are those in which they differ: outcome, failure, result, effects; or effects_unrecorded, which is none."""

    is_same: bool
    ways: tuple[str, ...] = ()
    diff: str | None = None


def path_of(text: str) -> Path:
    """Read a path. Raises ValueError."""
    path = tuple(text.split("."))
    if path[0] not in {"result", "effects"} or not all(path):
        message = (
            f"a path begins with result or effects, its parts separated by dots, such as result.items.*.at, not {text!r:.200}"
        )
        raise ValueError(message)
    return path


def tolerance_of(value: Any) -> Tolerance:
    """Read a number, absolute, or text that ends in %, relative. Raises ValueError."""
    is_relative = isinstance(value, str) and value.endswith("%")
    try:
        amount = float(value.removesuffix("%")) if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        amount = -1.0
    if isinstance(value, bool) or not 0 <= amount < float("inf"):
        message = f"a tolerance is a number of at least 0, or one with %, not {value!r:.100}"
        raise ValueError(message)
    return Tolerance(amount / 100 if is_relative else amount, is_relative)


def compare(live: Side, shadow: Side, rules: Rules) -> Verdict:
    """Compare two outcomes."""
    ways: list[str] = []
    lines: list[str] = []
    if live.state != shadow.state:
        ways.append("outcome")
        lines += [f"outcome: {_ending(live)} -> {_ending(shadow)}"]
    elif live.state == "failed" and (live.error_code, _first(live)) != (shadow.error_code, _first(shadow)):
        ways.append("failure")
        lines += [f"failure: {_ending(live)} -> {_ending(shadow)}"]
    for way, one, other in (("result", live.result, shadow.result), ("effects", live.effects, shadow.effects)):
        if way == "effects" and one is None:
            continue
        if way == "result" and "outcome" in ways:
            continue
        found = list(_differences(_ready(one, way, rules), _ready(other, way, rules), (way,), rules))
        if found:
            ways.append(way)
            lines += [f"{'.'.join(path)}: {_shown(a)} -> {_shown(b)}" for path, a, b in found]
    if ways:
        if len(lines) > _LINES:
            lines = [*lines[:_LINES], f"and {len(lines) - _LINES} more"]
        return Verdict(is_same=False, ways=tuple(ways), diff=payloads.clean_text(masked("\n".join(lines)), _DIFF_BYTES))
    return Verdict(is_same=True, ways=("effects_unrecorded",) if live.effects is None else ())


def _first(side: Side) -> str:
    return (side.message or "").partition("\n")[0]


def _ending(side: Side) -> str:
    return f"{side.state} ({side.error_code}: {_first(side)})"[:_LINE_CHARACTERS] if side.state == "failed" else side.state


def _ready(value: Any, way: str, rules: Rules) -> Any:
    """Leave out what does not count; and put effects that need no order into one."""
    value = _without(value, (way,), rules.ignored)
    if way == "effects" and not rules.ordered and isinstance(value, list):
        return sorted(value, key=payloads.encode_leniently)
    return value


def _without(value: Any, path: Path, ignored: Sequence[Path]) -> Any:
    if not ignored:
        return value
    if isinstance(value, Mapping):
        return {k: _without(v, (*path, k), ignored) for k, v in value.items() if not _is_any((*path, k), ignored)}
    if isinstance(value, list):
        # A place that is ignored stays one, or the others would move.
        return [None if _is_any((*path, str(n)), ignored) else _without(v, (*path, str(n)), ignored) for n, v in enumerate(value)]
    return None if _is_any(path, ignored) else value


def _is_any(path: Path, patterns: Sequence[Path]) -> bool:
    return any(_fits(path, pattern) for pattern in patterns)


def _fits(path: Path, pattern: Path) -> bool:
    return len(path) == len(pattern) and all(b in {"*", a} for a, b in zip(path, pattern, strict=True))


def _differences(live: Any, shadow: Any, path: Path, rules: Rules) -> Iterator[tuple[Path, Any, Any]]:
    if isinstance(live, Mapping) and isinstance(shadow, Mapping):
        for name in sorted({*live, *shadow}):
            yield from _differences(live.get(name, _NOTHING), shadow.get(name, _NOTHING), (*path, name), rules)
        return
    if isinstance(live, list) and isinstance(shadow, list):
        for place in range(max(len(live), len(shadow))):
            one = live[place] if place < len(live) else _NOTHING
            other = shadow[place] if place < len(shadow) else _NOTHING
            yield from _differences(one, other, (*path, str(place)), rules)
        return
    if _is_number(live) and _is_number(shadow):
        if live == shadow or any(t.covers(live, shadow) for p, t in rules.tolerances.items() if _fits(path, p)):
            return
        yield path, live, shadow
        return
    if type(live) is not type(shadow) or live != shadow:
        yield path, live, shadow


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = repr(value) if value is _NOTHING else payloads.encode_leniently(value)
    return text if len(text) <= _LINE_CHARACTERS else f"{text[:_LINE_CHARACTERS]}…"
