"""What stands below the help of each command. A test executes all of it, as it stands in docs/command-line.md."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("notifyworker demo", "notifyworker demo --keep"),
    "init": ("notifyworker init hello",),
    "dev": ("notifyworker dev app:worker",),
    "worker": (
        "notifyworker worker app:worker",
        "notifyworker worker app:worker --concurrency 50 --kinds email.send,email.bounce",
    ),
    "migrate": ("notifyworker migrate",),
    "schema": ("notifyworker schema | psql",),
    "enqueue": (
        """notifyworker enqueue email.send '{"to": "a@example.org"}'""",
        """notifyworker enqueue email.send '{"to": "a@example.org"}' --wait --wait-s 60""",
        """echo '{"to": "b@example.org"}' | notifyworker enqueue email.send - --idempotency-key order-7""",
    ),
    "enqueue-many": ("""echo '{"kind": "email.send", "payload": {"to": "c@example.org"}}' | notifyworker enqueue-many -""",),
    "emit": ("""notifyworker emit order.paid '{"amount": 12}' --key 7""",),
    "failed": ("notifyworker failed --kind email.send",),
    "runs list": (
        "notifyworker runs list --state failed --since 2h",
        "notifyworker runs list --kind email.send --text example.org --json",
    ),
    "runs show": ("notifyworker runs show 01a1e77d-8518-752e-bca9-269e0324aac3",),
    "runs cancel": ("notifyworker runs cancel 01a1e77d-8518-752e-bca9-269e0324aac3",),
    "runs retry": ("notifyworker runs retry 01a1e77d-8518-752e-bca9-269e0324aac3",),
    "runs replay": ("notifyworker runs replay 01a1e77d-8518-752e-bca9-269e0324aac3",),
    "runs cancel-many": ("notifyworker runs cancel-many --kind email.send --state pending --dry-run",),
    "runs retry-many": ("notifyworker runs retry-many --kind email.send --error-code E-RUN-001",),
    "runs tail": ("notifyworker runs tail", "notifyworker runs tail --state failed --json"),
    "status": ("notifyworker status", "notifyworker status --watch"),
    "top": ("notifyworker top", "notifyworker top --once --window-s 3600"),
    "doctor": ("notifyworker doctor",),
    "healthcheck": ("notifyworker healthcheck --port 8080",),
    "schedules list": ("notifyworker schedules list",),
    "schedules put": ("""notifyworker schedules put nightly '0 3 * * *' report.build '{"days": 1}' --timezone Europe/Berlin""",),
    "schedules pause": ("notifyworker schedules pause nightly",),
    "schedules resume": ("notifyworker schedules resume nightly",),
    "schedules delete": ("notifyworker schedules delete nightly",),
    "pause": ("notifyworker pause --kind email.send --seconds 600 --reason 'the relay is down'",),
    "resume": ("notifyworker resume --kind email.send",),
    "pauses": ("notifyworker pauses",),
    "limits list": ("notifyworker limits list",),
    "limits set": ("notifyworker limits set --kind email.send --max-running 20",),
    "limits remove": ("notifyworker limits remove --kind email.send",),
    "shadow mirror": ("notifyworker shadow mirror email.send v2 --percent 10 --per-hour 1000",),
    "shadow mirrors": ("notifyworker shadow mirrors",),
    "shadow compare": ("notifyworker shadow compare email.send --ignore result.sent_at --tolerance result.cost=1%",),
    "shadow report": ("notifyworker shadow report --kind email.send --since 2h",),
    "shadow promote": ("notifyworker shadow promote email.send v2 --force",),
    "shadow back": ("notifyworker shadow back email.send",),
    "shadow versions": ("notifyworker shadow versions",),
    "shadow replay": ("notifyworker shadow replay --kind email.send --since 7d --version v2",),
    "shadow unmirror": ("notifyworker shadow unmirror email.send v2",),
    "shadow reset": ("notifyworker shadow reset email.send v2",),
    "shares list": ("notifyworker shares list",),
    "shares set": ("notifyworker shares set acme 2",),
    "workers list": ("notifyworker workers list",),
    "workers drain": (
        'notifyworker workers drain --host "$(hostname)"',
        'notifyworker workers drain --host "$(hostname)" --undo',
    ),
    "config show": ("notifyworker config show", "notifyworker config show app:worker --json"),
    "config set": ("notifyworker config set history_retention_days 90",),
    "retention list": ("notifyworker retention list",),
    "retention set": ("notifyworker retention set 365 --kind invoice.book",),
    "prune": ("notifyworker prune --dry-run", "notifyworker prune"),
    "export": ("notifyworker export --state failed --output failed.jsonl",),
    "bench": ("notifyworker bench --runs 5000",),
    "mcp": ("notifyworker mcp", "notifyworker mcp --allow-writes"),
    "capacity": (
        "notifyworker capacity --runs-per-s 50",
        "notifyworker capacity --runs-per-s 50 --duration-s 2 --payload-bytes 2000 --retention-days 90 --json",
    ),
    "completion": ("notifyworker completion bash > ~/.local/share/bash-completion/completions/notifyworker",),
}
EXIT_CODES = """\
Exit codes: 0 done, or drained in time; 1 what was asked failed or is not fine; 2 wrong use: arguments, settings, MODULE:ATTR; \
3 could not start: database, schema or port; 4 the drain's deadline passed; 5 and 6 of enqueue --wait: cancelled, not settled in \
time; 130, 143 ended by a second signal."""


def examples_of(command: str) -> str | None:
    """Return what stands below a command's help."""
    lines = EXAMPLES.get(command)
    return None if lines is None else "\n".join(["Examples:", *(f"  {line}" for line in lines)])
