"""The tables: what the dead weigh, who keeps them, who clears them away, and the history's days."""

from notifyworker.doctor.finding import Finding, Patient, Verdict, duration
from notifyworker.store import Row


async def bloat(patient: Patient) -> list[Finding]:
    """What the live table weighs against what lives in it."""
    seen_at, limits = await patient.store.live_table(patient.on), patient.limits
    live, dead, size = seen_at["live_rows"], seen_at["dead_rows"], seen_at["bytes"]
    vacuumed = seen_at["vacuumed_at"]
    last = f"last vacuumed {duration((seen_at['now'] - vacuumed).total_seconds())} ago" if vacuumed else "never vacuumed"
    seen = f"{live:,} live and {dead:,} dead rows in {size / 2**20:,.0f} MiB, {last}"
    if dead >= limits.dead_rows and dead > 2 * live:
        return [Finding("bloat", Verdict.WARNING, seen, f'See horizon, leader and vacuum; then: VACUUM "{patient.schema}".runs;')]
    if size > limits.roomy_bytes + live * limits.roomy_bytes_per_row:
        todo = f'It is used again by the next rush. To have it back, at a quiet time (it locks out all): VACUUM FULL "{patient.schema}".runs;'
        return [Finding("bloat", Verdict.NOTE, seen, todo)]
    return [Finding("bloat", Verdict.OK, seen)]


async def horizon(patient: Patient) -> list[Finding]:
    """Who holds an old snapshot: nothing that was settled since can be vacuumed."""
    rows = [row for row in await patient.store.holders(patient.on) if row["holds"]]
    found = [_held(row) for row in rows if _is_old(patient, row)][:10]
    hidden = sum(not row["is_seen"] for row in rows)
    if found:
        return found
    if hidden:
        seen = f"no old transaction; not seen: how old {hidden} of other logins are"
        return [Finding("horizon", Verdict.OK, seen, "GRANT pg_read_all_stats TO this login, to see it.")]
    return [Finding("horizon", Verdict.OK, "nobody holds an old snapshot")]


def _is_old(patient: Patient, row: Row) -> bool:
    if row["what"] == "slot" and row["state"] == "inactive":
        return True
    if row["age_s"] is not None:
        return bool(row["age_s"] >= patient.limits.old_transaction_s)
    return bool((row["age_transactions"] or 0) >= patient.limits.old_transaction_ids)


def _held(row: Row) -> Finding:
    age = f"for {duration(row['age_s'])}" if row["age_s"] is not None else f"for {row['age_transactions']:,} transactions"
    where = f" in the database {row['database']}" if row["database"] else ""
    if row["what"] == "slot":
        seen = f"the {row['state']} replication slot {row['name']!r} holds the horizon {age}"
        todo = "Start its standby again; if that is gone for good: SELECT pg_drop_replication_slot('{}');"
        return Finding("horizon", Verdict.WARNING, seen, todo.format(row["name"].replace("'", "''")))
    if row["what"] == "prepared":
        seen = f"the prepared transaction {row['name']!r} of {row['login']} holds the horizon {age}"
        name = row["name"].replace("'", "''")
        return Finding("horizon", Verdict.WARNING, seen, f"COMMIT PREPARED '{name}'; or ROLLBACK PREPARED '{name}';")
    who = f"pid {row['name']} ({row['login']}, {row['application'] or 'no application_name'})"
    seen = f"{who} holds the horizon {age}, {row['state'] or 'state not seen'}{where}"
    return Finding("horizon", Verdict.WARNING, seen, f"Let it end, or: SELECT pg_terminate_backend({row['name']});")


async def vacuum(patient: Patient) -> list[Finding]:
    """Whether a leader with this login may vacuum the live table, and whether autovacuum would."""
    found = []
    if not await patient.store.may_vacuum(patient.on):
        seen = "a leader with this login may not vacuum the live table: autovacuum, once a minute, has to do"
        role = f"{patient.schema}_worker"
        todo = f'On PostgreSQL 17 and later: GRANT "{role}" TO this login; before that, membership in the owner.'
        found.append(Finding("vacuum", Verdict.NOTE, seen, todo))
    if (await patient.store.live_table(patient.on))["is_left_out"]:
        todo = f'ALTER TABLE "{patient.schema}".runs RESET (autovacuum_enabled);'
        found.append(Finding("vacuum", Verdict.WARNING, "autovacuum is switched off for the live table", todo))
    return found or [Finding("vacuum", Verdict.OK, "the leader may vacuum the live table, autovacuum is the net")]


async def partitions(patient: Patient) -> list[Finding]:
    """Whether the coming days have their partitions, and the expired ones are gone."""
    days, found = await patient.store.partitions(patient.on), []
    if days["days_made"] < patient.limits.least_days_made:
        seen = f"partitions of the history are made for {days['days_made']} days, today among them, and should be for 8"
        todo = (
            f'The leader makes them; it is put off while somebody reads the history: SELECT "{patient.schema}".make_partitions();'
        )
        found.append(Finding("partitions", Verdict.WARNING, seen, todo))
    if days["days_overdue"]:
        seen = f"{days['days_overdue']} days of settled runs are older than the retention of {days['kept_days']} days, and still there"
        found.append(Finding("partitions", Verdict.WARNING, seen, "notifyworker prune"))
    if days["default_rows"]:
        seen = f"about {days['default_rows']:,} settled runs lie in the default partition"
        todo = "They are read and expire as others, but by DELETE. They came while their day had no partition: see leader."
        found.append(Finding("partitions", Verdict.NOTE, seen, todo))
    return found or [Finding("partitions", Verdict.OK, f"made for {days['days_made']} days, kept for {days['kept_days']}")]
