"""What the sidecar knows of a worker: all that it may ask of one, so that it needs none of its code."""

from collections.abc import Callable
from typing import Protocol

from notifyworker.observe import Metrics
from notifyworker.settings import Settings
from notifyworker.store import Store


class Observed(Protocol):
    """A worker, seen from its sidecar. Nothing of it may wait or query: probes are answered from it."""

    @property
    def settings(self) -> Settings:
        """Its settings."""

    @property
    def store(self) -> Store:
        """The statements of its schema."""

    @property
    def metrics(self) -> Metrics:
        """Its metrics."""

    @property
    def lease_owner(self) -> str:
        """Its name in the fleet."""

    @property
    def dsn(self) -> str:
        """Where its database is."""

    @property
    def reaper_interval_s(self) -> float:
        """How often the reaper passes, as the database says it."""

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload that the database takes."""

    def health(self) -> list[str]:
        """Why it does not do its job; nothing if it does."""

    def unanswered_s(self) -> float:
        """For how many seconds the database has answered no heartbeat."""

    def restrictions(self) -> list[str]:
        """What it does its job without."""

    def is_ready(self) -> bool:
        """Say whether it claims."""

    def publish_to(self, sink: Callable[[dict[str, object]], None] | None) -> None:
        """From now on call `sink`, on the event loop, for each change of a run's state that the worker sees."""
