"""The two forms of the harness: all of it at default settings, and a short one with short leases."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Form:
    """
    How much is done, and with which settings of the workers.

    `slack_s` is added to what the product promises, where many fleets share few cores.
    """

    name: str
    settings: dict[str, Any]
    #: In place of these where presence matters: leases so long that none of them ends before.
    presence: dict[str, Any]
    #: In place of these where the server is away again and again, for as long as a busy machine takes to start it.
    outlasting: dict[str, Any]
    reaper_interval_s: float
    presumed_dead_s: float
    lease_s: float
    cut_off_s: tuple[float, ...]
    lock_s: float
    loop_s: float
    mixture_runs: int
    mixture_s: float
    side_by_side: int
    drain_s: float
    act_s: float
    total_s: float
    slack_s: float
    #: Inserts a second where a load goes on beside a fault.
    load_per_s: float
    #: How long COMMITs wait for a standby that is dead.
    sync_s: float


DEFAULTS = Form("full", {}, {}, {}, 60, 10, 60, (5, 20, 60), 10, 30, 100_000, 200, 10, 240, 600, 3000, 0, 1000, 30)
SHORT = Form(
    "short",
    {"lease_s": 6, "heartbeat_interval_s": 1, "presumed_dead_s": 7, "presence_ping_s": 0.5, "poll_interval_s": 60},
    {"lease_s": 33}, {"lease_s": 60, "presumed_dead_s": 30, "presence_ping_s": 15},
    1, 7, 6, (2, 8, 12), 3, 4, 4_000, 20, 6, 45, 150, 600, 15, 200, 6,
)  # fmt: skip
