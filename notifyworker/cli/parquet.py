"""Settled runs as Parquet: a row group for every ten thousand of them, so that memory stays flat."""

from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any
from uuid import UUID

from notifyworker.errors import SettingsError

if TYPE_CHECKING:
    from notifyworker.store import Row

_GROUP = 10_000


class ParquetFile:
    """Takes rows of the history; `close` writes what a reader needs to find them. Ids and JSON are text, durations seconds."""

    def __init__(self, file: IO[bytes]) -> None:
        try:
            import pyarrow as pa  # type: ignore[import-untyped]
            from pyarrow import parquet
        except ImportError:
            message = "Parquet needs pyarrow, which is not installed"
            raise SettingsError(message, hint="pip install 'notifyworker[parquet]', or --format jsonl") from None
        moment, text = pa.timestamp("us", tz="UTC"), pa.string()
        types = {
            "priority": pa.int16(), "attempt": pa.int16(), "max_attempts": pa.int16(), "lease_token": pa.int64(),
            "is_shadow": pa.bool_(), "timeout": pa.float64(), "run_at": moment, "expires_at": moment, "created_at": moment,
            "started_at": moment, "finished_at": moment,
        }  # fmt: skip
        self._schema = pa.schema([(name, types.get(name, text)) for name in _COLUMNS])
        self._table = pa.Table.from_pylist
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def write(self, rows: "list[Row]") -> None:
        """Take rows; they are written when there are enough for a group."""
        self._rows += [{name: _plain(value) for name, value in row.items()} for row in rows]
        if len(self._rows) >= _GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is left, and the file's index."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._table(self._rows, schema=self._schema))
            self._rows = []


_COLUMNS = (
    "run_id", "project_id", "kind", "state", "payload", "priority", "run_at", "attempt", "max_attempts", "timeout", "expires_at",
    "idempotency_key", "concurrency_key", "is_shadow", "shadow_by", "headers", "lease_token", "created_at", "started_at",
    "finished_at", "progress", "errors", "result", "effects", "error_code", "settled_by", "replay_of",
)  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, UUID):
        return str(value)
    return value.total_seconds() if isinstance(value, timedelta) else value
