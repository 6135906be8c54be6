"""Copies of the package, to be changed."""

import shutil
from pathlib import Path

from notifyworker.migrate import newest

TOP = Path(__file__).parents[1]


def copy_package(to: Path) -> Path:
    """Copy what the package is made of into this folder, which may not be there yet, and return it."""
    for part in ("notifyworker", "schema"):
        shutil.copytree(TOP / part, to / part, ignore=shutil.ignore_patterns("__pycache__"))
    return to


def next_version(to: Path, migration: str) -> Path:
    """Make a later version: the same with one migration more. Return its folder."""
    copy_package(to)
    (to / "schema" / f"{newest() + 1:04d}_next.sql").write_text(migration, encoding="utf-8")
    return to
