"""
What is measured. A scenario is a module with

    NAME, TITLE                          as on the command line, and as in the tables
    COLUMNS                              key, heading, and format of each figure; the first is the one that ratios are of
    BASE                                 name of the contender that all are compared to; where it has `AGAINST`, which is
                                         a variant's name, each figure is divided by that of this variant instead
    PICTURE                              False where pictures.py draws none
    cases(contenders, options)           what is run once a round: a list of Case
    run(lab, case, options)              one turn: its figures by key; raises TurnError

Add one by adding its name to `everything`.
"""

from dataclasses import dataclass, field
from types import ModuleType

from benchmarks.contender import Contender


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    n: int = 100_000
    rounds: int = 3
    inserts: int = 300
    seconds: float = 8.0
    clients: tuple[int, ...] = (1, 8, 32, 64)
    window_s: float = 20.0
    crowd: int = 1_000_000
    through: int = 1_000_000
    hold_s: float = 30.0
    idle_s: float = 60.0
    workers: tuple[int, ...] = (1, 5, 20, 50)


@dataclass(frozen=True)
class Case:
    """One line of one scenario's table."""

    contender: Contender
    variant: str = ""
    parameters: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.contender.name} {self.variant}".strip()


@dataclass(frozen=True)
class Column:
    """How a figure is shown."""

    key: str
    heading: str
    digits: int = 0
    higher_is_better: bool = True
    divided: bool = True  # where each figure is divided by another line's: this one too


def everything() -> dict[str, ModuleType]:
    """All scenarios by name, in the order in which they run."""
    from benchmarks.scenarios import backlog, drain, heartbeat, held, herd, hot, idle, inserts, late, load, pickup, turns

    alone = (backlog, turns, hot, held, late, herd, idle, heartbeat)
    return {module.NAME: module for module in (drain, pickup, load, inserts, *alone)}


def ours(contenders: list[Contender]) -> list[Contender]:
    """Ourselves if asked for, for what is measured of us alone."""
    return [contender for contender in contenders if contender.name == "us"]
