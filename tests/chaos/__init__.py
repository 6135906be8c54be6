"""
Chaos: whole fleets that are hurt by design and at random, and a ledger that tells whether anything was lost or doubled.

In the order in which it is read: `ledger`, `kinds` and `app` (what the workers execute), `wire`, `thread` and `proxy`,
`fleet`, `producer`, `forms`, `arena` (a place with all of these), `acts`; `faults`, `outages` and `network` (each fault by
itself), `load`, `failover`, `hosts` and `many_hosts` (whole hosts), `schedules` (each step of a run's life, cut and frozen), `storm` and `mixture` (all of it at once); `check`,
`table`, `play`, `mutants`.
"""
