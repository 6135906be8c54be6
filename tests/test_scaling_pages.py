"""docs/failover.md, databases.md and scaling.md: the settings, commands and pages that they show are there."""

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from notifyworker import hosts
from notifyworker.cli.examples import EXAMPLES
from notifyworker.settings import Settings

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["failover.md", "databases.md", "scaling.md"]


def lines(page: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("page", PAGES)
def test_what_is_typed_there_is_understood(page):
    known = {line for examples in EXAMPLES.values() for line in examples}
    for line in lines(page):
        given = dict(re.findall(r"NOTIFYWORKER_([A-Z_]+)=('[^']*'|\S+)", line))
        settings = {name.lower(): value.strip("'") for name, value in given.items()}
        Settings.load(command_line={"dsn": "postgresql://h/d", **settings})  # refuses what it does not know
        for dsn in (value for name, value in settings.items() if name.endswith("dsn")):
            assert len(hosts.each(dsn)) == 2
            assert parse_qs(urlsplit(dsn).query)["target_session_attrs"][0] in {"read-write", "prefer-standby"}
        command = re.sub(r"NOTIFYWORKER_[A-Z_]+=('[^']*'|\S+) ?", "", line)
        assert not command or command in known, command


@pytest.mark.parametrize("page", [*PAGES, "running.md"])
def test_the_files_that_it_names_are_there(page):
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", (DOCS / page).read_text()):
        assert (DOCS / path).exists(), path
