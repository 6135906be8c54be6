"""What the demo inserts, and what has to come of it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from notifyworker.cli.demo_handlers import summarised

Group = Literal["immediate", "scheduled", "flaky", "declined", "misfit", "shadow", "killed"]

SALES = [(product, float(10 + (7 * n) % 90)) for n in range(2000) for product in ("lamp", "chair", "desk")]
OUTAGES = 2
_IMMEDIATE = 200
_SCHEDULED = 5


@dataclass(frozen=True, slots=True)
class Planned:
    """One run that is to be inserted. `in_s`: so many seconds ahead."""

    group: Group
    kind: str
    payload: dict[str, Any]
    in_s: float | None = None
    is_shadow: bool = False


def killed(source: Path) -> Planned:
    """The run whose worker is killed: it waits for a file that is written only after that."""
    return Planned("killed", "demo.report", {"source": str(source)})


def others() -> list[Planned]:
    """All the rest: first those that take their time."""
    special = [
        *(Planned("scheduled", "demo.email", _email(n, "reminder"), in_s=1.5 + n / 10) for n in range(_SCHEDULED)),
        Planned("flaky", "demo.charge", {"order": "A-1001", "cents": 4900, "outages": OUTAGES}),
        Planned("declined", "demo.charge", {"order": "A-1002", "cents": 990000, "declined": True}),
        Planned("misfit", "demo.email", {"to": 17, "subject": "not an address"}),
        Planned("shadow", "demo.email", _email(0, "never sent"), is_shadow=True),
    ]
    return special + [Planned("immediate", *_immediate(n)) for n in range(_IMMEDIATE)]


def _immediate(number: int) -> tuple[str, dict[str, Any]]:
    if number % 5 == 3:  # noqa: PLR2004 - one in five
        chance = random.Random(number)  # noqa: S311 - sample data
        return "demo.report", {"rows": [[chance.choice(("lamp", "chair")), chance.randint(5, 500)] for _ in range(50)]}
    if number % 5 == 4:  # noqa: PLR2004 - one in five
        return "demo.charge", {"order": f"B-{number}", "cents": 100 * number}
    return "demo.email", _email(number, "welcome")


def _email(number: int, subject: str) -> dict[str, Any]:
    return {"to": f"user{number}@example.org", "subject": subject, "body": f"Hello user {number}."}


def faults(plan: Mapping[Any, Planned], runs: Sequence[Mapping[str, Any]], outbox: Path) -> list[str]:
    """Compare what came of the runs with what should have; each difference is one line."""
    by_id = {run["run_id"]: run for run in runs}
    found = []
    if len(runs) != len(plan) or by_id.keys() != plan.keys():
        found.append(f"{len(plan)} runs were inserted, and {len(runs)} are there")
    for run_id, planned in plan.items():
        if (run := by_id.get(run_id)) and (fault := _fault(planned, run)):
            found.append(f"{planned.group} run {run_id} ({planned.kind}): {fault}")
    sent = {path.name for path in outbox.glob("*.eml")}
    due = {f"{i}.eml" for i, p in plan.items() if p.kind == "demo.email" and p.group in {"immediate", "scheduled"}}
    if sent != due:
        found.append(f"the outbox has {len(sent)} messages, {len(sent - due)} too many and {len(due - sent)} too few")
    return found


def _fault(planned: Planned, run: Mapping[str, Any]) -> str | None:
    state, attempt, code = {
        "declined": ("failed", 1, "E-RUN-006"),
        "misfit": ("failed", 1, "E-RUN-004"),
        "flaky": ("completed", OUTAGES + 1, None),
        "killed": ("completed", 2, None),
    }.get(planned.group, ("completed", 1, None))
    if (run["state"], run["attempt"], run["error_code"]) != (state, attempt, code):
        return (
            f"{run['state']} in attempt {run['attempt']} with {run['error_code'] or 'no error'}, "
            f"not {state} in attempt {attempt} with {code or 'no error'}"
        )
    codes = [error["code"] for error in run["errors"]]
    expected = {"flaky": ["E-RUN-001"] * OUTAGES, "killed": ["E-RUN-002"]}.get(planned.group, [code] if code else [])
    if codes != expected:
        return f"its errors are {codes}, not {expected}"
    return _result_fault(planned, run)


def _result_fault(planned: Planned, run: Mapping[str, Any]) -> str | None:
    result = run["result"]
    if planned.group == "shadow" and [effect["name"] for effect in run["effects"] or []] != ["deliver"]:
        return f"its effects are {run['effects']}, not one delivery"
    if planned.group == "killed" and result != {"rows": len(SALES), "csv": summarised(SALES)}:
        return "its report is not that of the file"
    if planned.group == "misfit" and "to" not in run["errors"][0]["message"]:
        return f"its error does not name the field: {run['errors'][0]['message']}"
    if planned.kind == "demo.charge" and run["state"] == "completed" and result["charged_cents"] != planned.payload["cents"]:
        return f"its result is {result}"
    return None
