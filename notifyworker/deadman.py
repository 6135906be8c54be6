"""
The dead man's switch: ends a process that can no longer prove that its runs are its own.

faulthandler's timer is a C thread that needs no GIL: it fires in the middle of a C call that holds it, and in the
first moment of a process that was frozen, and it prints the guilty line. Nothing in Python could. It reads the frames
of threads that may run meanwhile: rarely it falls over one, and the process ends by SIGSEGV in place of exit code 1.
"""

import faulthandler
import os
import threading
import time
from typing import TextIO


class DeadMansSwitch:
    """One timer in a process, armed to the earliest deadline of all workers in it; it ends the process with exit code 1."""

    _lock = threading.Lock()
    _deadlines: dict[int, float] = {}  # noqa: RUF012 - one of each process, as is the timer
    _stderr: TextIO | None = None

    @classmethod
    def is_armed(cls, who: object) -> bool:
        """Whether there is a deadline for `who`."""
        return id(who) in cls._deadlines

    @classmethod
    def arm(cls, who: object, deadline: float | None) -> None:
        """Set or clear (None) the moment, in time.monotonic(), at which `who` must be over."""
        with cls._lock:
            if deadline is None:
                if cls._deadlines.pop(id(who), None) is None:
                    return
            else:
                cls._deadlines[id(who)] = deadline
            if not cls._deadlines:
                faulthandler.cancel_dump_traceback_later()
                return
            if cls._stderr is None:
                cls._stderr = os.fdopen(os.dup(2), "w")
            left_s = max(0.001, min(cls._deadlines.values()) - time.monotonic())
            faulthandler.dump_traceback_later(left_s, exit=True, file=cls._stderr)
