"""Copies of the package, each without one defence, at which the table must turn red."""

import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from copies import TOP, copy_package
from rich.console import Console


@dataclass(frozen=True, slots=True)
class Mutant:
    """One defence: the text that makes it, and what stands there without it."""

    defence: str
    file: str
    text: str
    without: str


MUTANTS = [
    Mutant("the token in the settle", "sql/settle.sql", " AND r.lease_token = o.lease_token", ""),
    Mutant("SKIP LOCKED in the claim", "sql/claim.sql", "FOR UPDATE SKIP LOCKED", "FOR UPDATE"),
    Mutant(
        "the look after a reconnect",
        "wake.py",
        "self.on_late(EPOCH)  # how far back the notifications of meanwhile would have told to look, nobody knows\n"
        "        self.on_connected()\n        self._wake.set()",
        "pass",
    ),
    Mutant(
        "the dead man's switch", "deadman.py", "faulthandler.dump_traceback_later(left_s, exit=True, file=cls._stderr)", "pass"
    ),
]


def check(seed: int | None, only: str, console: Console) -> int:
    """Perform the short form on each mutant. Return 1 if one of them passes."""
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    missed = []
    for mutant in MUTANTS:
        console.rule(f"without {mutant.defence}")
        if not _is_red(mutant, seed, only):
            missed.append(mutant.defence)
    for mutant in MUTANTS:
        console.print(f"without {mutant.defence}: {'NOT noticed' if mutant.defence in missed else 'red, as it must be'}")
    return int(bool(missed))


def _is_red(mutant: Mutant, seed: int, only: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="chaos-mutant-") as name:
        copy = copy_package(Path(name))
        file = copy / "notifyworker" / mutant.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutant.text) != 1:
            message = f"{mutant.file} has {text.count(mutant.text)} times what makes {mutant.defence}: correct chaos/mutants.py"
            raise RuntimeError(message)
        file.write_text(text.replace(mutant.text, mutant.without), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "chaos", "--short", "--seed", str(seed), *(["--only", only] if only else [])],
            cwd=copy, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(copy), str(TOP / "tests")])},
        )  # fmt: skip
        return done.returncode == 1
