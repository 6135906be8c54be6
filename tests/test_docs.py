"""The docs site: it builds, its links lead somewhere, and what it says of errors, settings, states and other queues holds."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from servers import eventually, processes, scratch_directory
from test_cli import call
from test_dev import developing

import notifyworker
from notifyworker import Client, errors
from notifyworker.cli.examples import EXIT_CODES
from notifyworker.errors import Code
from notifyworker.settings import FLEET_SETTINGS, Settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = tomllib.loads((ROOT / "zensical.toml").read_text())


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


def assembler() -> Any:
    spec = importlib.util.spec_from_file_location("assemble", DOCS / "assemble.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def built(folder: Path) -> subprocess.CompletedProcess[str]:
    """The site of the pages in folder/build/docs."""
    shutil.copy(ROOT / "zensical.toml", folder)
    command = (Path(sys.executable).parent / "zensical", "build", "--clean", "--strict")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=100)


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    assembler().assemble(folder / "build" / "docs")
    return folder


def test_the_site_builds_and_shows_every_page(gathered: Path) -> None:
    done = built(gathered)
    assert done.returncode == 0, done.stdout + done.stderr
    site = gathered / "build" / "site"
    nav = re.findall(r"\"([a-z-]+)\.md\"", json.dumps(SITE["project"]["nav"]))
    assert sorted(nav) == sorted(file.stem for file in (gathered / "build" / "docs").glob("*.md"))
    assert all((site / f"{name}.html").exists() for name in nav)
    assert 'id="notifyworker.Client.enqueue"' in (site / "reference.html").read_text()
    assert 'class="mermaid"' in (site / "concepts.html").read_text()
    for file in re.findall(r"(?:src|href)=\"(files/[^\"]+)\"", (site / "performance.html").read_text()):
        assert (site / file).exists(), file


def test_links_that_lead_nowhere_are_errors(gathered: Path, tmp_path: Path) -> None:
    shutil.copytree(gathered / "build" / "docs", tmp_path / "build" / "docs")
    with (tmp_path / "build" / "docs" / "start.md").open("a") as start:
        start.write("\n[no page](nowhere.md)\n\n[no heading](concepts.md#nothing-of-this-name)\n")
    done = built(tmp_path)
    assert done.returncode != 0
    assert "2 issues found" in done.stdout + done.stderr


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assemble = assembler()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("[there](b.json), [not there](../c.json)\n```\n[code](d.json)\n```\n")
    (tmp_path / "docs" / "b.json").write_text("{}")
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.setattr(assemble, "ROOT", tmp_path)
    monkeypatch.setattr(assemble, "OTHERS", {})
    with pytest.raises(SystemExit) as refused:
        assemble.assemble(tmp_path / "out")
    assert "docs/a.md: ../c.json is no file" in str(refused.value)
    assert [line for line in str(refused.value).splitlines() if line.startswith("docs/")] == ["docs/a.md: ../c.json is no file"]
    assert (tmp_path / "out" / "files" / "docs" / "b.json").exists()


def test_every_setting_has_its_default_its_bounds_and_its_names(gathered: Path) -> None:
    told = (gathered / "build" / "docs" / "settings.md").read_text()
    parts = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", told, re.MULTILINE | re.DOTALL))
    assert parts.keys() == {"schema" if name == "schema_name" else name for name in Settings.model_fields}
    for name, part in parts.items():
        assert f"`NOTIFYWORKER_{name.upper()}`, `--{name.replace('_', '-')}`" in part
        assert (f"config set {name} " in part) == (name in FLEET_SETTINGS)
    assert "at least 1 and at most 10000" in parts["concurrency"]
    assert "above 0 and at most" in parts["stall_limit_s"]
    assert "one of `honour`, `enforce`" in parts["shadow"]
    assert "one of `exit`, `log`" in parts["on_lapse"]


def rows(section: str) -> dict[str, list[str]]:
    """The cells beside each `name` of the tables below a heading of errors.md."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", page("errors"), re.MULTILINE | re.DOTALL)[1]
    table = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    return {name.strip("` "): cells for first, *cells in table for name in first.split(", ")}


def test_every_code_has_its_cause_and_its_cure() -> None:
    told = rows("Of a run")
    assert told.keys() == {code.value for code in Code}
    assert all(len(cells) == 2 and all(cell.strip() for cell in cells) for cells in told.values())


def test_every_exception_has_its_cause_and_its_cure() -> None:
    raised = {name for name, thing in vars(errors).items() if isinstance(thing, type) and issubclass(thing, Exception)}
    told = rows("Of Python")
    assert told.keys() == raised - {"NotifyWorkerError"}
    assert all(cell.strip() for cells in told.values() for cell in cells)


def test_every_exit_code_and_every_status_is_told() -> None:
    codes = {code for name in rows("Of the command line") for code in re.findall(r"\d+", name)}
    assert codes == set(re.findall(r"\b\d{1,3}\b", EXIT_CODES))
    source = "".join(file.read_text() for file in (ROOT / "notifyworker" / "http").rglob("*.py"))
    answered = set(re.findall(r"Problem\(\s*(\d{3})", source)) | {"400"}
    assert answered <= rows("Of the sidecar").keys()


def test_the_reference_has_every_name() -> None:
    assert sorted(re.findall(r"^::: notifyworker\.(\w+)$", page("reference"), re.MULTILINE)) == sorted(notifyworker.__all__)


def test_the_diagram_is_the_table_of_states() -> None:
    drawn = set(re.findall(r"^    (\w+) --> (\w+)", page("concepts"), re.MULTILINE))
    table = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| .*? \| (.*?) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    states = {"pending", "running", "completed", "failed", "cancelled"}
    told = {
        (before, after)
        for first, second in table
        for before in states & set(re.findall(r"`(\w+)`", first))
        for after in states & set(re.findall(r"`(\w+)`", second))
    }
    assert len(told) == 9
    assert drawn == told


MOVES = re.findall(
    r"^## From (\w+)\n.*?^```python old\n(.*?)^```.*?^```python new\n(.*?)^```", page("moving-over"), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize("move", MOVES, ids=[move[0] for move in MOVES])
async def test_moving_over(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, move: tuple[str, ...]
) -> None:
    """What it was is Python; what it becomes is executed: produced, and worked off."""
    name, old, new = move
    compile(old, name, "exec")
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    app = types.ModuleType(f"moved_from_{name.lower()}")
    monkeypatch.setitem(sys.modules, app.__name__, app)
    exec(compile(new.replace(', executor="process"', ""), "moving-over.md", "exec"), app.__dict__)
    async with app.worker, Client() as client:
        await app.produce(client)
        await connection.execute("UPDATE notifyworker.runs SET run_at = now() WHERE run_at > now()")
        await eventually(lambda: client.list(state="completed"))


def test_four_are_moved_from() -> None:
    assert [move[0] for move in MOVES] == ["Celery", "RQ", "PgQueuer", "Procrastinate"]


@pytest.mark.slow
async def test_start_in_five_minutes_as_it_stands(tmp_path: Path) -> None:
    """Typed as a newcomer would: what is shown to be printed is printed."""
    text = page("start")
    begin, first, second, look, _ = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    shown = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    (addition,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (insert,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for line in begin.splitlines()]
    assert [command[0] for command in commands] == ["pip", "notifyworker", "cd", "notifyworker"]
    assert (await call(*commands[1][1:], cwd=tmp_path)).code == 0
    folder = tmp_path / commands[2][1]
    with scratch_directory() as place:
        async with developing(folder, "--port", "0", "--data-dir", str(place / "data")) as told:
            assert commands[3][1:] == ["dev", "app:worker"]
            dsn = re.search(r"export NOTIFYWORKER_DSN='(.+)'", await told.until("worker_started"))[1]
            env = {"NOTIFYWORKER_DSN": dsn}
            assert json.loads((await call(*shlex.split(first)[1:], env=env)).out) == shown[0]
            conn = await asyncpg.connect(dsn)
            await conn.execute(insert)
            await told.until("completed  hello")
            with (folder / "app.py").open("a") as app:
                app.write(f"\n\n{addition}")
            await told.until("worker_started")
            assert json.loads((await call(*shlex.split(second)[1:], env=env)).out) == shown[1]
            for line in look.splitlines():
                assert (await call(*shlex.split(line)[1:], env=env)).code == 0
            failing = (
                "SELECT errors #>> '{0,message}' FROM notifyworker.all_runs WHERE kind = 'add' AND jsonb_array_length(errors) > 0"
            )
            await eventually(lambda: conn.fetchval(failing), 30)
            await conn.close()
            assert await told.interrupt() == 0
        await eventually(lambda: not processes(place), 30)
