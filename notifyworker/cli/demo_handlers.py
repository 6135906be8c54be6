"""
The handlers that `notifyworker demo` runs: what a user's own module looks like.

They take their kinds' names from the demo, so that no worker of a real installation claims them.
"""

import asyncio
import csv
import io
import os
import signal
import statistics
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from notifyworker import Fail, Retry, Run, Worker

OUTBOX = "NOTIFYWORKER_DEMO_OUTBOX"  # the directory where mail ends up
GUARD = "NOTIFYWORKER_DEMO_GUARD"  # set: end when standard input does, since then the demo is gone

worker = Worker()


@dataclass(frozen=True, slots=True)
class Email:
    """What `demo.email` takes."""

    to: str
    subject: str
    body: str = ""


@worker.handler("demo.email", timeout=10, retry=Retry(max_attempts=5))
async def send_email(run: Run, email: Email) -> dict[str, Any]:
    """Render a message and put it into the outbox. Executed twice, it still leaves one file: the run's id is its name."""
    message = EmailMessage()
    message["From"] = "demo@notifyworker.invalid"
    message["To"] = email.to
    message["Subject"] = email.subject
    message["Message-ID"] = f"<{run.run_id}@notifyworker.invalid>"
    message.set_content(email.body)
    await run.effect("deliver", deliver, f"{run.run_id}.eml", message.as_string())
    return {"to": email.to, "bytes": len(message.as_bytes())}


def deliver(name: str, text: str) -> None:
    """Write a message into the outbox, whole or not at all."""
    outbox = Path(os.environ[OUTBOX])
    draft = outbox / f".{name}"
    draft.write_text(text, encoding="utf-8")
    draft.rename(outbox / name)


@dataclass(frozen=True, slots=True)
class Report:
    """What `demo.report` takes: rows of product and amount, or a CSV file that another system is yet to write."""

    rows: list[tuple[str, float]] = field(default_factory=list)
    source: str | None = None


@worker.handler("demo.report", timeout=120)
async def make_report(run: Run, report: Report) -> dict[str, Any]:
    """Summarise sales by product, as CSV."""
    rows = report.rows
    if report.source is not None:
        looks = 0
        while (arrived := await asyncio.to_thread(read_sales, Path(report.source))) is None:
            looks += 1
            await run.progress({"waiting_for": report.source, "looks": looks})
            await asyncio.sleep(0.25)
        rows = arrived
    return {"rows": len(rows), "csv": summarised(rows)}


def read_sales(source: Path) -> list[tuple[str, float]] | None:
    """Read a CSV file; None if it is not there yet."""
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return [(row["product"], float(row["amount"])) for row in csv.DictReader(io.StringIO(text))]


def summarised(rows: list[tuple[str, float]]) -> str:
    """Return one line a product: how many, total, median."""
    amounts = defaultdict(list)
    for product, amount in rows:
        amounts[product].append(amount)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["product", "sales", "total", "median"])
    table.writerows([p, len(a), f"{sum(a):.2f}", f"{statistics.median(a):.2f}"] for p, a in sorted(amounts.items()))
    return text.getvalue()


@dataclass(frozen=True, slots=True)
class Charge:
    """What `demo.charge` takes. `outages`: how often the gateway is down first; `declined`: the bank says no."""

    order: str
    cents: int
    outages: int = 0
    declined: bool = False


class GatewayDownError(Exception):
    """Passes by itself: worth another attempt."""


@worker.handler("demo.charge", timeout=10, retry=Retry(max_attempts=5, base_s=0.5))
def charge(run: Run, order: Charge) -> dict[str, Any]:
    """Charge a card. A plain function: it is executed in a thread."""
    if order.declined:
        message = f"the bank declines {order.cents / 100:.2f} for {order.order}"
        raise Fail(message)
    if run.attempt <= order.outages:
        message = f"the payment gateway is down (attempt {run.attempt})"
        raise GatewayDownError(message)
    return {"order": order.order, "charged_cents": order.cents}


def _end_with_the_demo() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if GUARD in os.environ:
    threading.Thread(target=_end_with_the_demo, name="guard", daemon=True).start()
