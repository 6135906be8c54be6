"""What was injected, and what became of it, as a table."""

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass(slots=True)
class Row:
    """One fault. `recovery_s` is the worst; None where it was not measured. `wrong` is everything that makes it red."""

    fault: str
    injected: int = 0
    #: None: they are counted with all others of a mixture.
    runs: int | None = 0
    lost: int = 0
    double: int = 0
    recovery_s: float | None = None
    bound_s: float | None = None
    wrong: list[str] = field(default_factory=list)
    #: What else was measured.
    notes: list[str] = field(default_factory=list)
    skipped: str | None = None

    @property
    def is_red(self) -> bool:
        """Whether anything is off: a fault that never fired proves nothing."""
        if self.skipped is not None:
            return False
        is_late = self.recovery_s is not None and self.bound_s is not None and self.recovery_s > self.bound_s
        return bool(self.lost or self.double or self.wrong or is_late or not self.injected)

    def reasons(self) -> list[str]:
        """Why it is red, a few of each."""
        told = self.wrong[:5] + ([f"and {len(self.wrong) - 5} more"] if len(self.wrong) > 5 else [])
        if not self.injected:
            told.append("it never fired")
        if self.recovery_s is not None and self.bound_s is not None and self.recovery_s > self.bound_s:
            told.append(f"recovery took {self.recovery_s:.2f} s, more than {self.bound_s:g}")
        return told


def show(rows: list[Row], console: Console) -> None:
    """Print them, and beneath what is wrong or was skipped."""
    table = Table("fault", box=None, pad_edge=False)
    for name in ("injected", "runs", "lost", "double", "worst recovery", "bound", ""):
        table.add_column(name, justify="right")
    for row in rows:
        if row.skipped is not None:
            table.add_row(row.fault, "skipped")
            continue
        table.add_row(
            row.fault, str(row.injected), *((str(row.runs), str(row.lost), str(row.double)) if row.runs is not None else ("", "", "")),
            "" if row.recovery_s is None else f"{row.recovery_s:.2f} s", "" if row.bound_s is None else f"{row.bound_s:g} s",
            "RED" if row.is_red else "ok", style="red" if row.is_red else "",
        )  # fmt: skip
    console.print(table)
    for row in rows:
        if row.skipped is not None:
            console.print(f"{row.fault}: skipped, {row.skipped}", highlight=False)
        for note in row.notes:
            console.print(f"{row.fault}: {note}", highlight=False, markup=False)
        for reason in row.reasons() if row.is_red else ():
            console.print(f"{row.fault}: {reason}", highlight=False, style="red", markup=False)
