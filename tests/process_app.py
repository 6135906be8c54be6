"""Handlers for tests of processes: a child imports them by their names."""

import ctypes
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notifyworker import Cancel, Fail, InvalidRun, PauseKind, Run, Snooze


@dataclass
class Sum:
    up_to: int


class Busy(Exception):
    """With an __init__ that takes more than what it hands on: it can't be pickled as usual."""

    def __init__(self, seconds: float, why: str) -> None:
        super().__init__(why)
        self.seconds = seconds


def compute(run: Run, payload: Sum) -> dict[str, Any]:
    return {"sum": sum(range(payload.up_to)), "pid": os.getpid(), "attempt": run.attempt, "headers": run.headers}


def parent(run: Run, payload: dict[str, Any]) -> list[str]:
    children = [str(run.start("child", Sum(n), priority=n)) for n in range(2)]
    group = run.start_group([("child", None)], then=("last", {"of": 1}))
    if run.attempt <= payload["fails"]:
        message = "again"
        raise ValueError(message)
    for wrong, refusal in (({"kind": ""}, InvalidRun), ({"payload": object()}, InvalidRun), ({"color": "red"}, InvalidRun)):
        try:
            run.start(wrong.pop("kind", "child"), wrong.pop("payload", None), **wrong)
        except refusal as error:
            children.append(error.field)
    return [*children, str(group.then)]


def show(run: Run) -> None:
    run.progress({"done": 1})
    run.log.warning("half_way", percent=50)
    run.progress({"done": 2})


def spin(run: Run, payload: dict[str, Any]) -> str:
    """Computes until it is cancelled."""
    Path(payload["begun"]).write_text(str(os.getpid()))
    while not run.cancelled:
        sum(range(1000))
    Path(payload["saw"]).touch()
    return "cancelled"


def nap(run: Run, payload: dict[str, Any]) -> None:
    """Waits until it is cancelled."""
    Path(payload["begun"]).touch()
    if run.cancelled_within(60):
        Path(payload["saw"]).touch()


def hang(run: Run, payload: dict[str, Any]) -> None:
    """One C call that holds the GIL of its process and hears nothing, and a program that it has started."""
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    part = Path(payload["begun"]).with_suffix(".part")
    part.write_text(f"{os.getpid()} {started.pid}")
    part.rename(payload["begun"])
    ctypes.PyDLL(None).sleep(600)


def die(run: Run, payload: dict[str, Any]) -> None:
    match payload["by"]:
        case "exit":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), 9)
        case "sys":
            sys.exit(5)


def grow(run: Run, payload: dict[str, Any]) -> int:
    held = [b"x" * 1024 * 1024 for _ in range(payload["mib"])]
    time.sleep(payload.get("seconds", 0))
    return len(held)


def wish(run: Run, payload: dict[str, Any]) -> None:
    match payload["for"]:
        case "cancel":
            raise Cancel("no more")
        case "fail":
            raise Fail("never")
        case "snooze" if run.lease_token == 1:
            raise Snooze(0.01)
        case "pause":
            raise PauseKind(30, "429")
        case "busy" if run.attempt == 1:
            raise Busy(0.01, "too many")
        case "local" if run.attempt == 1:

            class Local(ValueError): ...

            raise Local("of this place")


def effects(run: Run) -> str:
    return run.effect("mail", str.upper, "sent", shadow_result="not sent")


def unstorable(run: Run) -> float:
    return float("nan")
