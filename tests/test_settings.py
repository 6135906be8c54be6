"""Settings: what wins, and what a wrong one is answered."""

import pytest
import structlog

from notifyworker import SettingsError
from notifyworker.settings import Settings


def test_command_line_before_environment_before_keyword(monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_CONCURRENCY", "2")
    monkeypatch.setenv("NOTIFYWORKER_PROJECT_IDS", "a, b")

    settings = Settings.load({"port": 1}, {"port": 2, "concurrency": 3, "schema": "other"})

    assert (settings.port, settings.concurrency, settings.schema_name) == (1, 2, "other")
    assert settings.project_ids == ["a", "b"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"poll_interval_s": -1}, "poll_interval_s"),
        ({"lease_s": 44}, "three times heartbeat_interval_s"),
        ({"lease_s": 3, "heartbeat_interval_s": 1}, "lease_s=3 must be above 4.22"),
        ({"lease_s": float("nan")}, "lease_s"),
        ({"presumed_dead_s": 9}, "presumed_dead_s=9 must be above 9"),
        ({"schema": "No Such"}, "schema"),
        ({"project_ids": ""}, "project_ids"),
        ({"shadow": "perhaps"}, "shadow"),
        ({"no_such": 1}, "unknown setting: no_such"),
    ],
)
def test_a_wrong_setting_is_named_and_a_password_is_not_shown(wrong, told):
    with pytest.raises(SettingsError) as refused:
        Settings.load({"dsn": "postgresql://me:s3cret@host/db", **wrong})

    assert told in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_the_port_that_kubernetes_sets_is_ignored_and_told_once(monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setattr("notifyworker.settings._without_kubernetes_port.was_told", False)

    with structlog.testing.capture_logs() as logs:
        assert [Settings.load().port for _ in range(2)] == [8080, 8080]

    assert [e["event"] for e in logs] == ["kubernetes_port_ignored"]
