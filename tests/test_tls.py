"""TLS to the database, as the DSN asks for: all sessions have it, and a server that can't prove who it is gets none."""

import asyncio
import contextlib
import re
import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import asyncpg
import pytest
from servers import Cluster, eventually
from test_attacks import cli
from test_faults import cluster  # noqa: F401 - a fixture
from test_life import insert, settled

from notifyworker import Run, StartError, Worker
from notifyworker.embedded import server_account
from notifyworker.migrate import migrate

# ruff: noqa: F811 - fixtures of test_faults are asked for by their names

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def openssl(*arguments: str, cwd: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True)


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass
class Certificates:
    """Two authorities, `ca` and `strange`; the first has signed for 127.0.0.1 (`server`) and for another host (`elsewhere`)."""

    folder: Path

    def __post_init__(self) -> None:
        for ca in ("ca", "strange"):
            openssl(
                "req",
                "-x509",
                *_KEY,
                "-keyout",
                f"{ca}.key",
                "-out",
                f"{ca}.crt",
                "-days",
                "2",
                "-subj",
                f"/CN={ca}",
                cwd=self.folder,
            )
        for name, host in (("server", "IP:127.0.0.1"), ("elsewhere", "DNS:db.example.org")):
            (self.folder / f"{name}.ext").write_text(f"subjectAltName={host}")
            openssl("req", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}", cwd=self.folder)
            openssl(
                "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt", cwd=self.folder,
            )  # fmt: skip

    def context(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        return context


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


class Front:
    """TLS as PostgreSQL speaks it, in front of a server that was built without: plain text does not come through."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.context = context
        self._to = port
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for writer in self._open:
            if not writer.transport.is_closing():
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if await reader.readexactly(8) != b"\0\0\0\x08\x04\xd2\x16\x2f":  # SSLRequest
                writer.transport.abort()
                return
            writer.write(b"S")
            await writer.start_tls(self.context)
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to)
            self._open.add(to_writer)
            await asyncio.gather(self._pump(reader, to_writer), self._pump(to_reader, writer))
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


def programs_with_tls() -> Path | None:
    """PostgreSQL from the system's packages: the embedded one is built without TLS."""
    for found in sorted([*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")], reverse=True):
        if (found / "initdb").exists():
            configured = subprocess.run([found / "pg_config", "--configure"], capture_output=True, text=True, check=True).stdout
            if "--with-openssl" in configured or "--with-ssl=openssl" in configured:
                return found
    return None


def worker_of(dsn: str) -> Worker:
    worker = Worker(dsn, poll_interval_s=60)

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    return worker


async def test_every_session_with_a_server_that_has_tls_has_it(certificates):
    if (programs := programs_with_tls()) is None:
        pytest.skip("no PostgreSQL with TLS is installed")
    async with Cluster(programs=programs) as cluster:
        for name in ("server.crt", "server.key"):
            shutil.copy(certificates.folder / name, cluster.data / name)
            (cluster.data / name).chmod(0o600)
            if account := server_account():
                shutil.chown(cluster.data / name, account["user"], account["group"])
        await cluster.conf("ssl = on")
        (cluster.data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust\n")
        await cluster.restart()
        dsn = f"{cluster.dsn}?sslmode=verify-full&sslrootcert={certificates.folder / 'ca.crt'}"
        await migrate(dsn, "notifyworker")
        conn = await asyncpg.connect(dsn)
        async with worker_of(dsn) as worker:
            await eventually(lambda: worker._conductor.leader.mode == "armed")
            assert (await settled(conn, await insert(conn, "a")))["state"] == "completed"
            sessions = "SELECT ssl, count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'notifyworker%' GROUP BY ssl"
            assert {row["ssl"] for row in await conn.fetch(sessions)} == {True}
            assert worker._conductor.health() == []
        await conn.close()
        with pytest.raises(StartError, match="no encryption"):
            await worker_of(f"{cluster.dsn}?sslmode=disable").__aenter__()


#: Whose certificate the server shows (none: it has no TLS), what the DSN asks for, how the command ends and what it says.
REFUSED = [
    (
        "server",
        "sslmode=verify-full&sslrootcert={}/strange.crt",
        3,
        r"TLS with \S+ failed: .*certificate.*sslrootcert of the DSN",
    ),
    ("elsewhere", "sslmode=verify-full&sslrootcert={}/ca.crt", 3, r"failed: .*mismatch, certificate is not valid for '127"),
    ("server", "sslmode=verify-full", 2, r"dsn: root certificate file .* does not exist.*sslrootcert=FILE"),
    ("server", "sslmode=verify-full&sslrootcert={}/none.crt", 3, r"sslrootcert of the DSN names a file that is not there"),
    (None, "sslmode=require", 3, r"has no TLS, which sslmode of the DSN asks for"),
]


async def test_a_server_that_does_not_prove_who_it_is_is_refused_in_one_sentence(cluster, certificates, monkeypatch):
    monkeypatch.setenv("HOME", str(certificates.folder))
    for certificate, options, code, told in REFUSED:
        async with contextlib.AsyncExitStack() as stack:
            port = cluster.port
            if certificate is not None:
                port = (await stack.enter_async_context(Front(port, certificates.context(certificate)))).port
            dsn = f"postgresql://postgres:hush@127.0.0.1:{port}/postgres?{options.format(certificates.folder)}"
            ended, printed = await cli("worker", "faulty_app:worker", "--no-sidecar", dsn=dsn)
        assert (ended, "hush" in printed, "Traceback" in printed) == (code, False, False), printed
        assert re.search(told, " ".join(printed.split())), printed


async def test_a_certificate_that_turns_bad_is_told_and_waited_out(cluster, certificates):
    conn = await asyncpg.connect(cluster.dsn)
    async with Front(cluster.port, certificates.context("server")) as front:
        dsn = (
            f"postgresql://postgres@127.0.0.1:{front.port}/postgres?sslmode=verify-full&sslrootcert={certificates.folder}/ca.crt"
        )
        async with worker_of(dsn) as worker:
            assert (await settled(conn, await insert(conn, "a")))["state"] == "completed"
            front.context = certificates.context("elsewhere")
            front.cut()
            await eventually(lambda: any("certificate" in reason for reason in worker._conductor.health()))
            run_id = await insert(conn, "a")
            front.context = certificates.context("server")
            assert (await settled(conn, run_id))["state"] == "completed"
            await eventually(lambda: worker._conductor.health() == [])
    await conn.close()
