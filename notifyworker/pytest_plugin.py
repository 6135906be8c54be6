"""
Fixtures for pytest: a PostgreSQL for the session, a database a test. Active where notifyworker is installed.

pytest imports this file at each start, so that it imports nothing of ours before a fixture is asked for. The fixtures are
plain ones: whatever a test runs its event loop by, and whether it has one.
"""

import os
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture(scope="session")
def notifyworker_prepare() -> Callable[[str], None]:
    """Override it: a function that is called once with the DSN of a migrated database, to make your own tables there."""
    return lambda _dsn: None


@pytest.fixture(scope="session")
def _notifyworker_server(notifyworker_prepare: Callable[[str], None]) -> Iterator[object]:
    from notifyworker.testing.postgres import TemplateServer

    with TemplateServer(os.environ.get("NOTIFYWORKER_TEST_DSN"), notifyworker_prepare) as server:
        yield server


@pytest.fixture
def notifyworker_dsn(_notifyworker_server: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """
    The DSN of a fresh, migrated database of this test, as NOTIFYWORKER_DSN for all that is made during it.

    On an embedded PostgreSQL of the session; or on the server whose superuser's DSN is in NOTIFYWORKER_TEST_DSN.
    """
    from notifyworker.testing.postgres import TemplateServer

    assert isinstance(_notifyworker_server, TemplateServer)
    with _notifyworker_server.database() as dsn:
        monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
        yield dsn
