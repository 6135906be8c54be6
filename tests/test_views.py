"""A look costs what it shows, and not what lies in the table."""

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from test_plans import Explained

from notifyworker.database import connect
from notifyworker.views import Filter, Views, first_id

BACKLOG = 100_000


@pytest.fixture
async def explained(dsn: str, connection: asyncpg.Connection):
    await connection.execute(
        "INSERT INTO notifyworker.runs (kind) SELECT 'k' || n % 5 FROM generate_series(1, $1::integer) n", BACKLOG
    )
    session = await connect(dsn, schema="notifyworker", purpose="test")
    yield Explained(session)
    session.terminate()


@pytest.mark.parametrize("is_analyzed", [False, True])
async def test_a_follower_reads_what_it_follows(explained: Explained, connection: asyncpg.Connection, is_analyzed: bool) -> None:
    if is_analyzed:
        await connection.execute("ANALYZE notifyworker.runs")
    known = [row["run_id"] for row in await connection.fetch("SELECT run_id FROM notifyworker.runs ORDER BY random() LIMIT 1000")]
    soon = datetime.now(UTC) + timedelta(seconds=5)
    rows = await Views("notifyworker").runs_changed(explained, Filter(), since=soon, above=first_id(soon), known=known)
    assert {row["run_id"] for row in rows} == set(known)
    assert explained.rows_read[0] <= 2 * len(known)


async def test_a_page_reads_a_page(explained: Explained) -> None:
    views = Views("notifyworker")
    for wanted in (
        Filter(),
        Filter(since=datetime.now(UTC) - timedelta(hours=1)),
        Filter(until=datetime.now(UTC) + timedelta(hours=1)),
    ):
        assert len(await views.runs_find(explained, wanted, limit=50)) == 50
    assert max(explained.rows_read) <= 60
