"""What was known when the database still answered: shown, dated, while it does not."""

from datetime import UTC, datetime, timedelta
from typing import Any

from notifyworker.database import brief, explain
from notifyworker.http.page.frame import Frame


class Memory:
    """The last overview, and since when there is none."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._kept: tuple[datetime, Frame, dict[str, Any]] | None = None
        self._since: datetime | None = None
        self._tries = 0

    def keep(self, frame: Frame, data: dict[str, Any]) -> None:
        """The database answers."""
        self._kept = datetime.now(UTC), frame, data
        self._since = None
        self._tries = 0

    def told(self, error: BaseException, reasons: list[str], unanswered_s: float) -> dict[str, Any]:
        """What the page of an outage shows. By this host's clock: there is no other."""
        now = datetime.now(UTC)
        if self._since is None:
            # The worker has asked more often than anybody looked; of what it does not know, this page's last look does.
            known = [now - timedelta(seconds=unanswered_s), *([self._kept[0]] if self._kept else [])]
            self._since = min(now, max(known))
        self._tries += 1
        kept_at, frame, data = self._kept or (None, None, None)
        lease_s = max((w["lease_s"] or 0 for w in frame.workers), default=0) if frame else 0
        told = explain(error, "")
        return {
            "since": self._since, "tries": self._tries, "where": self._where, "error": _plain(str(told), brief(error)),
            "kept_at": kept_at, "last": data, "last_frame": frame, "now": now, "reasons": reasons,
            "running": data["live"]["running"] if data else None,
            "leases_end_at": self._since + timedelta(seconds=lease_s) if lease_s else None,
        }  # fmt: skip


def _plain(told: str, short: str) -> str:
    """One line without a place that may hold a secret."""
    return (told.partition(" (")[0].replace("the database of the DSN", "it") or short)[:300]
