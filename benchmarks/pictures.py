"""The pictures of docs/performance.md, drawn from the JSON in benchmarks/results. matplotlib is in the peers' venv only."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

US, FLOOR, POSTGRES, REDIS = "#0b7285", "#868e96", "#74a9cf", "#f0a868"
KINDS = {US: "notifyworker", FLOOR: "floor", POSTGRES: "on Postgres", REDIS: "on Redis, fsync each second"}

mpl.rcParams.update({
    "svg.hashsalt": "notifyworker",  # the same figures make the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
})  # fmt: skip


def draw(documents: dict[str, dict[str, Any]], directory: Path) -> list[Path]:
    """Draw what there are results of."""
    made = []
    for name, document in documents.items():
        figure = _DRAWN[name](document) if name in _DRAWN else None
        if figure is not None:
            path = directory / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
            made.append(path)
    return made


def _measured(document: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [line for line in document["lines"] if "figures" in line and all(line.get(k) == v for k, v in wanted.items())]


def _colour(line: dict[str, Any]) -> str:
    if line["contender"].startswith("us"):
        return US
    if line["contender"].startswith("floor"):
        return FLOOR
    return REDIS if line["broker"] == "redis" else POSTGRES


def _legend(axes: Any, lines: list[dict[str, Any]]) -> None:
    present = {_colour(line) for line in lines}
    handles = [mpl.patches.Patch(color=colour, label=label) for colour, label in KINDS.items() if colour in present]
    axes.legend(handles=handles, frameon=False, loc="lower right")


def _drain(document: dict[str, Any]) -> Figure | None:
    lines = _measured(document)
    if not lines:
        return None
    lines.sort(key=lambda line: line["figures"]["runs_per_s"]["median"])
    figure = Figure(figsize=(7.5, 0.34 * len(lines) + 1))
    axes = figure.subplots()
    values = [line["figures"]["runs_per_s"] for line in lines]
    medians = [value["median"] for value in values]
    spread = [
        [m - v["min"] for m, v in zip(medians, values, strict=True)],
        [v["max"] - m for m, v in zip(medians, values, strict=True)],
    ]
    axes.barh(
        [line["title"] for line in lines],
        medians,
        xerr=spread,
        color=[_colour(line) for line in lines],
        ecolor="#495057",
        capsize=2,
    )
    for place, value in enumerate(values):
        axes.text(value["max"], place, f"  {value['median']:,.0f}", va="center")
    axes.set_xlabel("no-op runs a second (median; the line spans the rounds)")
    axes.xaxis.set_major_formatter(lambda x, _pos: f"{x:,.0f}")
    axes.margins(x=0.12)
    _legend(axes, lines)
    return figure


def _latencies(axes: Any, lines: list[dict[str, Any]]) -> None:
    lines.sort(key=lambda line: -line["figures"]["p50_ms"]["median"])
    for place, line in enumerate(lines):
        p50, p99 = (line["figures"][key]["median"] for key in ("p50_ms", "p99_ms"))
        axes.plot([p50, p99], [place, place], color=_colour(line), linewidth=3, solid_capstyle="butt")
        axes.plot(p50, place, "o", color=_colour(line))
        axes.plot(p99, place, "|", color=_colour(line), markersize=10, markeredgewidth=2)
        axes.text(p99, place, f"   {p50:.1f} / {p99:.1f}", va="center")
    axes.set_yticks(range(len(lines)), [line["contender_title"] for line in lines])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _pos: f"{x:g}")
    axes.margins(x=0.3)
    axes.set_ylim(-0.6, len(lines) - 0.4)


def _pickup(document: dict[str, Any]) -> Figure | None:
    lines = _measured(document)
    if not lines:
        return None
    figure = Figure(figsize=(7.5, 0.34 * len(lines) + 1))
    axes = figure.subplots()
    _latencies(axes, lines)
    axes.set_xlabel("ms from the insert's call to the handler: point p50, bar p99 (logarithmic)")
    return figure


def _load(document: dict[str, Any]) -> Figure | None:
    rates = sorted({line["rate"] for line in _measured(document)})
    if not rates:
        return None
    heights = [len(_measured(document, rate=rate)) for rate in rates]
    figure = Figure(figsize=(7.5, 0.34 * sum(heights) + 0.7 * len(rates) + 0.6), layout="constrained")
    panels = figure.subplots(len(rates), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, rate in zip(panels, rates, strict=True):
        _latencies(axes, _measured(document, rate=rate))
        axes.set_title(f"{rate:,} inserts a second asked for", loc="left", fontsize=9)
    panels[-1].set_xlabel("ms from the insert's call to the handler: point p50, bar p99 (logarithmic)")
    return figure


def _inserts(document: dict[str, Any]) -> Figure | None:
    lines = [line for line in _measured(document) if not line.get("late")]
    if not lines:
        return None
    figure = Figure(figsize=(7.5, 3.6))
    axes = figure.subplots()
    styles = {"us": (US, "o"), "us-no-trigger": (FLOOR, "s"), "us-always": (REDIS, "^")}
    for name, (colour, marker) in styles.items():
        mine = sorted((line for line in lines if line["contender"] == name), key=lambda line: line["clients"])
        if mine:
            values = [line["figures"]["inserts_per_s"] for line in mine]
            clients = [line["clients"] for line in mine]
            axes.plot(
                clients, [value["median"] for value in values], marker=marker, color=colour, label=mine[0]["contender_title"]
            )
            axes.fill_between(
                clients, [v["min"] for v in values], [v["max"] for v in values], color=colour, alpha=0.15, linewidth=0
            )
    axes.set_xscale("log", base=2)
    ticks = sorted({line["clients"] for line in lines})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clients that insert single rows")
    axes.set_ylabel("inserts a second")
    axes.yaxis.set_major_formatter(lambda y, _pos: f"{y:,.0f}")
    axes.legend(frameon=False)
    return figure


def _growth(document: dict[str, Any]) -> Figure | None:
    lines = _measured(document)
    if not lines:
        return None
    figure = Figure(figsize=(7.5, 3.2))
    axes = figure.subplots()
    for line in lines:
        is_base = line["variant"] == document["base"]
        tenths = [line["figures"][key] for key in sorted(line["figures"]) if key.startswith("tenth_")]
        executed = line["figures"]["executed"]["median"]
        places = [executed * (number + 0.5) / len(tenths) for number in range(len(tenths))]
        colour = FLOOR if is_base else US
        axes.plot(places, [t["median"] for t in tenths], marker="o", color=colour, label=line["variant"])
        axes.fill_between(places, [t["min"] for t in tenths], [t["max"] for t in tenths], color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("runs executed so far")
    axes.set_ylabel("runs a second, by tenths")
    axes.xaxis.set_major_formatter(lambda x, _pos: f"{x:,.0f}")
    axes.yaxis.set_major_formatter(lambda y, _pos: f"{y:,.0f}")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


_DRAWN = {"drain": _drain, "pickup": _pickup, "load": _load, "inserts": _inserts, "hot": _growth, "held": _growth}
