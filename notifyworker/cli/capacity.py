"""The command that says what a load will need."""

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from notifyworker.cli import output
from notifyworker.cli.options import Json

_MANY = 200  # connections to one server: beyond, producers belong behind a pooler
_AT_ONE = 20_000  # runs a second that one server was seen to do, and twice as many: docs/performance.md


async def capacity(
    *,
    runs_per_s: Annotated[float, Parameter(help="Runs a second, on average.", validator=Number(gt=0, lte=1_000_000))],
    peak_per_s: Annotated[
        float | None, Parameter(help="At the peak [default: three times that].", validator=Number(gt=0, lte=1_000_000))
    ] = None,
    duration_s: Annotated[
        float, Parameter(help="How long a run takes [default: 0.1].", validator=Number(gte=0, lte=86_400))
    ] = 0.1,
    payload_bytes: Annotated[
        int, Parameter(help="Of one payload [default: 200].", validator=Number(gte=0, lte=268_435_456))
    ] = 200,
    result_bytes: Annotated[int, Parameter(help="Of one result [default: 0].", validator=Number(gte=0, lte=268_435_456))] = 0,
    retention_days: Annotated[
        float, Parameter(help="How long settled runs are kept [default: 30].", validator=Number(gt=0, lte=36_500))
    ] = 30,
    concurrency: Annotated[int, Parameter(help="Slots of a worker [default: 10].", validator=Number(gte=1, lte=10_000))] = 10,
    json: Json = False,
) -> None:
    """
    Say what a load will need: workers, connections, WAL and disk. Asks no database.

    What it goes by was measured, and is within a quarter of it: docs/scaling.md.
    """
    from dataclasses import asdict

    from notifyworker.capacity import Load, forecast

    load = Load(
        runs_per_s=runs_per_s, peak_per_s=max(runs_per_s, peak_per_s or 3 * runs_per_s), duration_s=duration_s,
        payload_bytes=payload_bytes, result_bytes=result_bytes, retention_days=retention_days, concurrency=concurrency,
    )  # fmt: skip
    needs = forecast(load)
    if json:
        output.document({"load": asdict(load), "needs": asdict(needs)})
        return
    output.line(f"workers      {needs.workers:,}, of {concurrency} slots each, for {load.peak_per_s:g} runs/s at the peak")
    output.line(f"connections  {needs.connections:,}, sidecars' included; producers' and run.transaction()'s come on top")
    output.line(f"WAL          {_bytes(needs.wal_bytes_per_s)}/s on average, {_bytes(needs.wal_bytes_per_s * 86_400)} a day")
    output.line(f"disk         {_bytes(needs.history_bytes)} of settled runs, kept for {retention_days:g} days")
    output.line(f"a snapshot   that is held for an hour costs {_bytes(needs.held_bytes_per_hour)} in the live table")
    if needs.connections > _MANY:
        output.line(f"note         more than {_MANY} connections: raise concurrency, or max_connections")
    if load.peak_per_s > _AT_ONE:
        output.line(f"note         more than {_AT_ONE:,} runs/s: measure with `notifyworker bench` on your own server first")


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:  # noqa: PLR2004 - of the next unit
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"
