"""What Linux tells of processes: CPU time and memory."""

import os
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
#: Places in `fields`: of /proc/PID/stat after the command's name, whose first is the state.
PARENT, UTIME, STIME, CUTIME, CSTIME = 1, 11, 12, 13, 14
_MIB = 2**20


def fields(pid: int) -> list[int]:
    """/proc/PID/stat after the command's name; the state, a letter, as 0."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [0, *map(int, words[1:])]


def children(pid: int) -> list[int]:
    """The process ids of its children."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            of_it = fields(int(path.name))
        except OSError:  # ended meanwhile
            continue
        if of_it[PARENT] == pid:
            found.append(int(path.name))
    return found


def thread_cpu_s(pid: int) -> float:
    """
    CPU seconds of a process that has one thread; 0 if it has ended meanwhile.

    To the nanosecond where Linux tells: in ticks of 10 ms, what hundreds of idle sessions use is lost in rounding.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except FileNotFoundError:
        return cpu_s(pid) if Path(f"/proc/{pid}").exists() else 0.0
    except OSError:
        return 0.0


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
