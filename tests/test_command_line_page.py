"""docs/command-line.md: what it shows is executed, and has an example of every command."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import commands
import pytest
from cyclopts import App
from test_cli import environment

from notifyworker import Worker
from notifyworker.cli.app import make_app
from notifyworker.cli.examples import EXAMPLES

PAGE = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text()
LINES = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()]
RUN = "01a1e77d-8518-752e-bca9-269e0324aac3"
#: Those that go on or take long: what each does is shown by the tests of these names.
ELSEWHERE = {
    "notifyworker demo": "test_demo",
    "notifyworker demo --keep": "test_demo",
    "notifyworker dev app:worker": "test_dev",
    "notifyworker worker app:worker": "test_cli",
    "notifyworker worker app:worker --concurrency 50 --kinds email.send,email.bounce": "test_cli",
    "notifyworker status --watch": "test_cli_looks",
    "notifyworker top": "test_cli_looks",
    "notifyworker runs tail": "test_cli_looks",
    "notifyworker runs tail --state failed --json": "test_cli_looks",
    "notifyworker bench --runs 5000": "test_cli",
    "notifyworker mcp": "test_mcp",
    "notifyworker mcp --allow-writes": "test_mcp",
}
APP = """
from notifyworker import Run, Worker

worker = Worker(concurrency=7)

@worker.handler("email.send")
async def send(run: Run, payload: dict) -> dict:
    return {"sent_to": payload["to"]}
"""


def names(app: App, *above: str) -> Iterator[str]:
    for name, command in app.resolved_commands().items():
        if name.startswith("-"):
            continue
        if command.default_command is None:
            yield from names(command, *above, name)
        else:
            yield " ".join((*above, name))


def test_every_command_has_an_example_that_stands_on_the_page() -> None:
    assert set(names(make_app())) == set(EXAMPLES)
    examples = [line for lines in EXAMPLES.values() for line in lines]
    assert set(examples) == set(LINES)
    for name, lines in EXAMPLES.items():
        assert all(f"notifyworker {name}" in line for line in lines)
    assert set(ELSEWHERE) <= set(LINES)
    for test in ELSEWHERE.values():
        assert (Path(__file__).parent / f"{test}.py").exists()


def test_every_exit_code_is_on_the_page() -> None:
    told = {int(n) for row in re.findall(r"^\| ([\d, ]+) \|", PAGE, re.MULTILINE) for n in row.split(", ")}
    assert told == {0, 1, 2, 3, 4, 5, 6, 130, 143}


@pytest.mark.timeout(300)
async def test_the_examples_do_what_they_say(dsn: str, connection: Any, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    app = types.ModuleType("page_app")
    exec(compile(APP, "app.py", "exec"), app.__dict__)
    worker: Worker = app.worker
    worker.configure({"dsn": dsn, "sidecar": True, "port": 0})
    await connection.execute("INSERT INTO notifyworker.runs (run_id, kind) VALUES ($1::uuid, 'somebody.elses')", RUN)
    (tmp_path / ".local/share/bash-completion/completions").mkdir(parents=True)
    said: dict[str, str] = {}
    async with worker:
        assert worker.url is not None
        port = worker.url.rpartition(":")[2].strip("/")
        for line in LINES:
            if line in ELSEWHERE or line.endswith("| psql"):  # which test_cli pipes into psql
                continue
            said[line] = await _typed(line.replace("8080", port), tmp_path, dsn)
    assert (
        said["""notifyworker enqueue email.send '{"to": "a@example.org"}' --wait --wait-s 60"""]
        == '{"sent_to": "a@example.org"}\n'
    )
    assert "Time line" in said[f"notifyworker runs show {RUN}"]
    assert said[f"notifyworker runs cancel {RUN}"] == "cancelled\n"
    assert "a@example.org" in said["notifyworker runs list --kind email.send --text example.org --json"]
    assert "nightly" in said["notifyworker schedules list"]
    assert '"keyword"' in said["notifyworker config show app:worker --json"]
    assert (tmp_path / "hello" / "app.py").exists()
    assert "complete" in (tmp_path / ".local/share/bash-completion/completions/notifyworker").read_text()


async def _typed(line: str, folder: Path, dsn: str) -> str:
    """What it prints. A shell is asked only for what is a shell's."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = environment({"NOTIFYWORKER_DSN": dsn, "PATH": path, "HOME": str(folder)})
    if re.search(r"[|<>;&$~*\\`]", line):
        run = partial(subprocess.run, cwd=folder, env=env, capture_output=True, check=False, timeout=60)
        done = await asyncio.to_thread(run, ["bash", "-c", line])
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        name, *arguments = shlex.split(line)
        assert name == "notifyworker"
        code, out, err = await commands.output(arguments, cwd=folder, env=env)
    assert code == 0, (line, out, err)
    return out.decode()
