"""`python -m benchmarks`: run what is asked for, turn by turn, and tell. `make bench` is the same with all peers."""

import datetime as dt
import os
import platform
import random
import signal
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from benchmarks import docs, figures, table
from benchmarks.contender import HERE, Contender, everyone
from benchmarks.lab import POSTGRES, REDIS, Lab, TurnError
from benchmarks.scenarios import Case, Options, everything

RESULTS = HERE / "results"
PAGE = HERE.parent / "docs/performance.md"
app = App(
    name="benchmarks", help="Measure notifyworker beside its peers, on PostgreSQL 18 with fsync on.", help_format="plaintext"
)
console = Console(width=None if sys.stdout.isatty() else 140)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@app.default
def run(
    *,
    only: Annotated[str, Parameter(help="Scenarios, comma-separated. Default: all.")] = "",
    contenders: Annotated[str, Parameter(help="Contenders, comma-separated. Default: all.")] = "",
    n: Annotated[int, Parameter(help="Runs of a drain.")] = Options.n,
    rounds: Annotated[int, Parameter(help="Rounds; medians are told.")] = Options.rounds,
    inserts: Annotated[int, Parameter(help="Lone inserts of a pickup.")] = Options.inserts,
    seconds: Annotated[float, Parameter(help="How long a load lasts.")] = Options.seconds,
    clients: Annotated[str, Parameter(help="How many clients insert, comma-separated.")] = "1,8,32,64",
    crowd: Annotated[int, Parameter(help="Rows that lie about; twice as many where they are finished.")] = Options.crowd,
    through: Annotated[int, Parameter(help="Runs that go through a hot table.")] = Options.through,
    hold: Annotated[float, Parameter(help="Seconds from BEGIN to a late COMMIT.")] = Options.hold_s,
    idle: Annotated[float, Parameter(help="Seconds that an idle worker is watched.")] = Options.idle_s,
    workers: Annotated[str, Parameter(help="How many idle workers listen, comma-separated.")] = "1,5,20,50",
    save: Annotated[
        bool, Parameter(help="Keep as benchmarks/results, for docs/performance.md; else in results/partial.")
    ] = False,
) -> None:
    """Run scenarios."""
    options = Options(
        n=n, rounds=rounds, inserts=inserts, seconds=seconds, clients=tuple(map(int, _names(clients))), crowd=crowd,
        through=through, hold_s=hold, idle_s=idle, workers=tuple(map(int, _names(workers))),
    )  # fmt: skip
    chosen = _chosen(contenders)
    scenarios = everything()
    if unknown := set(_names(only)) - set(scenarios):
        sys.exit(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(scenarios)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the laboratory is cleared up then, too
    with Lab() as lab:
        for name, scenario in scenarios.items():
            if (not only or name in _names(only)) and scenario.cases(chosen, options):
                document = _measured(lab, scenario, chosen, options)
                figures.save((RESULTS if save else RESULTS / "partial") / f"{name}.json", document)
                table.shown(document, console)


@app.command
def report() -> None:
    """Draw the pictures, and write docs/performance.md, from what is in benchmarks/results."""
    from benchmarks.pictures import draw

    documents = _documents()
    for path in draw(documents, RESULTS):
        console.print(f"drew {path.relative_to(HERE.parent)}")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(docs.written(documents))
    console.print(f"wrote {PAGE.relative_to(HERE.parent)}")


@app.command
def check() -> int:
    """Tell whether docs/performance.md is what benchmarks/results say. Exit code 1 if not."""
    same = docs.check(PAGE, _documents())
    console.print("docs/performance.md and benchmarks/results agree" if same else "they differ: python -m benchmarks report")
    return 0 if same else 1


def _documents() -> dict[str, dict[str, Any]]:
    found = {name: figures.load(path) for name in everything() if (path := RESULTS / f"{name}.json").exists()}
    if not found:
        sys.exit("there are no results yet: make bench")
    return found


def _chosen(wanted: str) -> list[Contender]:
    known = everyone()
    names = _names(wanted)
    if unknown := set(names) - {contender.name for contender in known}:
        sys.exit(f"no such contender: {', '.join(sorted(unknown))}; there are {', '.join(c.name for c in known)}")
    return [contender for contender in known if not names or contender.name in names]


def _measured(lab: Lab, scenario: ModuleType, contenders: list[Contender], options: Options) -> dict[str, Any]:
    """All rounds of one scenario: in each, every case has its turn, in an order that changes from round to round."""
    cases: list[Case] = scenario.cases(contenders, options)
    found: dict[str, list[dict[str, float]]] = {case.name: [] for case in cases}
    errors: dict[str, str] = {case.name: f"not run: needs {lack}" for case in cases if (lack := case.contender.missing())}
    runnable = [case for case in cases if case.name not in errors]
    for number in range(options.rounds):
        order = list(runnable)
        random.Random(number).shuffle(order)
        for case in order:
            with console.status(f"{scenario.NAME}, round {number + 1} of {options.rounds}: {case.name}"):
                try:
                    found[case.name].append(scenario.run(lab, case, options))
                    told = ", ".join(f"{key} {value:,.6g}" for key, value in found[case.name][-1].items())
                except TurnError as error:
                    told = errors[case.name] = f"failed: {error}"
            console.print(f"[dim]{scenario.NAME} {number + 1}/{options.rounds} {case.name}: {told}[/dim]", highlight=False)
    lines = [_line(case, found[case.name], errors.get(case.name)) for case in cases]
    against = getattr(scenario, "AGAINST", None)
    if against:
        _divide(lines, against)
    else:
        _compare(lines, scenario)
    return {
        "scenario": scenario.NAME,
        "title": scenario.TITLE,
        "how": (scenario.__doc__ or "").strip(),
        "picture": getattr(scenario, "PICTURE", True),
        "base": against or scenario.BASE,
        "within": bool(against),
        "columns": [asdict(column) for column in scenario.COLUMNS],
        "conditions": _conditions(lab, options),
        "lines": lines,
    }


def _line(case: Case, rounds: list[dict[str, float]], error: str | None) -> dict[str, Any]:
    contender = case.contender
    line: dict[str, Any] = {
        "name": case.name,
        "contender": contender.name,
        "variant": case.variant,
        "title": " ".join(filter(None, [contender.title, contender.version(), case.variant])),
        "contender_title": contender.title,
        "broker": contender.broker,
        "settings": contender.settings,
        "durability": contender.durability,
        "measured": contender.measured,
        **case.parameters,
    }
    if error:
        line["error"] = error
    if rounds:
        line["rounds"] = rounds
        line["figures"] = figures.summed_up(rounds)
    return line


def _compare(lines: list[dict[str, Any]], scenario: ModuleType) -> None:
    """Put ratios of the first figure in each line: of it to the base, and of us to it; above 1 is better."""
    column = scenario.COLUMNS[0]

    def value(name: str, variant: str) -> float | None:
        for line in lines:
            if line["contender"] == name and line["variant"] == variant and "figures" in line:
                return float(line["figures"][column.key]["median"])
        return None

    for line in lines:
        if "figures" not in line:
            continue
        own = line["figures"][column.key]["median"]
        for key, base in (("to_base", value(scenario.BASE, line["variant"])), ("us_to_it", value("us", line["variant"]))):
            if base and own:
                better = own / base if (key == "to_base") == column.higher_is_better else base / own
                line[key] = better


def _divide(lines: list[dict[str, Any]], against: str) -> None:
    """Put in each line its figures' medians divided by those of the line that is measured against."""
    base = next((line["figures"] for line in lines if line["variant"] == against and "figures" in line), {})
    for line in lines:
        if line["variant"] != against and "figures" in line:
            line["ratios"] = {
                key: figure["median"] / base[key]["median"]
                for key, figure in line["figures"].items()
                if key in base and base[key]["median"]
            }


def _conditions(lab: Lab, options: Options) -> dict[str, Any]:
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "machine": _machine(),
        "python": platform.python_version(),
        "uvloop": _version("uvloop"),
        "asyncpg": _version("asyncpg"),
        "postgres": POSTGRES,
        "redis": REDIS,
        **lab.versions(),
        "options": asdict(options),
    }


def _commit() -> str:
    """Of what is measured as ours, with a mark if the tree differs from it; empty where there is no git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def _machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next(
            (line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")), ""
        )
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory),
        "cpu": model,
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 1),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(app())
