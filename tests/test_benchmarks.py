"""The benchmarks run, and what docs/performance.md says is what was measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=TOP, env={**os.environ, "COLUMNS": "200"},
        capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip


def test_the_page_says_what_the_results_say():
    done = benchmarks("check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_floor_and_we_drain_a_queue():
    before = {path: path.stat().st_mtime for path in (TOP / "benchmarks" / "results").glob("*.json")}
    done = benchmarks("--only", "drain", "--contenders", "floor,us", "--n", "2000", "--rounds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = (TOP / "benchmarks" / "results" / "partial").glob("drain.json")
    lines = json.loads(result.read_text())["lines"]
    assert {line["contender"]: line["figures"]["executed"]["median"] for line in lines} == {"floor": 2000, "us": 2000}
    assert {path: path.stat().st_mtime for path in before} == before


def test_a_contender_that_is_not_there_is_named():
    done = benchmarks("--only", "drain", "--contenders", "nonsense")
    assert done.returncode == 1
    assert "no such contender: nonsense" in done.stderr


pytestmark = pytest.mark.timeout(115)
