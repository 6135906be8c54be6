"""What a list of processes shows of our command line. Whoever can log in to the machine can read it."""

import ctypes
from collections.abc import Iterable
from pathlib import Path

_STAT = Path("/proc/self/stat")
_ARG_START = 45  # proc(5) counts it as field 48, from 1; two stand before the last parenthesis, and so is the third the first


def conceal(secrets: Iterable[str]) -> None:
    """
    Write x over these in the memory that the kernel shows as this process's arguments. Python has its own copy of them.

    Does nothing where there is no /proc. Until it is called, which takes some tens of milliseconds, they are to be seen:
    the environment is the better place.
    """
    try:
        fields = _STAT.read_bytes().rpartition(b")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_START + 1])
    except (OSError, ValueError, IndexError):
        return
    if not start < end:  # the kernel does not tell us
        return
    shown = (ctypes.c_char * (end - start)).from_address(start)
    for secret in secrets:
        raw = secret.encode(errors="surrogateescape")
        place = shown.raw.find(raw)
        while place >= 0:
            ctypes.memset(start + place, ord("x"), len(raw))
            place = shown.raw.find(raw, place + len(raw))
