"""
What was tried and what was done, written by those who did it, outside of the system under test.

Every process appends to a file of its own, one write a line: it survives SIGKILL, and no lock is shared. Times are of
CLOCK_MONOTONIC, which all processes of a machine have in common.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: what happened, when, and who it was."""

    what: str
    at: float
    pid: int
    facts: dict[str, Any]

    @property
    def lease(self) -> tuple[str, int]:
        """Which lease of which run it is about."""
        return self.facts["run"], self.facts["token"]


class Ledger:
    """One process's file in the ledger's directory."""

    def __init__(self, directory: Path, who: str) -> None:
        self.directory = directory
        self._file = os.open(directory / f"{who}.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)

    def note(self, what: str, **facts: Any) -> None:
        """Append one line. It is the kernel's when this returns, whatever becomes of the process."""
        line = {"what": what, "at": time.monotonic(), "pid": facts.pop("pid", None) or os.getpid(), **facts}
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)


@dataclass(slots=True)
class Reader:
    """Reads a ledger while it is written: what came since the last look."""

    directory: Path
    entries: list[Entry] = field(default_factory=list)
    _read: dict[Path, int] = field(default_factory=dict)

    def look(self) -> list[Entry]:
        """All entries so far, a file's in its order."""
        for path in sorted(self.directory.glob("*.jsonl")):
            self.entries += self._new(path)
        return self.entries

    def _new(self, path: Path) -> Iterator[Entry]:
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            data = file.read()
        whole = data.rfind(b"\n") + 1  # a line that is being written is read the next time
        self._read[path] = self._read.get(path, 0) + whole
        for line in data[:whole].splitlines():
            facts = json.loads(line)
            yield Entry(facts.pop("what"), facts.pop("at"), facts.pop("pid"), facts)
