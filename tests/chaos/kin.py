"""
The part of the judgement that is about families: runs that runs have started, and events that runs have waited for.

A parent's result names each child that its handler was given the id of, and what it was told of it. That is compared with what
the database's triggers have seen inserted and settled, and with the ledger.
"""

from collections import Counter, defaultdict

from chaos.kinds import CALLBACK, FAMILY, OPENED, PAID
from chaos.ledger import Entry
from chaos.witness import Settle, Verdict, Witness

_MAX_LINES = 200


def judge(entries: list[Entry], witness: Witness, verdict: Verdict) -> None:
    """Judge it."""
    born = Counter(child for child, _ in witness.children)
    verdict.double += [f"{child}: was started {count} times" for child, count in born.items() if count > 1]
    children: dict[str, set[str]] = defaultdict(set)
    for child, parent in witness.children:
        children[parent].add(child)
    settles = {settle.run: settle for settle in witness.settles}
    for parent in witness.settles:
        if parent.kind == FAMILY and parent.state == "completed":
            _parent(parent, children[parent.run], settles, verdict)
    _callbacks(entries, witness, settles, verdict)
    _events(entries, settles, verdict)
    _lines(witness, settles, verdict)


def _parent(parent: Settle, children: set[str], settles: dict[str, Settle], verdict: Verdict) -> None:
    told = parent.family
    if told is None:
        verdict.wrong.append(f"{parent.run}: says nothing of its children")
        return
    named = {child for name in ("alone", "group", "then", "late") for child in told[name]}
    verdict.lost += [f"{child}: {parent.run} has started it, and it is not there" for child in sorted(named - children)]
    verdict.double += [f"{child}: is there, and {parent.run} knows nothing of it" for child in sorted(children - named)]
    if [child for child, _, _ in told["seen"]] != told["alone"]:
        verdict.wrong.append(f"{parent.run}: joined {told['alone']} and was told of {told['seen']}")
    for child, state, token in told["seen"]:
        became = settles.get(child)
        if became is None or (became.state, became.result_token) != (state, token):
            verdict.wrong.append(f"{parent.run}: was told that {child} is {state} under {token}, and it is {became}")
    if parent.progress_token != parent.token:
        verdict.lost.append(f"{parent.run}: its last progress is of token {parent.progress_token}, its settle of {parent.token}")


def _callbacks(entries: list[Entry], witness: Witness, settles: dict[str, Settle], verdict: Verdict) -> None:
    """A group's last run is executed after each of the group has ended."""
    begun: dict[str, float] = {}
    ended: dict[tuple[str, int], float] = {}
    for entry in entries:
        if entry.what == "start" and entry.facts["kind"] == CALLBACK:
            begun.setdefault(entry.facts["run"], entry.at)
        elif entry.what == "end":
            ended[entry.lease] = entry.at
    for parent in witness.settles:
        if parent.kind != FAMILY or parent.family is None:
            continue
        for last in parent.family["then"]:
            for child in parent.family["group"]:
                settle = settles.get(child)
                if settle is not None and ended.get((child, settle.token), 0.0) > begun.get(last, float("inf")):
                    verdict.wrong.append(f"{last}: was begun before {child}, of its group, had ended")


def _events(entries: list[Entry], settles: dict[str, Settle], verdict: Verdict) -> None:
    """The first of an address counts, and everybody who waits for it is told the same, each time."""
    tried: dict[tuple[str, str], set[str]] = defaultdict(set)
    first: dict[tuple[str, str], list[str]] = defaultdict(list)
    took: dict[tuple[str, str], set[str]] = defaultdict(set)
    by_run: dict[str, dict[str, str]] = defaultdict(dict)
    for entry in entries:
        if entry.what == "emit":
            tried[entry.facts["name"], entry.facts["key"]].add(entry.facts["value"])
        elif entry.what == "emitted" and entry.facts["first"]:
            first[entry.facts["name"], entry.facts["key"]].append(entry.facts["value"])
        elif entry.what == "took":
            run, name, key, value = (entry.facts[fact] for fact in ("run", "name", "key", "value"))
            took[name, key or run].add(value)
            by_run[run][name] = value
    for address, values in first.items():
        if len(values) > 1:
            verdict.double.append(f"event {address}: {len(values)} were the first: {values}")
    for address, values_taken in took.items():
        if len(values_taken) > 1:
            verdict.double.append(f"event {address}: was taken as {sorted(values_taken)}")
        if strange := values_taken - tried[address]:
            verdict.wrong.append(f"event {address}: nobody has emitted {sorted(strange)}")
        if first[address] and (other := values_taken - set(first[address])):
            verdict.lost.append(f"event {address}: {first[address]} was the first, and {sorted(other)} was taken")
    for run, settle in settles.items():
        if settle.family is not None and settle.family["events"]:
            known = [by_run[run].get(PAID), by_run[run].get(OPENED)]
            if settle.family["events"] != known:
                verdict.wrong.append(f"{run}: was settled with the events {settle.family['events']}, and took {known}")


def _lines(witness: Witness, settles: dict[str, Settle], verdict: Verdict) -> None:
    """Lines that are kept are those of the lease under which they were written, and not too many."""
    kept: Counter[str] = Counter()
    for run, token, tokens in witness.logs:
        kept[run] += len(tokens)
        if set(tokens) - {token}:
            verdict.wrong.append(f"{run}: its log of token {token} has lines of {sorted(set(tokens))}")
        if run in settles and token > settles[run].token:
            verdict.wrong.append(f"{run}: has a log of token {token}, and was settled under {settles[run].token}")
    verdict.wrong += [f"{run}: {count} lines of its log are kept" for run, count in kept.items() if count > _MAX_LINES]
    if any(settle.kind == FAMILY for settle in settles.values()) and not kept:
        verdict.wrong.append("no line of any log was kept")
