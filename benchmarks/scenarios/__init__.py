"""
What is measured. A scenario is a module with

    NAME, TITLE                          as on the command line, and as in the tables
    COLUMNS                              key, heading, and format of each figure; the first is the one that ratios are of
    BASE                                 name of the contender that all are compared to
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


def everything() -> dict[str, ModuleType]:
    """All scenarios by name, in the order in which they run."""
    from benchmarks.scenarios import drain, inserts, load, pickup

    return {module.NAME: module for module in (drain, pickup, load, inserts)}
