"""What becomes of a run of each kind of handler in the end."""

#: These end as failed, with this code; all others as completed.
POISON = {
    "gil": "E-RUN-002",
    "regex": "E-RUN-002",
    "exit": "E-RUN-002",
    "memory": "E-RUN-002",
    "endless": "E-RUN-003",
    "stubborn": "E-RUN-003",
}
#: These hold the GIL in one C call.
HOLDS_GIL = {"gil", "regex"}
#: Writes its effect in run.transaction(): the run is settled before its handler returns.
EXACT = "exact"
#: Has a step that is recorded, and one that writes its effect together with its record, under whichever lease.
STEPPED = "stepped"
#: In the mixture it is mirrored to another version, whose copies try to have effects.
MIRRORED, TRIED = "mirrored", "v2"
#: In the mixture so many of this kind are executed at once, by a limit.
LIMITED, AT_ONCE = "flaky", 5
#: Is cancelled in bulk, some of it while it is executed; what comes too late for that is completed.
CANCELLED = "cancelled"
#: Is inserted by a schedule, once a second.
SCHEDULED = "scheduled"
#: Starts children, joins them, has a last run inserted when a group is settled, and waits for two events.
FAMILY, CHILD, CALLBACK = "family", "child", "callback"
#: What it waits for: the one is for it alone, the other for all of a key.
PAID, OPENED = "paid", "opened"
#: Several of them are executed at once.
BATCHED = "batched"
#: Waits for children that never end, until it is cancelled, and they with it.
DOOMED, ENDLESS_CHILD = "doomed", "endless child"
