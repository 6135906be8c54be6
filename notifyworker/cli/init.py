"""`notifyworker init`: a project to begin with."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from notifyworker.cli import output, version
from notifyworker.cli.options import Json
from notifyworker.errors import NotifyWorkerError

_APP = '''\
"""
A worker. Run it, on a PostgreSQL of its own, and give it something to do from another terminal:

    notifyworker dev app:worker
    notifyworker enqueue hello '{"name": "Ada"}' --wait
"""

from dataclasses import dataclass

from notifyworker import Retry, Run, Worker

worker = Worker()


@dataclass
class Hello:
    name: str = "world"


@worker.handler("hello", timeout=30, retry=Retry(max_attempts=3))
async def hello(run: Run, payload: Hello) -> dict[str, str]:
    """Greet. Change the text while `notifyworker dev` runs: the worker starts anew."""
    await run.progress({"step": "greeting"})
    return {"greeting": f"Hello, {payload.name}!"}
'''

_PROJECT = """\
[project]
name = "{name}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["notifyworker>={version}"]

[dependency-groups]
dev = ["notifyworker[dev]"]
"""

_README = """\
# {name}

    pip install 'notifyworker[dev]'
    notifyworker dev app:worker

prints, among other things, a line `export NOTIFYWORKER_DSN=..`. With it, in another terminal:

    notifyworker enqueue hello '{{"name": "Ada"}}' --wait
    notifyworker runs list
    notifyworker top

From psql, or any other language, a run is an INSERT:

    INSERT INTO notifyworker.runs (kind, payload) VALUES ('hello', '{{"name": "Grace"}}');

On a database of yours, as many workers as you like:

    export NOTIFYWORKER_DSN=postgresql://user:password@host/database
    notifyworker migrate
    notifyworker worker app:worker
    notifyworker doctor
"""

_IGNORED = "__pycache__/\n.venv/\n"


def init(
    directory: Annotated[Path, Parameter(name="DIRECTORY", help="Where; made if it is not there [default: here].")] = Path(),
    /,
    *,
    json: Json = False,
) -> None:
    """Write a project that works: a handler, its dependencies, and what to type next. Overwrites nothing."""
    folder = directory.expanduser().absolute()
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in folder.name.lower()).strip("-") or "worker"
    files = {
        "app.py": _APP,
        "pyproject.toml": _PROJECT.format(name=name, version=version()),
        "README.md": _README.format(name=name),
        ".gitignore": _IGNORED,
    }
    if there := [file for file in files if (folder / file).exists()]:
        message = f"{folder} has {', '.join(there)} already; nothing was written"
        raise NotifyWorkerError(message, hint="notifyworker init DIRECTORY, for one that is empty")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            with (folder / file).open("x", encoding="utf-8") as out:
                out.write(text)
    except OSError as error:
        message = f"{error.filename or folder}: {error.strerror}"
        raise NotifyWorkerError(message) from None
    if json:
        output.document({"directory": str(folder), "files": list(files)})
        return
    output.line(f"wrote {', '.join(files)} in {folder}")
    if folder != Path.cwd():
        output.line(f"next: cd {directory}")
    output.line("next: notifyworker dev app:worker")
