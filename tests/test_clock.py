"""The clock of a worker's host is wrong, or jumps: nothing follows from it, since times are the database's."""

import json
from pathlib import Path

import pytest
from servers import eventually
from test_faults import Process, all_run, ledger, spawn, starts  # noqa: F401 - fixtures
from test_life import insert, settled

# ruff: noqa: F811 - fixtures of test_faults are asked for by their names

LIBRARIES = [
    path for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib") for path in Path(folder).glob("**/faketime/libfaketime.so.1")
]
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="libfaketime is not installed")


@pytest.fixture
def with_clock(spawn, monkeypatch, tmp_path):
    """Start a worker whose clock is what a file says; return it and the file."""
    made = []

    def start(offset: str, **settings) -> tuple[Process, Path]:
        clock = tmp_path / f"clock{len(made)}"
        clock.write_text(offset)
        with monkeypatch.context() as patched:
            patched.setenv("LD_PRELOAD", str(LIBRARIES[0]))
            patched.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
            patched.setenv("FAKETIME_NO_CACHE", "1")
            patched.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")  # as on a host whose clock is set
            made.append(spawn(**settings))
        return made[-1], clock

    return start


def logged_at(process: Process) -> str:
    return json.loads(process.log_file.read_text().splitlines()[-1])["timestamp"]


@pytest.mark.slow
async def test_clocks_that_are_an_hour_apart_and_jump_change_nothing(with_clock, connection, ledger, tmp_path):
    await connection.execute("UPDATE notifyworker.settings SET value = '0.3' WHERE name = 'reaper_interval_s'")
    short = {"lease_s": 3, "heartbeat_interval_s": 0.3, "presumed_dead_s": 7, "presence_ping_s": 0.5}
    fleet = [with_clock("+1h", **short), with_clock("-1h", **short)]
    for process, _ in fleet:
        await process.started()
    hour = await connection.fetchval("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24')")
    assert not any(logged_at(process).startswith(hour) for process, _ in fleet)  # their clocks are wrong indeed

    until = tmp_path / "until"
    ids = [await insert(connection, "hold", json.dumps({"until": str(until)})) for _ in range(8)]
    await eventually(lambda: all_run(connection, ids))
    for n in range(3):  # held for more than a lease, while clocks jump to and fro
        for sign, (_, clock) in zip("+-" if n % 2 else "-+", fleet, strict=True):
            clock.write_text(f"{sign}1h")
        due_at = await connection.fetchval("SELECT now() + interval '1.3 s'")
        run = await settled(connection, await insert(connection, "noop", run_at=due_at))
        assert 0 <= (run["started_at"] - due_at).total_seconds() < 1
        assert (await settled(connection, await insert(connection, "noop")))["attempt"] == 1
    until.touch()
    for run_id in ids:
        run = await settled(connection, run_id)
        assert (run["state"], run["attempt"]) == ("completed", 1)

    assert len(starts(ledger)) == 8 + 6
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.reaps") == 0
    for process, _ in fleet:
        assert not process.exited()
        assert not (process.events("lease_lost") + process.events("event_loop_stalled") + process.events("leases_lapsed"))
