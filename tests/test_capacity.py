"""The capacity model: what it says of loads that anybody can reckon, and how the command tells it."""

import json

import pytest
from test_cli import call, refused

from notifyworker.capacity import Load, forecast


def load(**differences: float) -> Load:
    given = {
        "runs_per_s": 10, "peak_per_s": 30, "duration_s": 1, "payload_bytes": 1000, "result_bytes": 0,
        "retention_days": 30, "concurrency": 10,
    }  # fmt: skip
    return Load(**{**given, **differences})  # type: ignore[arg-type]


def test_slots_are_what_little_says_and_never_all_of_them():
    assert forecast(load()).workers == 5  # 30 at once, of 43 slots
    assert forecast(load(concurrency=50)).workers == 1
    assert forecast(load(duration_s=0)).workers == 1
    assert forecast(load(duration_s=0, peak_per_s=50_000)).workers == 4  # by the processor
    assert forecast(load()).connections == 5 * 8 + 1


@pytest.mark.parametrize(
    ("larger", "what"),
    [
        ({"runs_per_s": 20}, "wal_bytes_per_s"), ({"payload_bytes": 2100}, "history_bytes"),
        ({"result_bytes": 1000}, "history_bytes"), ({"retention_days": 60}, "history_bytes"),
        ({"payload_bytes": 2000}, "held_bytes_per_hour"),
    ],
)  # fmt: skip
def test_more_of_it_needs_more(larger, what):
    assert getattr(forecast(load(**larger)), what) > 1.2 * getattr(forecast(load()), what)


async def test_the_command_tells_it():
    told = (await call("capacity", "--runs-per-s", "10", "--duration-s", "1", "--payload-bytes", "1000")).out
    assert told.startswith("workers      5, of 10 slots each, for 30 runs/s at the peak\nconnections  41,")
    found = json.loads((await call("capacity", "--runs-per-s", "10", "--duration-s", "1", "--json")).out)
    assert found["needs"]["workers"] == 5
    assert "more than 200 connections" in (await call("capacity", "--runs-per-s", "100", "--duration-s", "1")).out
    assert "--runs-per-s" in await refused(2, "capacity", "--runs-per-s", "-1")
