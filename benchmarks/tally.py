"""
What a process that executes runs tells the harness: a file in memory, of 64-bit integers.

    [0] runs executed   [1] monotonic ns of the first   [2] latencies recorded   [3] spare   [4:] latencies in ns

The harness reads it while the process runs, so that nothing has to be asked of a process that is being measured.
CLOCK_MONOTONIC is the same for all processes of a machine, of Node's as well.
"""

import mmap
import os
import time
from array import array
from pathlib import Path

HEAD = 4
ROOM = 400_000  # latencies


class Tally:
    """The writer: `run(stamp)` at the start of every handler; a stamp above 0 is when its insert was called."""

    def __init__(self, directory: str | Path) -> None:
        path = Path(directory) / f"tally.{os.getpid()}"
        with path.open("w+b") as file:
            file.truncate(8 * (HEAD + ROOM))  # sparse: only what is written takes memory
            self._view = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")

    def run(self, stamp: int = 0) -> None:
        """Count one run."""
        view = self._view
        if not view[0]:
            view[1] = time.monotonic_ns()
        view[0] += 1
        if stamp and view[2] < ROOM:
            view[HEAD + view[2]] = time.monotonic_ns() - stamp
            view[2] += 1

    def runs(self, count: int) -> None:
        """Count a batch whose runs have no handler."""
        if not self._view[0]:
            self._view[1] = time.monotonic_ns()
        self._view[0] += count


class Tallies:
    """The reader of all tallies of one turn."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _heads(self) -> "list[array[int]]":
        heads = []
        for path in self._directory.glob("tally.*"):
            with path.open("rb") as file:
                data = file.read(8 * HEAD)
            if len(data) == 8 * HEAD:
                heads.append(array("q", data))
        return heads

    def count(self) -> int:
        """Runs executed up to now."""
        return sum(head[0] for head in self._heads())

    def first_ns(self) -> int:
        """When the first run began, on the monotonic clock; 0 if none has."""
        return min((head[1] for head in self._heads() if head[1]), default=0)

    def latencies_ms(self) -> list[float]:
        """All latencies, process by process, each process's in its order."""
        found: list[float] = []
        for path in self._directory.glob("tally.*"):
            values = array("q", path.read_bytes())
            found += [value / 1e6 for value in values[HEAD : HEAD + values[2]]]
        return found
