"""
Hosts: network and host name of their own, by Linux's namespaces, and workers that live on them.

Between worker and server is a network that can be unplugged: keepalives, retransmissions and acknowledgements are the
kernel's own, as no proxy has them. It wants root. `alone` puts the harness itself into a network of its own first, so
that nothing of it meets the machine's, nor is left behind.
"""

import asyncio
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from servers import Cluster

from chaos.acts import Skip
from chaos.fleet import Member, Place
from chaos.ledger import Ledger

_CLONE_NEWNET = 0x40000000
_BRIDGE = "chaos"
_NETWORK = "198.18.0"  # reserved for measurements of networks
SERVER = f"{_NETWORK}.1"
#: A clock that is an hour ahead; sleeps and deadlines go on as they are, as on a host whose clock is set wrongly.
_CLOCKS = [
    path for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib") for path in Path(folder).glob("**/faketime/libfaketime.so.1")
]
HOUR_OFF = (
    {"LD_PRELOAD": str(_CLOCKS[0]), "FAKETIME": "+1h", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DISABLE_SHM": "1"}
    if _CLOCKS
    else {}
)

_why_not = "it was not asked for"


def alone() -> None:
    """
    Put this process, and all that it starts from now on, into a network of its own, with hosts of its own.

    Before any thread is started. Where that can't be done, `wanted` raises Skip with the reason.
    """
    global _why_not  # noqa: PLW0603 - what a process is in is a fact of the process
    if sys.platform != "linux" or os.geteuid() != 0:
        _why_not = "namespaces of Linux want root"
        return
    if missing := [program for program in ("ip", "unshare", "nsenter") if shutil.which(program) is None]:
        _why_not = f"{', '.join(missing)} is not installed"
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        _why_not = f"no network of its own: {os.strerror(ctypes.get_errno())}"
        return
    try:
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "name", _BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{SERVER}/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
    except OSError as error:
        _why_not = str(error)
    else:
        _why_not = ""


def wanted() -> None:
    """Raise Skip where there can be no hosts."""
    if _why_not:
        message = f"many hosts: {_why_not}"
        raise Skip(message)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True, timeout=20)
    if done.returncode:
        message = f"ip {' '.join(words)}: {done.stderr.strip()}"
        raise OSError(message)


async def reachable(cluster: Cluster) -> None:
    """Let hosts connect to this server."""
    await cluster.conf(f"listen_addresses = '127.0.0.1,{SERVER}'")
    with (cluster.data / "pg_hba.conf").open("a") as file:
        file.write(f"host all all {_NETWORK}.0/24 trust\n")
    await cluster.restart()


class Host:
    """One of them. It is gone when its `_holder` is, which ends with the harness."""

    _number = 1  # the server's

    def __init__(self) -> None:
        Host._number += 1
        self.name = f"host{Host._number}"
        self.residents: list[Resident] = []
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "sh", "-c", "hostname $0 && ip link set lo up && echo up && exec cat", self.name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        self.namespaces = [f"/proc/{self._holder.pid}/ns/{kind}" for kind in ("net", "uts")]
        self.inside = ["nsenter", "--target", str(self._holder.pid), "--net", "--uts", "--"]
        _ip("link", "add", "name", self.name, "type", "veth", "peer", "name", "wire", "netns", str(self._holder.pid))
        _ip("link", "set", self.name, "master", _BRIDGE, "up")
        for words in (f"addr add {_NETWORK}.{Host._number}/24 dev wire", "link set wire up"):
            subprocess.run([*self.inside, "ip", *words.split()], check=True, timeout=20)

    def unplug(self) -> None:
        """Pull its cable: both sides are met by silence."""
        _ip("link", "set", self.name, "down")

    def plug(self) -> None:
        """Put it in again."""
        _ip("link", "set", self.name, "up")

    def vanish(self) -> None:
        """As if its power were gone: nobody hears of the end of what was there."""
        self.unplug()
        for resident in self.residents:
            if resident.is_running:
                resident.kill()

    async def heal(self) -> None:
        """As a proxy is healed."""
        self.plug()

    async def stop(self) -> None:
        """End it, with whatever is left of its network."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        if self._holder.poll() is None:
            self._holder.stdin.close()
            await asyncio.to_thread(self._holder.wait, 20)
            self._holder.stdout.close()


class Resident(Member):
    """A worker process on a host, started from a package that may be another version's."""

    def __init__(
        self, host: Host, name: str, *, database: str, port: int, ledger: Ledger, settings: dict[str, Any],
        package: Path | None = None, more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        super().__init__(name, database, ledger, settings)
        self.host = host
        self._port = port
        self._package = package
        self._more = more
        #: What the fleet asks of a proxy, a host can do as well.
        self.proxy = host  # type: ignore[assignment]
        program = [sys.executable, "-P", "-m", "notifyworker", "worker", "chaos.app:worker"]
        self.place = Place(host.namespaces, program if package or more else ())
        host.residents.append(self)

    @property
    def dsn(self) -> str:
        """How its worker reaches the database."""
        return f"postgresql://postgres@{SERVER}:{self._port}/{self._database}"

    def environment(self, dsn: str) -> dict[str, str]:
        """What a worker of this place finds there."""
        path = [*([str(self._package)] if self._package else []), str(Path(__file__).parents[1])]
        return {**super().environment(dsn), "PYTHONPATH": os.pathsep.join(path), **self._more}


def logged_at(event: dict[str, Any]) -> float:
    """When a worker logged this, in seconds since 1970."""
    return datetime.fromisoformat(event["timestamp"]).timestamp()
