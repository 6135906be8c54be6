"""What is published: the same bytes from the same files, small, whole, and with nothing that git does not know."""

import asyncio
import email
import hashlib
import importlib.util
import io
import lzma
import os
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked(*folders: str) -> set[str]:
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}


def built(root: Path, into: Path) -> list[Path]:
    made = [*WheelBuilder(str(root)).build(directory=str(into)), *SdistBuilder(str(root)).build(directory=str(into))]
    return sorted(map(Path, made))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (made,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))
    return Path(made)


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout")
def test_two_builds_are_the_same_bytes(tmp_path: Path) -> None:
    """From two folders, with other times, and permissions as another umask makes them."""
    files = tracked()
    for place, mode, at in (("one", 0o644, 1_700_000_000), ("two", 0o600, 1_750_000_000)):
        for name in sorted(files, reverse=place == "two"):
            copy = tmp_path / place / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy)
            copy.chmod(mode)
            os.utime(copy, (at, at))
    one, two = (
        {made.name: hashlib.sha256(made.read_bytes()).hexdigest() for made in built(tmp_path / place, tmp_path / f"dist-{place}")}
        for place in ("one", "two")
    )
    assert len(one) == 2
    assert one == two


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_wheel_has_all_of_ours_and_nothing_else(wheel: Path) -> None:
    packed = zipfile.ZipFile(wheel)
    data = zipfile.ZipFile(io.BytesIO(lzma.decompress(packed.read("notifyworker/data.zip.xz"))))
    names = {name for name in packed.namelist() if ".dist-info/" not in name} - {"notifyworker/data.zip.xz"}
    names |= {name if name.startswith("schema/") else f"notifyworker/{name}" for name in data.namelist()}
    assert names == tracked("notifyworker", "schema")
    assert {name for name in names if "/LICENSE" in name} <= set(packed.namelist())  # to be seen, and not packed away
    assert "notifyworker/py.typed" in names
    assert wheel.stat().st_size < 620_000


async def test_what_is_packed_is_read(wheel: Path, tmp_path: Path, empty_dsn: str) -> None:
    """By the code of the wheel alone: its migrations, its statements, and its page."""
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path)
    code = """
import asyncio, sys
import notifyworker
assert notifyworker.__file__.startswith(sys.argv[1]), notifyworker.__file__
from notifyworker.cli import main
from notifyworker.http.page.assets import Assets
from notifyworker.http.page.queries import Queries
from notifyworker.http.page.site import Site
from notifyworker.store import Store
from notifyworker.views import Views
Store("notifyworker"), Views("notifyworker"), Queries("notifyworker"), Site("", "here"), Assets()
main(["migrate"])
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "NOTIFYWORKER_DSN": empty_dsn}
    done = await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "applied 0002 runs" in done.stderr + done.stdout


def test_what_an_index_shows(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        (path,) = (name for name in packed.namelist() if name.endswith("METADATA"))
        told = email.message_from_bytes(packed.read(path))
        (licence,) = (name for name in packed.namelist() if name.endswith("licenses/LICENSE"))
    assert told["Name"] == "notifyworker"
    assert told["Version"] == PROJECT["version"]
    assert told["License-Expression"] == "MIT"
    assert told["Requires-Python"] == ">=3.11"
    assert told["Description-Content-Type"] == "text/markdown"
    assert told.get_payload().startswith("# notifyworker")
    assert set(told.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert licence
    classifiers = told.get_all("Classifier")
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)} <= set(classifiers)
    assert "Typing :: Typed" in classifiers
    readme = (ROOT / "README.md").read_text()
    for extra in told.get_all("Provides-Extra"):
        assert f"`{extra}`" in readme.partition("Extras:")[2], extra


def test_the_import_is_quick() -> None:
    """Of three, the least processor time: that of the import, whatever else the machine does."""
    code = "import time; began = time.process_time(); import notifyworker; print(time.process_time() - began)"
    took = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(3)
    ]
    assert min(took) < 0.15


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None and importlib.util.find_spec("uv") is None, reason="there is no uv")
def test_uv_runs_it_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """As `uv tool run notifyworker` and `pipx run notifyworker` do: an environment of its own. Asks the package index."""
    uv = [shutil.which("uv")] if shutil.which("uv") else [sys.executable, "-m", "uv"]
    began = time.monotonic()
    for arguments in (["--version"], ["--help"], ["init", "hello"]):
        done = subprocess.run(
            [*uv, "tool", "run", "--from", str(wheel), "notifyworker", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (done, time.monotonic() - began)
    assert (tmp_path / "hello" / "app.py").exists()
