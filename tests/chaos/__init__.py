"""
Chaos: whole fleets that are hurt at random and by design, and a ledger that tells whether anything was lost or doubled.

In the order in which it is read: `ledger`, `app` (what the workers execute), `proxy`, `fleet`, `producer`, `arena` (a
place with all of these), `faults`, `outages` and `network` (each fault by itself), `schedules` (each step of a run's
life, cut and frozen), `storm` (all of it at once), `check`, `table`, `mutants`.
"""
