"""What a contender is: the facts that the harness and the report need, and the verbs that its process understands."""

import importlib
import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

HERE = Path(__file__).parent
NODE_MODULES = HERE / "contenders/node_modules"

Scenario = Literal["drain", "pickup", "load", "inserts"]

#: In the order of the tables; the floor first, since ratios are to it.
MODULES = (
    "floor",
    "floor_poll",
    "us",
    "graphile_worker",
    "pgqueuer",
    "awa",
    "pg_boss",
    "procrastinate",
    "celery",
    "arq",
    "saq",
    "dramatiq",
)


@dataclass(frozen=True)
class Contender:
    """
    One line of the tables. `module` is below benchmarks.contenders; a Node contender's script has the same name.

    `unsettled` asks whether anything is left to do: a query whose first column is false or 0 when nothing is, or
    Redis commands whose integers add up to 0. `takes` are the scenarios that it takes part in, `rates` the inserts a
    second at which its pickup under load is measured, `processes` how many worker processes a drain has, `at_most` how many
    runs are put in its queue where that takes long, one by one.
    """

    name: str
    title: str
    module: str
    runtime: Literal["ours", "peers", "node"]
    package: str | None
    unsettled: str | tuple[tuple[str, ...], ...]
    settings: str
    durability: str
    measured: str = "insert and handler in one process"
    broker: Literal["postgres", "redis"] = "postgres"
    takes: tuple[Scenario, ...] = ("drain", "pickup")
    rates: tuple[int, ...] = ()
    processes: int = 1
    at_most: int | None = None
    venv: str = ".venv"
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def _python(self) -> Path:
        return HERE / self.venv / "bin/python"

    def missing(self) -> str | None:
        """What this machine lacks to run it, for people; None if nothing."""
        if self.broker == "redis" and shutil.which("redis-server") is None:
            return "redis-server"
        if self.runtime == "node":
            if shutil.which("node") is None:
                return "node and npm"
            if not (NODE_MODULES / str(self.package)).is_dir():
                return "its node modules: make bench"
        if self.runtime == "peers" and not self._distributions():
            return "the peers' venv: make bench"
        return None

    def version(self) -> str:
        """Of its package, as installed."""
        if self.package is None or self.missing():
            return ""
        if self.runtime == "node":
            return str(json.loads((NODE_MODULES / self.package / "package.json").read_text())["version"])
        if self.runtime == "ours":
            return metadata.version(self.package)
        return self._distributions()[0].name.removesuffix(".dist-info").rsplit("-", 1)[1]

    def _distributions(self) -> list[Path]:
        """Where its venv, which is not ours, says what is installed."""
        name = str(self.package).replace("-", "_")
        return list(self._python.parent.parent.glob(f"lib/*/site-packages/{name}-*.dist-info"))

    def command(self, verb: str) -> list[str]:
        """Argument vector of this contender's process."""
        if self.runtime == "node":
            return ["node", str(HERE / "contenders" / f"{self.module}.mjs"), verb]
        python = sys.executable if self.runtime == "ours" else str(self._python)
        return [python, "-m", "benchmarks.protocol", self.module, verb]


def everyone() -> list[Contender]:
    """All contenders, in the order of the tables. Their modules import nothing of the peers' at their top."""
    found: list[Contender] = []
    for name in MODULES:
        if importlib.util.find_spec(f"benchmarks.contenders.{name}") is not None:
            found += importlib.import_module(f"benchmarks.contenders.{name}").CONTENDERS
    return found
