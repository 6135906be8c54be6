"""The server and this login: what is reached, what is allowed, and settings that get in the way."""

import re

from notifyworker.database import connect_plainly, describe
from notifyworker.doctor.finding import Finding, Patient, Verdict, duration, some
from notifyworker.migrate import OLDEST_SERVER, newest

#: Of one worker: claims and settles, LISTEN, heartbeat, gate, and the leader's vacuum; and two of its sidecar.
_OF_A_WORKER = 9


async def connection(patient: Patient) -> list[Finding]:
    """Which server it is, whether it is one to work with, and whether others could listen in."""
    facts = await patient.store.server_facts(patient.on)
    where = describe(patient.dsn)
    seen = f"PostgreSQL {facts['version']} at {where}, {facts['tls'] if facts['is_encrypted'] else 'not encrypted'}"
    if facts["version_num"] < OLDEST_SERVER:
        return [Finding("connection", Verdict.FAILING, seen, "Upgrade the server to PostgreSQL 14 or later.")]
    if facts["is_standby"]:
        todo = "Add target_session_attrs=read-write to the DSN, with all hosts in it, or name the primary."
        return [Finding("connection", Verdict.FAILING, f"{seen}: a standby, which takes no writes", todo)]
    is_local = facts["client"] is None or facts["client"].startswith("127.") or facts["client"] == "::1"
    if not facts["is_encrypted"] and not is_local:
        return [
            Finding("connection", Verdict.NOTE, seen, "Add sslmode=verify-full to the DSN if the network is not yours alone.")
        ]
    return [Finding("connection", Verdict.OK, seen)]


async def schema(patient: Patient) -> list[Finding]:
    """Whether this code and the schema fit together."""
    name, version, needed = patient.schema, patient.version, newest()
    if version is None:
        todo = f'GRANT "{name}_observer" TO this login, to see it.'
        return [Finding("schema", Verdict.NOTE, f"not seen: at which version {name} is", todo)]
    if version == 0:
        return [Finding("schema", Verdict.FAILING, f"{name} is not there", "notifyworker migrate")]
    seen = f"{name} is at version {version}"
    if version < needed:
        return [Finding("schema", Verdict.FAILING, f"{seen}, this code needs {needed}", "notifyworker migrate")]
    if version > needed:
        seen = f"{seen}, newer than this code, which knows {needed}"
        return [Finding("schema", Verdict.FAILING, seen, "Install a newer notifyworker.")]
    return [Finding("schema", Verdict.OK, seen)]


async def privileges(patient: Patient) -> list[Finding]:
    """What this login may do; whether the roles are there."""
    facts, may = await patient.store.server_facts(patient.on), await patient.store.privileges(patient.on)
    if may is None:
        return [Finding("privileges", Verdict.FAILING, f"there is no table {patient.schema}.runs", "See drift.")]
    login, found = facts["login"], []
    if may["missing_roles"]:
        make = " ".join(f'CREATE ROLE "{role}" NOLOGIN;' for role in may["missing_roles"])
        todo = f'{make} SELECT "{patient.schema}".grant_roles();'
        found.append(Finding("privileges", Verdict.WARNING, f"roles are missing: {some(may['missing_roles'])}", todo))
    grant = f'A worker needs: GRANT "{patient.schema}_worker" TO "{login}";'
    if may["is_separated"] and may["is_filtered"] and f"{patient.schema}_worker" not in may["roles"]:
        seen = f"{login} sees the runs of its own projects alone"
        return [*found, Finding("privileges", Verdict.NOTE, seen, grant)]
    if not may["may_work"]:
        seen = (
            "may read, and not work"
            if may["may_read"]
            else "may insert, and nothing else"
            if may["may_insert"]
            else "may do nothing"
        )
        return [*found, Finding("privileges", Verdict.NOTE, f"{login} {seen}", grant)]
    what = "superuser" if facts["is_superuser"] else f"owner ({may['owner']})" if may["is_owner"] else some(may["roles"])
    return [*found, Finding("privileges", Verdict.OK, f"{login} may work: {what or 'by grants of its own'}")]


async def session(patient: Patient) -> list[Finding]:
    """What role, database and server give to each session. Ours set their own; those that handlers get have these."""
    plain = await connect_plainly(patient.dsn, schema=patient.schema, purpose="doctor")
    try:
        facts = await patient.store.session_facts(plain)
        login = await plain.fetchval("SELECT quote_ident(current_user)")
    finally:
        plain.terminate()
    found = []
    if facts["default_transaction_read_only"] == "on":
        todo = f"ALTER ROLE {login} SET default_transaction_read_only = off;"
        found.append(Finding("session", Verdict.FAILING, "transactions are read-only by default: no worker starts", todo))
    if facts["session_replication_role"] == "replica":
        seen = "session_replication_role is replica: no trigger fires, so inserts are neither checked nor woken for"
        found.append(Finding("session", Verdict.FAILING, seen, f"ALTER ROLE {login} SET session_replication_role = origin;"))
    if limit_ms := int(facts.get("transaction_timeout", "0")):
        is_short = limit_ms < patient.limits.short_transaction_s * 1000
        seen = (
            f"transaction_timeout is {duration(limit_ms / 1000)}: it ends the leader's vacuum and longer run.transaction() blocks"
        )
        todo = f"ALTER ROLE {login} SET transaction_timeout = 0;"
        found.append(Finding("session", Verdict.WARNING if is_short else Verdict.NOTE, seen, todo))
    others = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    if limited := [f"{name} {duration(int(facts[name]) / 1000)}" for name in others if int(facts[name])]:
        seen = f"{some(limited)}: for handlers in run.transaction() alone, our own statements set theirs"
        found.append(Finding("session", Verdict.NOTE, seen, "Let them be above what handlers take in the database."))
    return found or [Finding("session", Verdict.OK, "no time limit and no read-only default for handlers' transactions")]


async def settings(patient: Patient) -> list[Finding]:
    """Settings of the server that are out of proportion."""
    facts, found = await patient.store.server_facts(patient.on), []
    if not facts["autovacuum"]:
        todo = "ALTER SYSTEM SET autovacuum = on; SELECT pg_reload_conf();"
        found.append(Finding("server", Verdict.WARNING, "autovacuum is off: only the leader's own vacuum is left", todo))
    if not facts["track_counts"]:
        todo = "ALTER SYSTEM SET track_counts = on; SELECT pg_reload_conf();"
        seen = "track_counts is off: dead rows are not counted, and nobody vacuums"
        found.append(Finding("server", Verdict.WARNING, seen, todo))
    pages = facts["max_notify_queue_pages"]
    if pages is not None and pages < patient.limits.least_queue_pages:
        seen = f"max_notify_queue_pages is {pages}: the notification queue is soon half full, and inserts then silent"
        todo = "ALTER SYSTEM RESET max_notify_queue_pages; then restart the server."
        found.append(Finding("server", Verdict.WARNING, seen, todo))
    return found or [Finding("server", Verdict.OK, "autovacuum, statistics and notification queue are as they should be")]


async def standbys(patient: Patient) -> list[Finding]:
    """Whether commits wait for standbys, and whether those are there."""
    names = (await patient.store.server_facts(patient.on))["synchronous_standby_names"].strip()
    if not names:
        return [Finding("standbys", Verdict.OK, "commits wait for no standby")]
    count = re.match(r"(?:ANY|FIRST)?\s*(\d+)\s*\(", names, re.IGNORECASE)
    needed = int(count[1]) if count else 1
    rows = await patient.store.standbys(patient.on)
    there = [row["name"] for row in rows if row["sync_state"] in {"sync", "quorum"} and row["state"] == "streaming"]
    seen = f"commits wait for {needed} standby{'s' if needed > 1 else ''} of {names!r}"
    if len(there) >= needed:
        return [Finding("standbys", Verdict.OK, f"{seen}: {some(there)}")]
    if len(rows) >= needed and any(row["state"] is None for row in rows):
        return [Finding("standbys", Verdict.NOTE, f"{seen}; not seen: which are there", "GRANT pg_monitor TO this login.")]
    todo = "Start the standby, or: ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf();"
    return [
        Finding("standbys", Verdict.FAILING, f"{seen}, and {len(there) or 'none'} is there: each COMMIT waits for ever", todo)
    ]


async def connections(patient: Patient) -> list[Finding]:
    """Whether there are connections for the fleet that there is."""
    facts, workers = await patient.store.server_facts(patient.on), await patient.store.workers_list(patient.on)
    scopes = [
        ("of the server", facts["connections"], facts["connections_used"], "Raise max_connections (needs a restart)"),
        (
            "of this database",
            facts["connections_database"],
            facts["connections_database_used"],
            "ALTER DATABASE .. CONNECTION LIMIT",
        ),
        ("of this login", facts["connections_login"], facts["connections_login_used"], "ALTER ROLE .. CONNECTION LIMIT"),
    ]
    most = len(workers) * (_OF_A_WORKER + patient.settings.transaction_connections)
    found = []
    for whose, limit, used, raise_it in scopes:
        if limit is None:
            continue
        if limit - used < patient.limits.spare_connections:
            seen = f"{used} of {limit} connections {whose} are taken: a worker that starts or reconnects may find none"
            found.append(Finding("connections", Verdict.WARNING, seen, f"{raise_it}, or put a pooler before the producers."))
        elif most > limit:
            seen = f"{len(workers)} workers may want {most} connections at once, {limit} are there {whose}"
            found.append(Finding("connections", Verdict.NOTE, seen, f"{raise_it}, or lower transaction_connections."))
    used_now = f"{facts['connections_used']} of {facts['connections']} connections are taken"
    return found or [Finding("connections", Verdict.OK, f"{used_now}, the fleet wants {most} at most")]
