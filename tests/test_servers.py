"""The Docker fixture, without an engine: an engine that can't serve us counts as none, and nothing is left in it."""

from typing import Any

import docker.errors  # type: ignore[import-untyped]
import pytest
import servers


class Container:
    def __init__(self, ports: dict[str, Any] | None, *, ends: bool = False) -> None:
        self.attrs: dict[str, Any] = {
            "Config": {"Image": "postgres:18"},
            "State": {"Health": {"Status": "healthy"}},
            "NetworkSettings": {"Ports": ports},
        }
        self.ends = ends
        self.removed = False

    def reload(self) -> None:
        if self.ends:
            message = "no such container"
            raise docker.errors.NotFound(message)

    def remove(self, *, force: bool, v: bool) -> None:
        self.removed = force and v


@pytest.mark.parametrize(
    ("container", "told"),
    [
        (Container({}), "publishes no ports; NOTIFYWORKER_TEST_DOCKER_NETWORK=host"),
        (Container(None), "publishes no ports"),
        (Container({"5432/tcp": [{"HostIp": "127.0.0.1", "HostPort": "1"}]}), "127.0.0.1:1 is not reached from here"),
        (Container({}, ends=True), "ended, and removed itself, before it was healthy"),
    ],
    ids=["no port", "no ports", "unreachable", "ended"],
)
async def test_an_engine_that_cannot_serve_us_is_none(container: Container, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_run_container", lambda *_: container)
    monkeypatch.delenv("NOTIFYWORKER_TEST_DOCKER_NETWORK", raising=False)
    monkeypatch.setenv("NOTIFYWORKER_TEST_PG", "docker")

    with pytest.raises(servers.NoEngine, match=told):
        async with servers.provide():
            pass

    assert container.removed


def test_the_container_s_options() -> None:
    published = servers.container_options(port=5432, password="p", host_network=False)
    assert published["ports"] == {"5432/tcp": ("127.0.0.1", 0)}  # never another interface than loopback
    assert "network_mode" not in published

    host = servers.container_options(port=5555, password="p", host_network=True)
    assert host["network_mode"] == "host"
    assert "ports" not in host
    assert host["command"][:2] == ["-p", "5555"]
    assert "listen_addresses=127.0.0.1" in host["command"]
    assert "5555" in host["healthcheck"]["test"]


def test_a_dsn_for_another_login() -> None:
    for dsn in ("postgresql://h:1/d?x=y", "postgresql://postgres@h:1/d?x=y", "postgresql://postgres:pw@h:1/d?x=y"):
        assert servers.as_role(dsn, "r", "s") == "postgresql://r:s@h:1/d?x=y"
