"""The acts of a play: each fault by itself, in an arena of its own, with its own measure of recovery."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from chaos.arena import Arena
from chaos.forms import Form

#: Hurts the arena, counts it in `arena.injected`, and returns how many seconds the recovery took.
Script = Callable[[Arena], Awaitable[float]]


class Skip(Exception):
    """This can't be done here. The text says why."""


@dataclass(frozen=True, slots=True)
class Act:
    """One act. `bound_s` is what is promised of the recovery in this form."""

    name: str
    script: Script
    bound_s: Callable[[Form], float]
    needs_server: bool = False
    #: Whether a busy machine may lengthen it: a form's slack is added then.
    has_slack: bool = True
    #: The full form's alone, unless it is asked for by its name.
    is_long: bool = False


ACTS: list[Act] = []


def act(
    name: str,
    bound_s: float | Callable[[Form], float],
    *,
    needs_server: bool = False,
    has_slack: bool = True,
    is_long: bool = False,
) -> Callable[[Script], Script]:
    """Register an act. `needs_server`: it hurts the server itself, so it gets its own."""

    def register(script: Script) -> Script:
        bound = bound_s if callable(bound_s) else lambda _form: bound_s
        ACTS.append(Act(name, script, bound, needs_server, has_slack, is_long))
        return script

    return register


def presumed_dead(form: Form) -> float:
    """Until a dead worker's runs go on elsewhere: 15 s at default settings."""
    return form.presumed_dead_s + 5


def lapsed(form: Form) -> float:
    """Until the runs of a worker whose session lives on are taken by the end of their lease, the leader being frozen."""
    return form.lease_s + 3 * form.reaper_interval_s + 5
