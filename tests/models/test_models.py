"""
The two protocols, explored exhaustively; and that the explorer finds each fault that a guard is there against.

A model is a claim about the code. So a change of the trigger, of leader.py, claim.py, settle.py or of a statement in
sql/ is made in the model first.
"""

import functools

import explorer
import pytest
from life_model import Life
from wake_model import Wake

explore = functools.cache(explorer.explore)

GATE = {"cuts": 0, "claims_at_once": True}


@pytest.mark.parametrize(
    "model",
    [
        Wake(producers=1, deaths=1, cuts=1),
        Wake(producers=2, deaths=1, **GATE),
        Wake(producers=2, deaths=0, has_stranger=True, **GATE),
        Wake(producers=2, cuts=1, has_leader=False),
    ],
    ids=["all", "two producers", "a locked head", "the claims"],
)
def test_no_committed_row_stays_unnoticed(model):
    found = explore(model)

    assert found.fault is None, found
    assert found.states > 1000


@pytest.mark.parametrize(
    ("guard", "model"),
    [
        ("ticks while arming", {"deaths": 0, **GATE}),
        ("a last look", {"producers": 1, "deaths": 0, **GATE}),
        ("the last look takes each head for new", {"producers": 1, "deaths": 0, "has_stranger": True, **GATE}),
        ("late inserts notify", {"producers": 1, "deaths": 0, **GATE}),
        ("the late-commit look", {"producers": 1, "deaths": 0, **GATE}),
        ("a silent one that was inherited", {"producers": 1, **GATE}),
        ("m is held until the transaction ends", {"producers": 1, "deaths": 0, **GATE}),
        ("the locks go with the session", {"producers": 1, **GATE}),
        ("a look after a reconnect", {"producers": 1, "has_leader": False}),
        ("a reconnect lowers the marks", {"producers": 1, "has_leader": False}),
        ("a notification tells how far back", {"producers": 1, "has_leader": False}),
        ("the wake is cleared before the look", {"has_leader": False}),
        ("told during a claim", {"has_leader": False}),
    ],
)
def test_without_a_guard_of_the_wake_protocol_a_row_stays_unnoticed(guard, model):
    assert explore(Wake(**model)).fault is None

    assert explore(Wake(without=frozenset({guard}), **model)).fault == "nothing that happens by itself leads on from here"


NOTHING = {"losses": 0, "retries": 0, "releases": 0, "cancels": 0}


@pytest.mark.parametrize(
    "model",
    [Life(retries=0), Life(losses=0, releases=0, cancels=0), Life(max_attempts=1, releases=0, cancels=0)],
    ids=["one life", "two lives", "two lives of one attempt"],
)
def test_each_life_is_settled_once_and_no_token_is_held_twice(model):
    found = explore(model)

    assert found.fault is None, found
    assert found.states > 1000


@pytest.mark.parametrize(
    ("guard", "model", "fault"),
    [
        ("the token in the settle", {}, "written by a worker without the lease"),
        ("the token in the give-back", {}, "written by a worker without the lease"),
        ("the state in the claim", {}, "taken from a worker that holds it"),
        ("a retry keeps the token", {"retries": 1}, "two hold one token"),
        ("the last attempt fails", {}, "more attempts than max_attempts"),
        ("an attempt counts at the claim", {}, "started more often than max_attempts"),
        ("a lost answer is looked for", {"losses": 1}, "told refused, and was written"),
        ("the settle takes the row", {"losses": 1}, "settled twice"),
        ("a locked row is not lost", {}, "given up while held"),
        ("the reaper looks again under the lock", {}, "reaped from a worker that holds it"),
        ("the reaper", {}, "nothing that happens by itself leads on from here"),
    ],
)
def test_without_a_guard_of_a_runs_life_it_goes_wrong(guard, model, fault):
    assert explore(Life(**NOTHING | model)).fault is None

    assert explore(Life(without=frozenset({guard}), **NOTHING | model)).fault == fault
