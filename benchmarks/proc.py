"""What Linux tells of processes: CPU time and memory."""

import os
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
#: Places in `fields`: of /proc/PID/stat after the command's name, whose first is the state.
PARENT, UTIME, STIME, CSTIME = 1, 11, 12, 14
_MIB = 2**20


def fields(pid: int) -> list[int]:
    """/proc/PID/stat after the command's name; the state, a letter, as 0."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [0, *map(int, words[1:])]


def children(pid: int) -> list[list[int]]:
    """The fields of each of its children."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            of_it = fields(int(path.name))
        except OSError:  # ended meanwhile
            continue
        if of_it[PARENT] == pid:
            found.append(of_it)
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds of one process, all its threads."""
    of_it = fields(pid)
    return (of_it[UTIME] + of_it[STIME]) / TICKS_A_SECOND


def memory_mib(pid: int, name: str = "VmRSS") -> float:
    """Resident memory; VmHWM is the most that it ever was."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / _MIB
    return 0.0
