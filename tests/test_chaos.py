"""The chaos harness: its short form passes, and its judge and table see what they are there for."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from chaos.check import judge
from chaos.kinds import AT_ONCE, LIMITED
from chaos.ledger import Entry, Ledger, Reader
from chaos.mutants import MUTANTS
from chaos.table import Row
from chaos.witness import Lease, Settle, Verdict, Witness
from copies import TOP

TESTS = Path(__file__).parent


@pytest.mark.timeout(690)
def test_the_short_form_loses_nothing_and_does_nothing_twice(tmp_path):
    output = tmp_path / "output"
    with output.open("w") as file:  # and not a pipe, which a process left behind would keep open
        harness = subprocess.Popen(
            [sys.executable, "-m", "chaos", "--short"], cwd=TESTS, env={**os.environ, "PYTHONPATH": str(TESTS)},
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        code = harness.wait(650)
    finally:
        harness.terminate()  # it takes its servers down with it
        with contextlib.suppress(subprocess.TimeoutExpired):
            harness.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(harness.pid, signal.SIGKILL)

    assert code == 0, output.read_text()


# One run with everything in order: inserted, started by process 7, taken over by process 8 when 7 was gone, and settled.
ENTRIES = [
    Entry("try", 1.0, 1, {"runs": ["r"]}),
    Entry("ok", 1.1, 1, {"runs": ["r"]}),
    Entry("start", 2.0, 7, {"run": "r", "token": 1, "kind": "good", "attempt": 1}),
    Entry("exit", 3.0, 7, {}),
    Entry("start", 4.0, 8, {"run": "r", "token": 2, "kind": "good", "attempt": 2}),
    Entry("end", 5.0, 8, {"run": "r", "token": 2, "how": "returned"}),
]
LEASES = [Lease("r", 1, "host:7:aa", 1, 3), Lease("r", 2, "host:8:bb", 2, 3)]
SETTLES = [Settle("r", 2, "host:8:bb", "good", "completed", None, 2, 2, 8)]
GOOD = Witness(["r"], LEASES, SETTLES, [("r", 2)], set())


def judged(entries: list[Entry] = ENTRIES, **differences: object) -> Verdict:
    return judge(entries, replace(GOOD, **differences))


def changed(what: str, pid: int, change: Callable[[Entry], Entry | None]) -> list[Entry]:
    new = [change(entry) if (entry.what, entry.pid) == (what, pid) else entry for entry in ENTRIES]
    return [entry for entry in new if entry is not None]


def test_a_history_in_order_is_no_fault():
    assert judged() == Verdict(runs=1)


LOST = {
    "acknowledged and not there": judged(inserted=[]),
    "never settled": judged(settles=[]),
    "never settled and live": judged(settles=[], live={"r"}),
    "an effect beside its settle is missing": judged(settles=[replace(SETTLES[0], kind="exact")], effects=[]),
    "a step's effect is missing": judged(settles=[replace(SETTLES[0], kind="stepped")], effects=[]),
    "unheard of, there and never settled": judged(changed("ok", 1, lambda _e: None), settles=[]),
    "a tick of a schedule is missing": judged(scheduled=[("r", 10), ("s", 12)]),
    "what a schedule inserted was never settled": judged(scheduled=[("r", 10), ("s", 11)]),
}
DOUBLE = {
    "an effect beside its settle twice": judged(effects=[("r", 2), ("r", 2)]),
    "a recorded step is called again": judged(
        [*ENTRIES, Entry("recorded", 2.5, 7, {"run": "r", "token": 1}), Entry("step", 4.5, 8, {"run": "r", "token": 2})]
    ),
    "a step's effect twice": judged(settles=[replace(SETTLES[0], kind="stepped")], effects=[("r", 1), ("r", 2)]),
    "settled twice": judged(settles=[*SETTLES, *SETTLES]),
    "one token given twice": judged(leases=[*LEASES, replace(LEASES[1], owner="host:9:cc")]),
    "started twice under a lease": judged([*ENTRIES, replace(ENTRIES[4], at=4.5)]),
    "two at a time": judged(changed("exit", 7, lambda e: replace(e, at=4.5))),
    "two of one key at a time": judged(
        [
            *ENTRIES,
            Entry("start", 4.2, 7, {"run": "s", "token": 1, "kind": "good", "attempt": 1, "key": "x"}),
            Entry("start", 4.3, 8, {"run": "t", "token": 1, "kind": "good", "attempt": 1, "key": "x"}),
        ]
    ),
    "a tick of a schedule came twice": judged(scheduled=[("r", 10), ("s", 10)]),
    "two at a time, and one never ended": judged(changed("exit", 7, lambda _e: None)),
}
WRONG = {
    "an effect under another lease than its settle": judged(effects=[("r", 1)]),
    "an effect of a run that was not settled": judged(effects=[("r", 2), ("s", 1)]),
    "rolled back and there": judged([*ENTRIES, Entry("rolled back", 1.2, 1, {"runs": ["r"]})]),
    "nobody inserted it": judged(changed("try", 1, lambda _e: None)),
    "places that nobody gave back": judged(places=1),
    "settled and live": judged(live={"r"}),
    "settled under an old token": judged(settles=[replace(SETTLES[0], token=1, by="host:7:aa")]),
    "settled by one without the lease": judged(settles=[replace(SETTLES[0], by="host:7:aa")]),
    "another attempt's result": judged(settles=[replace(SETTLES[0], result_token=1)]),
    "another process's result": judged(settles=[replace(SETTLES[0], result_pid=7)]),
    "completed though nothing returned": judged(changed("end", 8, lambda _e: None)),
    "an innocent failed": judged(settles=[replace(SETTLES[0], state="failed", error_code="E-RUN-001")]),
    "one attempt too many": judged(leases=[LEASES[0], replace(LEASES[1], attempt=4)]),
    "started without a lease": judged(leases=LEASES[1:]),
    "started under another's lease": judged(leases=[replace(LEASES[0], owner="host:9:cc"), LEASES[1]]),
}


# A parent that has started one child and a group of one, waited for the one and for an event, and was settled.
KIN = {"alone": ["c"], "group": ["g"], "then": ["t"], "late": ["l"], "seen": [["c", "completed", 1]], "events": ["e", "o"]}
CHILDREN = [(child, "r") for child in "cgtl"]
FAMILY_SETTLES = [
    replace(SETTLES[0], kind="family", family=KIN, progress_token=2),
    *(Settle(child, 1, "host:8:bb", "callback" if child == "t" else "child", "completed", None, 1, 1, 8) for child in "cgtl"),
]
TAKEN = {"run": "r", "token": 2, "name": "paid", "key": None, "value": "e"}
FAMILY_ENTRIES = [
    *(Entry("start", 4.1, 8, {"run": child, "token": 1, "kind": "child", "attempt": 1}) for child in "cgl"),
    *(Entry("end", 4.2, 8, {"run": child, "token": 1, "how": "returned"}) for child in "cgl"),
    Entry("start", 4.3, 8, {"run": "t", "token": 1, "kind": "callback", "attempt": 1}),
    Entry("end", 4.4, 8, {"run": "t", "token": 1, "how": "returned"}),
    Entry("emit", 4.5, 1, {"name": "paid", "key": "r", "value": "e"}),
    Entry("emitted", 4.5, 1, {"name": "paid", "key": "r", "value": "e", "first": True}),
    Entry("emit", 4.5, 1, {"name": "opened", "key": "k", "value": "o"}),
    Entry("took", 4.6, 8, TAKEN),
    Entry("took", 4.6, 8, TAKEN | {"name": "opened", "key": "k", "value": "o"}),
]
FAMILY = Witness(
    [*"rcgtl"], [*LEASES, *(Lease(child, 1, "host:8:bb", 1, 3) for child in "cgtl")], FAMILY_SETTLES, [], set(),
    children=CHILDREN, logs=[("r", 2, [2, 2])],
)  # fmt: skip


def kin(*more: Entry, told: dict[str, object] | None = None, **differences: object) -> Verdict:
    settles = [replace(FAMILY_SETTLES[0], family=KIN | (told or {})), *FAMILY_SETTLES[1:]]
    return judge([*ENTRIES, *FAMILY_ENTRIES, *more], replace(FAMILY, **{"settles": settles, **differences}))


def test_a_family_in_order_is_no_fault():
    assert kin() == Verdict(runs=5)


EMITTED = Entry("emitted", 4.7, 1, {"name": "paid", "key": "r", "value": "f", "first": True})
LOST |= {
    "a child that was started is not there": kin(children=CHILDREN[1:], inserted=[*"rgtl"]),
    "a child was never settled": kin(settles=[s for s in FAMILY_SETTLES if s.run != "l"]),
    "the last run of a group is not there": kin(children=[c for c in CHILDREN if c[0] != "t"]),
    "the first event was not the one that was taken": judge(
        [*ENTRIES, *(e for e in FAMILY_ENTRIES if e.what != "emitted"), EMITTED], FAMILY
    ),
    "the last progress was lost": kin(settles=[replace(FAMILY_SETTLES[0], progress_token=1), *FAMILY_SETTLES[1:]]),
}
DOUBLE |= {
    "a child was started twice": kin(children=[*CHILDREN, ("c", "r")]),
    "a child of which its parent knows nothing": kin(children=[*CHILDREN, ("x", "r")]),
    "a child was settled twice": kin(settles=[*FAMILY_SETTLES, FAMILY_SETTLES[1]]),
    "two events were the first": kin(EMITTED),
    "an event was taken as two": kin(Entry("took", 4.8, 8, TAKEN | {"value": "f"})),
}
WRONG |= {
    "a parent went on before its child was settled": kin(told={"seen": [["c", "pending", None]]}),
    "a parent was told of another child": kin(told={"seen": [["g", "completed", 1]]}),
    "a last run came before its group had ended": kin(Entry("end", 4.35, 8, {"run": "g", "token": 1, "how": "returned"})),
    "an event that nobody emitted": kin(Entry("took", 4.8, 8, TAKEN | {"run": "q", "value": "z"})),
    "a result with another event": kin(told={"events": ["f", "o"]}),
    "a line under another lease": kin(logs=[("r", 2, [1])]),
    "too many lines": kin(logs=[("r", 2, [2] * 201)]),
    "no line at all": kin(logs=[]),
}


@pytest.mark.parametrize("case", LOST)
def test_what_is_lost_is_seen(case):
    assert LOST[case].lost


@pytest.mark.parametrize("case", DOUBLE)
def test_what_is_done_twice_is_seen(case):
    assert DOUBLE[case].double


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_seen(case):
    assert WRONG[case].wrong


def test_more_of_a_kind_than_its_limit_says_are_seen():
    at_once = [
        Entry("start", 4.0 + n / 100, 7, {"run": f"s{n}", "token": 1, "kind": LIMITED, "attempt": 1}) for n in range(AT_ONCE + 1)
    ]
    for started, is_seen in ((at_once, True), (at_once[1:], False)):
        told = judge([*ENTRIES, *started], GOOD, is_mixed=True).double
        assert any(f"kind {LIMITED}" in text for text in told) is is_seen


def test_a_commit_without_an_answer_is_looked_for_afterwards():
    unheard = changed("ok", 1, lambda e: replace(e, what="unknown"))
    assert (judged(unheard).runs, judged(unheard).recovered) == (1, 1)
    nothing_there = judge([e for e in unheard if e.pid == 1], Witness([], [], [], [], set()))
    assert (nothing_there.runs, nothing_there.lost) == (0, [])


def test_a_frozen_process_counts_as_executing_until_it_was_frozen():
    assert not judged(changed("exit", 7, lambda e: replace(e, what="freeze"))).double


@pytest.mark.parametrize(
    "row",
    [
        Row("a", injected=0, runs=1), Row("a", injected=1, runs=1, lost=1), Row("a", injected=1, runs=1, double=1),
        Row("a", injected=1, runs=1, wrong=["x"]), Row("a", injected=1, runs=1, recovery_s=2.0, bound_s=1),
    ],
)  # fmt: skip
def test_a_row_is_red_for_each_of_its_reasons(row):
    assert row.is_red
    assert not Row("a", injected=1, runs=1, recovery_s=0.5, bound_s=1).is_red


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path):
    ledger, reader = Ledger(tmp_path, "me"), Reader(tmp_path)
    ledger.note("try", runs=["r"])
    with (tmp_path / "me.jsonl").open("ab") as file:
        file.write(b'{"what": "ok", "at"')
        file.flush()
        assert [entry.what for entry in reader.look()] == ["try"]
        file.write(b': 2.0, "pid": 1, "runs": ["r"]}\n')
    assert [entry.what for entry in reader.look()] == ["try", "ok"]
    ledger.close()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.defence)
def test_each_defence_that_mutants_lack_is_there(mutant):
    assert (TOP / "notifyworker" / mutant.file).read_text().count(mutant.text) == 1
