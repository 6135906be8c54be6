"""
Who is next among projects that all have something ready. Pure: no clock, no database.

Start-time fair queueing (Goyal, Vin and Cheng, "Start-time Fair Queuing", SIGCOMM 1996): each project has a virtual time
that moves on with every run of it that is claimed, by less the greater its weight, and the one that is farthest behind
is served first. Who had nothing to do for a while comes back at the time of the one farthest behind: nobody saves up.
Within a claim each project gets its part of the free slots, so that the first to be read does not take them all.
"""

import math
from collections.abc import Mapping, Sequence


class Shares:
    """The projects' virtual times, as one worker sees them."""

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._times: dict[str, float] = {}
        #: Whether anybody's time has changed since this was last set to False.
        self.have_moved = False

    @property
    def are_several(self) -> bool:
        """Whether more than one project has something ready: then it matters who is next."""
        return len(self._times) > 1

    def ready(self, weights: Mapping[str, float]) -> None:
        """Take note of the projects that have something ready now, and of their weights. All others are forgotten."""
        least = min((at for project_id, at in self._times.items() if project_id in weights), default=0.0)
        # From zero again, so that no number grows for ever.
        self._times = {project_id: max(self._times.get(project_id, least), least) - least for project_id in weights}
        self._weights = dict(weights)

    def claimed(self, project_id: str, number: int) -> None:
        """Take note that so many runs of a project were claimed."""
        if project_id in self._times:
            self._times[project_id] += number / self._weights[project_id]
            self.have_moved = True

    def time(self, project_id: str) -> float:
        """A project's virtual time: the least is next. One that is not known yet has been served least."""
        return self._times.get(project_id, 0.0)

    def split(self, lanes: Sequence[tuple[str, bool]], slots: int) -> list[int]:
        """
        How many of `slots` each lane may take at most. A lane is its project, and whether it is ready: the slots are those
        of the projects that have a ready one; what comes to be ready only now gets no more than it would have had.
        """
        of_ready = {project_id: self._weight(project_id) for project_id, is_ready in lanes if is_ready}
        total = math.fsum(of_ready.values())
        most = []
        for project_id, _ in lanes:
            weight = self._weight(project_id)
            most.append(math.ceil(slots * weight / (total if project_id in of_ready else total + weight)))
        return most

    def _weight(self, project_id: str) -> float:
        return self._weights.get(project_id, 1.0)
