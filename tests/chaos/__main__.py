"""`python -m chaos`: hurt whole fleets, and tell whether anything was lost or doubled. `make chaos` is the full form."""

import asyncio
import dataclasses
import random
import signal
import sys
import time
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from chaos import hosts, mutants, table
from chaos.acts import ACTS
from chaos.forms import DEFAULTS, SHORT, Form
from chaos.play import MIXTURE, Play, chosen, scratch

app = App(
    name="chaos",
    help="Hurt whole fleets of workers, and check that nothing is lost and nothing is done twice. On loopback, without root; with root also whole hosts.",
    help_format="plaintext",
)
console = Console(width=None if sys.stdout.isatty() else 150)

Seed = Annotated[int | None, Parameter(help="Decides the choice and order of faults. Default: a new one, which is printed.")]
Only = Annotated[str, Parameter(help=f"Acts whose name contains one of these, comma-separated; '{MIXTURE}' is the last.")]


@app.default
def run(
    *,
    short: Annotated[
        bool, Parameter(help="About two minutes, with short leases; else default settings, 15 to 20 minutes.")
    ] = False,
    seed: Seed = None,
    only: Only = "",
    mixture: Annotated[bool, Parameter(help="Also all of it at once, at the end.")] = True,
    runs: Annotated[int | None, Parameter(help="Runs in the mixture. Default: 100,000, or 4,000 in the short form.")] = None,
) -> int:
    """Perform every act, then all of it at once, and print the table. Exit code 1 if anything in it is red."""
    form = SHORT if short else DEFAULTS
    if runs is not None:
        form = dataclasses.replace(form, mixture_runs=runs)
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    console.print(f"SEED={seed}, {form.name} form")
    hosts.alone()
    began = time.monotonic()
    rows = asyncio.run(_performed(form, seed, only, mixture=mixture))
    table.show(rows, console)
    is_red = any(row.is_red for row in rows) or not rows
    console.print(f"SEED={seed}, {form.name} form, {time.monotonic() - began:.0f} s: {'RED' if is_red else 'all is well'}")
    return int(is_red)


@app.command
def acts() -> int:
    """Name all acts."""
    for act in ACTS:
        console.print(act.name, highlight=False)
    console.print(MIXTURE)
    return 0


@app.command
def mutate(*, seed: Seed = None, only: Only = "") -> int:
    """
    Remove one defence after the other in a copy of the package, and see whether the short form turns red.

    Exit code 1 if one of them was not missed.
    """
    return mutants.check(seed, only, console)


async def _performed(form: Form, seed: int, only: str, *, mixture: bool) -> list[table.Row]:
    loop = asyncio.get_running_loop()
    this = asyncio.current_task()
    assert this is not None
    loop.add_signal_handler(signal.SIGTERM, this.cancel)

    def tell(row: table.Row, took_s: float) -> None:
        console.print(
            f"{'RED ' if row.is_red else 'ok  '}{took_s:4.0f} s  {row.fault}", highlight=False, style="red" if row.is_red else ""
        )

    async with scratch() as directory, asyncio.timeout(form.total_s):
        return await Play(form, seed, directory, tell).perform(
            chosen(only, short=form.name == SHORT.name), storm=mixture and (not only or only in MIXTURE)
        )


if __name__ == "__main__":
    sys.exit(app())
