"""
Charts as SVG: x in per cent and y in px, so that they stretch without a script; colour by class. Numbers go in, and
nothing else: text beside them is the templates' affair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

_STEPS = (1, 2, 5, 10)


def ceiling(most: float) -> float:
    """The round number that an axis ends at."""
    scale = 1.0
    while scale * _STEPS[-1] < most:
        scale *= 10
    while scale > most > 0:
        scale /= 10
    return next(scale * step for step in _STEPS if scale * step >= most) if most > 0 else 1.0


def spark(values: Sequence[float | None], *, width: int = 100, height: int = 28, is_bad: bool = False) -> Markup:
    """A line without axes; all of it lies in the picture, from 0 to its own highest."""
    known = [value or 0.0 for value in values]
    if len(known) < 2:  # noqa: PLR2004 - no line without two points
        return Markup("")
    most = max(*known, 1e-9)
    step = width / (len(known) - 1)
    line = "L".join(f"{index * step:.1f} {height - 1.5 - (height - 3) * value / most:.1f}" for index, value in enumerate(known))
    return Markup(
        '<svg class="spark" viewBox="0 0 {w} {h}" preserveAspectRatio="none" aria-hidden="true">'
        '<path class="a" d="M{line}V{h}H0z"/><path{cls} d="M{line}"/></svg>'
    ).format(w=width, h=height, line=line, cls=Markup(' class="e"') if is_bad else "")


def bars(values: Sequence[float], *, height: int, css: str, labels: Sequence[tuple[float, str]] = ()) -> Markup:
    """Bars over the whole width, with lines at nothing, half and the ceiling; `labels` of the x axis as (share, text)."""
    most = ceiling(max(values, default=0))
    drawn = height - 10
    grid = [drawn + 8, 8] if height < 80 else [drawn + 8, 8 + drawn / 2, 8]  # noqa: PLR2004 - too low for a middle line
    parts = [Markup('<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>').format(y) for y in grid]
    width = 100 / max(1, len(values))
    for index, value in enumerate(values):
        if value > 0:
            high = max(1.0, drawn * value / most)
            parts.append(
                Markup('<rect class="{}" x="{:.2f}%" width="{:.2f}%" y="{:.1f}" height="{:.1f}"/>').format(
                    css, index * width, width * 0.76, 8 + drawn - high, high
                )
            )
    parts += _labels(labels, height + 13)
    whole = height + (18 if labels else 0)
    axis = [Markup('<text x="100%" y="{:.0f}" text-anchor="end">{}</text>').format(y + 4, _tick(most, grid, y)) for y in grid]
    return Markup(
        '<svg class="ax" height="{h}" aria-hidden="true">{a}</svg><svg class="chart" height="{h}" aria-hidden="true">{b}</svg>'
    ).format(h=whole, a=Markup("").join(axis), b=Markup("").join(parts))


def lines(
    series: Sequence[tuple[str, Sequence[float | None]]], *, height: int, labels: Sequence[tuple[float, str]] = ()
) -> Markup:
    """Several lines on one scale; a value that is not known is a gap."""
    most = ceiling(max((value for _, values in series for value in values if value is not None), default=0))
    drawn = height - 10
    grid = [drawn + 8, 8 + drawn / 2, 8]
    parts = [Markup('<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>').format(y) for y in grid]
    parts.append(Markup('<svg viewBox="0 0 1000 {h}" preserveAspectRatio="none" width="100%" height="{h}">').format(h=height))
    for css, values in series:
        step = 1000 / max(1, len(values) - 1)
        path, pen = "", "M"
        for index, value in enumerate(values):
            if value is None:
                pen = "M"
                continue
            path += f"{pen}{index * step:.1f} {8 + drawn - drawn * value / most:.1f}"
            pen = "L"
        parts.append(Markup('<path class="ln {}" d="{}"/>').format(css, path))
    parts.append(Markup("</svg>"))
    parts += _labels(labels, height + 13)
    whole = height + 18
    axis = [Markup('<text x="100%" y="{:.0f}" text-anchor="end">{}</text>').format(y + 4, _tick(most, grid, y)) for y in grid]
    return Markup(
        '<svg class="ax" height="{h}" aria-hidden="true">{a}</svg><svg class="chart" height="{h}" aria-hidden="true">{b}</svg>'
    ).format(h=whole, a=Markup("").join(axis), b=Markup("").join(parts))


def _tick(most: float, grid: Sequence[float], y: float) -> str:
    share = (grid[0] - y) / (grid[0] - grid[-1])
    value = most * share
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.3g}"  # noqa: PLR2004


def _labels(labels: Sequence[tuple[float, str]], y: float) -> list[Markup]:
    return [
        Markup('<text x="{:.2f}%" y="{:.0f}" text-anchor="middle">{}</text>').format(100 * share, y, text)
        for share, text in labels
    ]


def slots(used: int, of: int, css: str, *, most: int = 16) -> Markup:
    """A box a slot, filled where it is taken; of many, one bar."""
    if of > most:
        full = 96 * min(1.0, used / of)
        return Markup(
            '<svg width="96" height="14" aria-hidden="true"><rect class="c-line" x="0" y="1" width="96" height="12" rx="1.5"/>'
            '<rect class="{}" x="0" y="1" width="{:.1f}" height="12" rx="1.5"/></svg>'
        ).format(css, full)
    boxes = Markup("").join(
        Markup('<rect class="{}" x="{}" y="1" width="8" height="12" rx="1.5"/>').format(
            css if index < used else "c-line", index * 10
        )
        for index in range(of)
    )
    return Markup('<svg width="{}" height="14" aria-hidden="true">{}</svg>').format(of * 10 - 2, boxes)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a time line, in the class that says what it was."""

    css: str
    start: datetime
    end: datetime


def track(
    begin: datetime,
    end: datetime,
    spans: Sequence[Span],
    *,
    now: datetime,
    label: str,
    stop: datetime | None = None,
    stop_css: str = "c-bad",
) -> Markup:
    """One line of a time line from `begin` to `end`; `stop` is a mark at a moment."""
    whole = max(1e-6, (end - begin).total_seconds())

    def at(moment: datetime) -> float:
        return 100 * min(1.0, max(0.0, (moment - begin).total_seconds() / whole))

    parts = (
        [Markup('<line class="grid" x1="{0:.2f}%" x2="{0:.2f}%" y1="-14" y2="34"/>').format(at(now))]
        if begin <= now <= end
        else []
    )
    for span in spans:
        left, right = at(span.start), at(span.end)
        parts.append(
            Markup('<rect class="{}" x="{:.2f}%" y="3" width="{:.2f}%" height="14" rx="2"/>').format(
                span.css, left, max(0.3, right - left)
            )
        )
    if stop is not None:
        parts.append(
            Markup('<rect class="{}" x="{:.2f}%" y="1" width="4" height="18" rx="1"/>').format(stop_css, max(0.0, at(stop) - 0.3))
        )
    return Markup('<svg class="chart" height="20" role="img" aria-label="{}">{}</svg>').format(label, Markup("").join(parts))


def ticks(states: Sequence[str]) -> Markup:
    """How runs ended, the oldest first: height and colour by how."""
    high = {
        "completed": (10, "c-bar"),
        "running": (10, "c-run"),
        "pending": (6, "c-line"),
        "failed": (16, "c-bad"),
        "cancelled": (4, "c-edge"),
    }
    parts = []
    for index, state in enumerate(states):
        height, css = high[state]
        parts.append(
            Markup('<rect class="{}" x="{}" y="{}" width="4" height="{}" rx="1"/>').format(css, index * 6, 17 - height, height)
        )
    return Markup('<svg width="{}" height="18" aria-hidden="true">{}</svg>').format(
        max(4, len(states) * 6 - 2), Markup("").join(parts)
    )


_MARKS = {0.85: (0.85, 0.9, 0.95, 0.99), 0.5: (0.5, 0.75, 0.99), 0.0: (0.0, 0.5, 0.99)}


def _place(rate: float, floor: float) -> float:
    return 100 * min(1.0, max(0.0, (rate - floor) / (1 - floor)))


def scale(floor: float) -> Markup:
    """Over intervals: where rates stand between `floor` and 1."""
    parts = [
        Markup('<text x="{:.2f}%" y="10" text-anchor="{}">{:.0f}{}</text>').format(
            _place(rate, floor), "middle" if index else "start", 100 * rate, "" if index else " %"
        )
        for index, rate in enumerate(_MARKS[floor])
    ]
    return Markup('<svg class="chart" height="12" aria-hidden="true">{}</svg>').format(Markup("").join(parts))


def interval(low: float, rate: float | None, high: float, css: str, *, floor: float, threshold: float) -> Markup:
    """A rate with its interval, between `floor` and 1; what is below is at the edge."""
    left, right = _place(low, floor), _place(high, floor)
    dot = Markup('<circle class="{}" cx="{:.2f}%" cy="9" r="4.5"/>').format(css, _place(rate, floor)) if rate is not None else ""
    return Markup(
        '<svg class="chart ci" height="18" aria-hidden="true"><line class="grid" x1="0" x2="100%" y1="9" y2="9"/>'
        '<line class="thr" x1="{t:.2f}%" x2="{t:.2f}%" y1="0" y2="18"/>'
        '<rect class="{css}" x="{left:.2f}%" y="7" width="{width:.2f}%" height="4" rx="2"/>{dot}</svg>'
    ).format(t=_place(threshold, floor), css=css, left=left, width=max(0.3, right - left), dot=dot)
