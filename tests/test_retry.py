"""Retry: when the next attempt is due, and which exception has none; the page about it."""

import re
import types
from pathlib import Path

import asyncpg
import pytest
import structlog
from servers import eventually

from notifyworker import Retry, Run
from notifyworker.run import State

PAGE = Path(__file__).parents[1] / "docs" / "retries.md"


@pytest.mark.parametrize("attempt", [1, 2, 3, 4, 100])
def test_exponential_delays_are_drawn_evenly_up_to_their_bound(attempt):
    retry = Retry(base_s=2, cap_s=10)
    bound = {1: 2, 2: 4, 3: 8, 4: 10, 100: 10}[attempt]

    drawn = [retry.delay_s(attempt, ValueError()) for _ in range(2000)]

    assert max(drawn) <= bound
    assert min(drawn) < 0.02 * bound < 0.98 * bound < max(drawn)
    assert sum(drawn) / 2000 == pytest.approx(bound / 2, rel=0.1)


def test_fixed_listed_and_own_delays():
    assert Retry(delay=30).delay_s(7, ValueError()) == 30
    assert [Retry(delay=[1, 10, 60]).delay_s(n, ValueError()) for n in (1, 2, 3, 4, 99)] == [1, 10, 60, 60, 60]
    assert Retry(delay=lambda attempt, error: attempt * error.args[0]).delay_s(3, ValueError(2)) == 6


def test_the_most_special_rule_counts_and_none_fails_at_once():
    retry = Retry(on=(KeyError,), delay=5, rules={OSError: 1, ConnectionError: [2, 3], PermissionError: None})

    assert retry.delay_s(1, ConnectionResetError()) == 2
    assert retry.delay_s(2, ConnectionResetError()) == 3
    assert retry.delay_s(1, FileNotFoundError()) == 1
    assert retry.delay_s(1, PermissionError()) is None
    assert retry.delay_s(1, KeyError()) == 5
    assert retry.delay_s(1, ValueError()) is None


def test_a_time_out_is_retried_unless_a_rule_says_otherwise():
    assert Retry(on=(KeyError,), delay=5).delay_s(1, TimeoutError(), is_timeout=True) == 5
    assert Retry(rules={TimeoutError: None}).delay_s(1, TimeoutError(), is_timeout=True) is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"base_s": -1}, "base_s"),
        ({"cap_s": float("inf")}, "cap_s"),
        ({"delay": -1}, "delay"),
        ({"delay": []}, "delay"),
        ({"delay": "30"}, "delay"),
        ({"delay": [1, None]}, "delay"),
        ({"delay": float("nan")}, "delay"),
        ({"rules": {"ValueError": 1}}, "rules"),
        ({"rules": {ValueError: -1}}, r"rules\[ValueError\]"),
    ],
)
def test_what_could_never_work_is_told_at_import(wrong, told):
    with pytest.raises(ValueError, match=told):
        Retry(**wrong)


@pytest.mark.parametrize("answer", [-1, None, "soon", float("inf"), ZeroDivisionError()])
async def test_a_delay_function_that_fails_loses_no_run(make_worker, connection, answer):
    worker = make_worker()

    def delay(attempt: int, error: BaseException) -> float:
        if isinstance(answer, Exception):
            raise answer
        return answer

    @worker.handler("a", retry=Retry(max_attempts=2, base_s=0.01, delay=delay))
    async def handle(run: Run) -> None:
        if run.attempt == 1:
            raise ValueError

    with structlog.testing.capture_logs() as logs:
        async with worker:
            run_id = await connection.fetchval("INSERT INTO notifyworker.runs (kind) VALUES ('a') RETURNING run_id")
            await eventually(lambda: state(connection, run_id, State.COMPLETED))

    assert [entry["kind"] for entry in logs if entry["event"] == "retry_delay_failed"] == ["a"]


async def test_rules_decide_in_the_database(make_worker, connection):
    worker = make_worker()
    rules = {ConnectionError: 0.01, PermissionError: None, TimeoutError: None}

    @worker.handler("a", timeout=0.2, retry=Retry(max_attempts=3, delay=3600, rules=rules))
    async def handle(run: Run, payload: dict) -> None:
        if payload["raise"] == "hang":
            await eventually(lambda: False, 60)
        raise {"reset": ConnectionResetError, "refused": PermissionError, "other": ValueError}[payload["raise"]]

    insert = "INSERT INTO notifyworker.runs (kind, payload) VALUES ('a', jsonb_build_object('raise', $1::text)) RETURNING run_id"
    runs = {}
    async with worker:
        for what in ("reset", "refused", "hang", "other"):
            runs[what] = await connection.fetchval(insert, what)
        for what in ("reset", "refused", "hang"):
            await eventually(lambda what=what: state(connection, runs[what], State.FAILED))
        await eventually(lambda: state(connection, runs["other"], State.PENDING))

    rows = {row["run_id"]: row for row in await connection.fetch("SELECT * FROM notifyworker.all_runs")}
    assert {what: rows[run]["attempt"] for what, run in runs.items()} == {"reset": 3, "refused": 1, "hang": 1, "other": 1}
    assert rows[runs["hang"]]["error_code"] == "E-RUN-003"
    waits = rows[runs["other"]]["run_at"] - rows[runs["other"]]["created_at"]
    assert 3600 <= waits.total_seconds() < 3660


async def state(connection: asyncpg.Connection, run_id: object, wanted: State) -> bool:
    row = await connection.fetchrow("SELECT state, errors FROM notifyworker.all_runs WHERE run_id = $1", run_id)
    return row["state"] == wanted and (wanted is not State.PENDING or row["errors"] != "[]")


async def test_the_pages_example(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    page = types.ModuleType("retries_page")
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(example, str(PAGE), "exec"), page.__dict__)
    asked = page.ask

    async def ask(payload: dict) -> dict:
        first.append(payload)
        return await asked({**payload, "seen": len(first) > 1})

    first: list[dict] = []
    page.ask = ask
    async with page.worker:
        run_id = await connection.fetchval(
            "INSERT INTO notifyworker.runs (kind, payload) VALUES ('api.call', '{\"busy\": true}') RETURNING run_id"
        )
        await eventually(lambda: state(connection, run_id, State.COMPLETED))

    row = await connection.fetchrow("SELECT attempt, lease_token, result FROM notifyworker.all_runs WHERE run_id = $1", run_id)
    assert tuple(row) == (1, 2, '{"answer": 42}')


def test_the_tests_that_the_page_names_are_there():
    there = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", PAGE.read_text())
    assert len(named) > 5
    assert [name for name in named if f"def {name}(" not in there] == []
