"""Whether two outcomes are the same: as a user would say, with what does not count left out."""

import math

import pytest

from notifyworker.compare import Rules, Side, compare, path_of, tolerance_of
from notifyworker.shadow_report import wilson


def rules(ignored=(), ordered=True, **tolerances):
    return Rules(
        tuple(map(path_of, ignored)), {path_of(p.replace("__", ".")): tolerance_of(v) for p, v in tolerances.items()}, ordered
    )


def done(result=None, effects=()):
    return Side("completed", result, list(effects))


def failed(message, code="E-RUN-001"):
    return Side("failed", None, [], code, message)


def mail(to, **kwargs):
    return {"name": "mail", "args": [to], "kwargs": kwargs}


SAME = [
    (done({"a": 1, "b": [1, {"c": None}]}), done({"b": [1, {"c": None}], "a": 1}), rules()),
    (done(1), done(1.0), rules()),
    (done({"price": 100.0}), done({"price": 100.9}), rules(result__price="1%")),
    (done({"items": [{"p": 1}, {"p": 2}]}), done({"items": [{"p": 1.01}, {"p": 2.01}]}), rules(**{"result__items__*__p": 0.02})),
    (done({"at": 1, "x": 2}), done({"at": 9, "x": 2}), rules(["result.at"])),
    (done({"items": [{"at": 1}]}), done({"items": [{"at": 2}]}), rules(["result.items.*.at"])),
    (done(1, [mail("a"), mail("b")]), done(1, [mail("b"), mail("a")]), rules(ordered=False)),
    (done(1, [mail("a", id=1)]), done(1, [mail("a", id=2)]), rules(["effects.*.kwargs.id"])),
    (failed("ValueError: no\nmore"), failed("ValueError: no\nother"), rules()),
]
DIFFERENT = [
    (done({"a": 1}), done({"a": True}), rules(), ("result",), "result.a: 1 -> true"),
    (done({"a": 1}), done({}), rules(), ("result",), "result.a: 1 -> (nothing)"),
    (done([1]), done([1, 2]), rules(), ("result",), "result.1: (nothing) -> 2"),
    (done({"price": 100.0}), done({"price": 101.1}), rules(result__price="1%"), ("result",), "result.price: 100.0 -> 101.1"),
    (done({"at": 1, "x": 2}), done({"at": 9, "x": 3}), rules(["result.at"]), ("result",), "result.x: 2 -> 3"),
    (done(1, [mail("a"), mail("b")]), done(1, [mail("b"), mail("a")]), rules(), ("effects",), 'effects.0.args.0: "a" -> "b"'),
    (done(1, [mail("a")]), done(1, []), rules(), ("effects",), "effects.0"),
    (done(1), failed("KeyError: 'x'"), rules(), ("outcome",), "outcome: completed -> failed (E-RUN-001: KeyError: 'x')"),
    (failed("ValueError: a"), failed("ValueError: b"), rules(), ("failure",), "ValueError: a"),
    (failed("x"), failed("x", "E-RUN-003"), rules(), ("failure",), "E-RUN-003"),
    (done("a"), done("b", [mail("x")]), rules(), ("result", "effects"), 'result: "a" -> "b"'),
]  # fmt: skip


@pytest.mark.parametrize(("live", "shadow", "by"), SAME)
def test_the_same(live, shadow, by):
    verdict = compare(live, shadow, by)
    assert (verdict.is_same, verdict.diff) == (True, None)


@pytest.mark.parametrize(("live", "shadow", "by", "ways", "told"), DIFFERENT)
def test_different(live, shadow, by, ways, told):
    verdict = compare(live, shadow, by)
    assert (verdict.is_same, verdict.ways) == (False, ways)
    assert told in verdict.diff


def test_effects_that_were_not_recorded_are_not_compared_and_it_is_said():
    verdict = compare(Side("completed", 1, None), done(1, [mail("a")]), rules())
    assert (verdict.is_same, verdict.ways) == (True, ("effects_unrecorded",))


def test_a_large_difference_is_cut():
    verdict = compare(done(list(range(1000))), done(list(range(1, 1001))), rules())
    assert "and 950 more" in verdict.diff
    assert len(verdict.diff.encode()) <= 8 * 1024


@pytest.mark.parametrize("path", ["", "price", "result..x", "result."])
def test_a_path_that_can_not_be_is_refused(path):
    with pytest.raises(ValueError, match="a path begins with result or effects"):
        path_of(path)


@pytest.mark.parametrize("value", [-1, "x", "-1%", None, True, float("inf"), "nan"])
def test_a_tolerance_that_can_not_be_is_refused(value):
    with pytest.raises(ValueError, match="a tolerance is a number of at least 0"):
        tolerance_of(value)


@pytest.mark.parametrize(("same", "of"), [(0, 10), (1, 10), (5, 10), (10, 10), (81, 263), (970, 1000), (9_700, 10_000)])
def test_wilsons_interval_is_where_a_rate_is_just_as_far_as_chance_allows(same, of):
    rate = same / of
    for bound in wilson(same, of):
        assert abs(rate - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / of), abs=1e-6)
    low, high = wilson(same, of)
    assert low - 1e-12 <= rate <= high + 1e-12


def test_wilsons_interval_of_newcombes_example():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # R. G. Newcombe, Stat. Med. 17, 1998
    assert wilson(0, 0) == (0.0, 1.0)
