"""From which place on a lane is read, whatever is told while somebody reads."""

from datetime import UTC, datetime, timedelta

import pytest

from notifyworker.lanes import LANES_A_CLAIM, SLACK, WIDE_SLACK, Lanes, Seen

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEY = ("a", "default", 0)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def known(head: datetime = NOW) -> Lanes:
    lanes = Lanes()
    lanes.begin()
    for _ in range(2):
        lanes.looked([Seen(*KEY, head, True)], 0.0, 0.001)
    return lanes


def mark(lanes: Lanes) -> datetime:
    (lane,) = lanes.to_read()
    return lane.mark


def test_a_claim_moves_the_mark_to_what_it_found_and_never_back():
    lanes = known(ago(10))
    lanes.begin()
    lanes.found(KEY, ago(5))
    lanes.begin()
    lanes.found(KEY, ago(8))
    assert mark(lanes) == ago(5)


@pytest.mark.parametrize("under_way", ["claim", "look"])
def test_what_is_told_during_a_claim_or_a_look_is_read_by_the_next(under_way):
    lanes = known(ago(10))
    lanes.begin()
    lanes.lower(ago(30))
    if under_way == "claim":
        lanes.found(KEY, NOW)
    else:
        lanes.looked([Seen(*KEY, NOW, True)], 1.0, 1.001)
    assert mark(lanes) == ago(30)
    lanes.begin()
    lanes.found(KEY, NOW)
    assert mark(lanes) == NOW


def test_marks_go_on_though_something_is_told_during_each_claim():
    lanes = known(ago(100))
    for second in range(90, 0, -1):
        lanes.begin()
        lanes.lower(ago(second + 0.5))
        lanes.found(KEY, ago(second))
    assert mark(lanes) >= ago(2)


def test_looks_take_a_twentieth_of_the_time_and_wide_reads_too_where_looks_are_dear():
    lanes = known()
    lanes.looked([Seen(*KEY, NOW, True)], 0.0, 0.001)
    assert lanes.look_is_due_in_s(0.001) == pytest.approx(0.019)
    assert lanes.slack(1.0) is SLACK
    lanes.looked([Seen(*KEY, NOW, True)], 0.0, 0.5)  # one alone may have waited for a lock
    assert lanes.look_is_due_in_s(0.5) == pytest.approx(0.019)
    lanes.looked([Seen(*KEY, NOW, True)], 0.0, 0.5)
    lanes.looked([Seen(*KEY, NOW, True)], 0.0, 0.5)
    assert lanes.look_is_due_in_s(0.5) == pytest.approx(9.5)
    assert lanes.slack(1.0) is WIDE_SLACK
    lanes.read(WIDE_SLACK, 1.0, 1.01)
    assert lanes.slack(1.19) is SLACK
    assert lanes.slack(1.21) is WIDE_SLACK


def test_one_slow_look_puts_off_no_other():
    lanes = Lanes()
    lanes.looked([], 0.0, 0.2)  # the first, on a connection that was opened for it
    assert lanes.look_is_due_in_s(0.2) == 0
    lanes.looked([Seen(*KEY, NOW, True)], 1.0, 1.001)
    lanes.looked([Seen(*KEY, NOW, True)], 2.0, 3.0)  # waited for a lock
    assert lanes.look_is_due_in_s(3.0) == pytest.approx(0.019)
    assert lanes.slack(3.0) is SLACK


def test_higher_priority_goes_first_then_the_older_head():
    lanes = Lanes()
    lanes.looked(
        [Seen("a", "p", 0, ago(9), True), Seen("b", "p", -10, ago(1), True), Seen("c", "p", 0, ago(10), True)], 0.0, 0.001
    )
    assert [lane.kind for lane in lanes.to_read()] == ["b", "c", "a"]


def test_of_many_lanes_a_claim_reads_those_that_are_ready_and_the_idle_are_forgotten():
    lanes = Lanes()
    lanes.looked((Seen(f"k{n}", "p", 0, ago(n), n % 2 == 0) for n in range(4 * LANES_A_CLAIM)), 0.0, 0.001)
    read = lanes.to_read()
    assert len(read) == LANES_A_CLAIM
    assert all(lane.is_ready for lane in read)
    lanes.looked([], 1.0, 1.001)
    assert len(lanes) == LANES_A_CLAIM
