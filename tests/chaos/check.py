"""
One judgement over what the ledger and the database's own witnesses say, when all is healed and drained.

The exceptions that design decision 4 names are made here and nowhere else: a handler in a frozen process, or beside a
call that holds the GIL, counts as executing until that moment; a handler that ignores the cancellation of its timeout
goes on beside the next attempt.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass

from chaos import kin
from chaos.kinds import AT_ONCE, CANCELLED, DOOMED, ENDLESS_CHILD, EXACT, HOLDS_GIL, LIMITED, MIRRORED, POISON, STEPPED
from chaos.ledger import Entry
from chaos.witness import Verdict, Witness


def judge(entries: list[Entry], witness: Witness, *, gil_is_frozen: bool = False, is_mixed: bool = False) -> Verdict:
    """
    Judge a whole history.

    `gil_is_frozen`: sessions were lost while a call held the GIL, which is an exception. `is_mixed`: with which code a
    poison run failed is chance.
    """
    entries = sorted(entries, key=lambda entry: entry.at)
    verdict = Verdict()
    committed = _inserts(entries, witness, verdict)
    verdict.runs = len(committed)
    _settles(committed, witness, verdict, is_mixed=is_mixed)
    _leases(entries, witness, verdict)
    _fence(entries, witness, verdict)
    _effects(witness, verdict)
    _steps(entries, verdict)
    kin.judge(entries, witness, verdict)
    if is_mixed:
        _copies(entries, witness, verdict)
    if witness.places and not witness.live:
        verdict.wrong.append(f"{witness.places} places are taken, and nothing runs")
    spans = _spans(entries, gil_is_frozen=gil_is_frozen)
    _overlaps(spans, verdict, "run", 1)
    _overlaps(spans, verdict, "key", 1)
    if is_mixed:
        _overlaps([span for span in spans if span.entry.facts["kind"] == LIMITED], verdict, "kind", AT_ONCE)
    return verdict


def _inserts(entries: list[Entry], witness: Witness, verdict: Verdict) -> set[str]:
    """What was committed: what the producers know, and where they do not, what is there."""
    told: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.what in {"try", "ok", "unknown", "rolled back"}:
            told[entry.what].update(entry.facts["runs"])
    there = set(witness.inserted)
    started = {entry.facts["run"] for entry in entries if entry.what == "start"}
    unheard = told["try"] - told["ok"] - told["rolled back"]
    verdict.recovered = len(unheard & there)
    verdict.lost += [f"{run}: its commit was acknowledged, and it is not there" for run in sorted(told["ok"] - there)]
    verdict.wrong += [f"{run}: was rolled back, and is there" for run in sorted(told["rolled back"] & (there | started))]
    by_clock = {run for run, _ in witness.scheduled} | {child for child, _ in witness.children}
    verdict.wrong += [f"{run}: nobody inserted it" for run in sorted((there | started) - told["try"] - by_clock)]
    ticks = Counter(tick for _, tick in witness.scheduled)
    verdict.double += [f"tick {tick} of the schedule came {count} times" for tick, count in ticks.items() if count > 1]
    if ticks:
        missing = set(range(min(ticks), max(ticks))) - ticks.keys()
        verdict.lost += [f"tick {tick} of the schedule never came" for tick in sorted(missing)]
    return told["ok"] | (unheard & there) | by_clock


def _settles(committed: set[str], witness: Witness, verdict: Verdict, *, is_mixed: bool) -> None:
    settled = Counter(settle.run for settle in witness.settles)
    for run in sorted(committed - settled.keys()):
        verdict.lost.append(f"{run}: was never settled, and is {'still live' if run in witness.live else 'gone'}")
    verdict.double += [f"{run}: settled {count} times" for run, count in settled.items() if count > 1]
    verdict.wrong += [f"{run}: settled, and still live" for run in sorted(settled.keys() & witness.live)]
    for settle in witness.settles:
        expected = ("failed", POISON[settle.kind]) if settle.kind in POISON else ("completed", None)
        if settle.kind in {DOOMED, ENDLESS_CHILD}:
            expected = ("cancelled", None)
        if settle.kind == CANCELLED and settle.state == "cancelled":
            continue
        if settle.state != expected[0] or (settle.error_code != expected[1] and not is_mixed):
            verdict.wrong.append(f"{settle.run}: {settle.kind} ended as {settle.state} {settle.error_code or ''}")


def _leases(entries: list[Entry], witness: Witness, verdict: Verdict) -> None:
    grants = Counter((lease.run, lease.token) for lease in witness.leases)
    verdict.double += [f"{run}: token {token} was given {count} times" for (run, token), count in grants.items() if count > 1]
    for lease in witness.leases:
        if lease.attempt > lease.max_attempts:
            verdict.wrong.append(f"{lease.run}: attempt {lease.attempt} of {lease.max_attempts}")
    owners = {(lease.run, lease.token): lease.owner for lease in witness.leases}
    starts: Counter[tuple[str, int]] = Counter()
    for entry in entries:
        if entry.what != "start":
            continue
        starts[entry.lease] += 1
        if not _is_of(owners.get(entry.lease), entry.pid):
            verdict.wrong.append(f"{entry.facts['run']}: started by {entry.pid} under a lease of {owners.get(entry.lease)}")
    verdict.double += [f"{run}: started {n} times under token {token}" for (run, token), n in starts.items() if n > 1]


def _fence(entries: list[Entry], witness: Witness, verdict: Verdict) -> None:
    """Nothing is settled but by the holder of the last lease, with what was returned under that very lease."""
    owners = {(lease.run, lease.token): lease.owner for lease in witness.leases}
    last: dict[str, int] = defaultdict(int)
    for lease in witness.leases:
        last[lease.run] = max(last[lease.run], lease.token)
    returned = {(*entry.lease, entry.pid) for entry in entries if entry.what == "end" and entry.facts["how"] == "returned"}
    for settle in witness.settles:
        if settle.token != last[settle.run]:
            verdict.wrong.append(f"{settle.run}: settled under token {settle.token} of {last[settle.run]}")
        if settle.by is not None and owners.get((settle.run, settle.token)) != settle.by:
            verdict.wrong.append(f"{settle.run}: settled by {settle.by}, who had no lease")
        if settle.state != "completed":
            continue
        if settle.result_token != settle.token or not _is_of(settle.by, settle.result_pid):
            verdict.wrong.append(
                f"{settle.run}: has the result of token {settle.result_token} (pid {settle.result_pid}) "
                f"under token {settle.token} of {settle.by}"
            )
        elif settle.kind != EXACT and (settle.run, settle.token, settle.result_pid) not in returned:
            verdict.wrong.append(f"{settle.run}: completed, and no handler returned")


def _effects(witness: Witness, verdict: Verdict) -> None:
    """What was written in the database's own transactions is there once for each run that was completed, and for no other."""
    written: dict[str, list[int]] = defaultdict(list)
    for run, token in witness.effects:
        written[run].append(token)
    for settle in witness.settles:
        tokens = written.pop(settle.run, [])
        if settle.kind in {EXACT, STEPPED} and settle.state == "completed" and not tokens:
            verdict.lost.append(f"{settle.run}: completed in its own transaction, and what that wrote is not there")
        elif len(tokens) > 1:
            verdict.double.append(f"{settle.run}: wrote {len(tokens)} times in its own transaction")
        elif tokens and tokens[0] != settle.token and not (settle.kind == STEPPED and tokens[0] < settle.token):
            verdict.wrong.append(f"{settle.run}: wrote under token {tokens[0]}, settled under {settle.token}")
    verdict.wrong += [f"{run}: wrote in its own transaction, and is not settled" for run in sorted(written)]


def _copies(entries: list[Entry], witness: Witness, verdict: Verdict) -> None:
    """Each mirrored run that a handler has completed is copied once, and no copy ever has an effect."""
    chosen = {settle.run for settle in witness.settles if settle.kind == MIRRORED and settle.by is not None}
    verdict.lost += [f"{run}: is mirrored, and was not chosen" for run in sorted(chosen - witness.copies.keys())]
    verdict.wrong += [f"{run}: was chosen, and is not mirrored" for run in sorted(witness.copies.keys() - chosen)]
    verdict.lost += [f"{run}: its copy was never compared" for run, became in witness.copies.items() if became is None]
    for entry in entries:
        if entry.what == "copied effect" or (entry.what == "copy" and not entry.facts["is_shadow"]):
            verdict.wrong.append(f"{entry.facts['run']}: a copy has had an effect")
    if chosen and not any(entry.what == "copy" for entry in entries):
        verdict.wrong.append("no copy was ever executed")


def _steps(entries: list[Entry], verdict: Verdict) -> None:
    """What a handler was told is recorded is not called under any later lease."""
    recorded: dict[str, int] = {}
    for entry in entries:
        if entry.what == "recorded":
            recorded.setdefault(entry.facts["run"], entry.facts["token"])
    for entry in entries:
        if entry.what == "step" and entry.facts["token"] > (first := recorded.get(entry.facts["run"], entry.facts["token"])):
            verdict.double.append(
                f"{entry.facts['run']}: its step was recorded under token {first}, and called under {entry.facts['token']}"
            )


def _is_of(owner: str | None, pid: int | None) -> bool:
    """Whether this is the lease_owner of a process: host, pid and a random number."""
    return owner is not None and owner.split(":")[-2] == str(pid)


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when a handler was executed, by the clock that all processes share, and its start."""

    began: float
    ended: float
    entry: Entry


def _spans(entries: list[Entry], *, gil_is_frozen: bool) -> list[Span]:
    """All of them in the order in which they began."""
    ends: dict[tuple[str, int, int], float] = {}
    parked: dict[tuple[str, int, int], float] = {}
    ceased: dict[int, list[float]] = defaultdict(list)
    for entry in entries:
        if entry.what == "end":
            ends.setdefault((*entry.lease, entry.pid), entry.at)
        elif entry.what == "parks":
            parked[*entry.lease, entry.pid] = entry.at
        elif entry.what == "goes on":
            parked.pop((*entry.lease, entry.pid), None)
        elif entry.what in {"exit", "freeze"} or (gil_is_frozen and entry.what == "start" and entry.facts["kind"] in HOLDS_GIL):
            ceased[entry.pid].append(entry.at)
    ends |= parked
    spans: list[Span] = []
    for entry in entries:
        if entry.what == "start" and entry.facts["kind"] != "stubborn":
            end = min([ends.get((*entry.lease, entry.pid), entries[-1].at), *(at for at in ceased[entry.pid] if at >= entry.at)])
            spans.append(Span(entry.at, end, entry))
    return spans


def _overlaps(spans: list[Span], verdict: Verdict, what: str, most: int) -> None:
    """No more than so many handlers of one run, one key or one kind at a time: also outside of the database."""
    going: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        name = span.entry.facts.get(what)
        if name is None:
            continue
        before = [other for other in going[name] if other.ended > span.began]
        if len(before) >= most:
            took_s = min(span.ended, *(other.ended for other in before)) - span.began
            verdict.double.append(
                f"{what} {name}: {span.entry.facts['kind']} was started by {span.entry.pid} while {len(before)} executed it, "
                f"{before[-1].entry.pid} among them, for {took_s:.3f} s"
            )
        going[name] = [*before, span]
