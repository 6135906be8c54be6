"""The verdict of `make soak`, without its half an hour."""

import random

import pytest
from soak import Sample, grown, growth

CHANCE = random.Random(1)


def samples(*, mb_a_minute: float = 0.0, descriptors: float = 0.0, tasks: float = 0.0) -> list[Sample]:
    """Ten minutes of a worker that grows by so much a minute, with the noise of a real one."""
    return [
        Sample(
            at_s=at, rss_mb=70 + mb_a_minute * at / 60 + CHANCE.uniform(-0.5, 0.5), threads=9, settled=at * 50,
            descriptors=18 + int(descriptors * at / 60) + CHANCE.randrange(2), tasks=14 + int(tasks * at / 60) + CHANCE.randrange(4),
        )
        for at in range(20, 620, 5)
    ]  # fmt: skip


def test_what_only_wavers_has_not_grown():
    assert grown(samples()) == []


def test_an_object_that_each_run_leaves_behind_is_told_in_half_an_hour():
    half_an_hour = range(20, 1820, 5)
    flat = [Sample(at, 63.6 + 0.7 * (at > 1300), 18, 9, 15, at * 84) for at in half_an_hour]
    leaking = [Sample(at, 63.6 + 48 * at * 84 / 1e6, 18, 9, 15, at * 84) for at in half_an_hour]

    assert grown(flat) == []
    assert len(grown(leaking)) == 1


@pytest.mark.parametrize(
    ("leak", "told"), [({"mb_a_minute": 1}, "rss_mb"), ({"descriptors": 1}, "descriptors"), ({"tasks": 1}, "tasks")]
)
def test_what_grows_is_told(leak, told):
    (fault,) = grown(samples(**leak))

    assert fault.startswith(told)


def test_growth_is_that_of_the_line_through_all():
    line = [Sample(at, 2 * at, 0, 0, 0, 0) for at in range(11)]

    assert growth(line, "rss_mb") == pytest.approx(20)
