"""The sidecar of a worker under those who speak no HTTP, speak it slowly, or open connections and leave them."""

# ruff: noqa: F811 - fixtures of other tests are asked for by their names

import asyncio
import contextlib
import random
import resource
import time
from collections.abc import AsyncIterator

import aiohttp
import hypothesis
import psutil
import pytest
from hypothesis import strategies as st
from servers import SURELY_S, eventually, free_port
from test_faults import Process, ledger, spawn  # noqa: F401 - fixtures
from test_http import Caller, ask  # noqa: F401 - a fixture
from test_life import insert, settled

from notifyworker.http import connections

HOST = b"Host: localhost\r\n"
END = b"Connection: close\r\n\r\n"


@contextlib.asynccontextmanager
async def opened(port: int, first: bytes = b"") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(30):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


SLOW = {
    "nothing": (b"", b""),
    "half a line": (b"GET /livez HT", b""),
    "a line, slowly": (b"GET /", b"a"),
    "a header, slowly": (b"GET /livez HTTP/1.1\r\n" + HOST + b"X: ", b"a"),
    "headers, slowly": (b"GET /livez HTTP/1.1\r\n" + HOST, b"X: a\r\n"),
    "a second head, slowly": (b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\nGET /livez HTTP/1.1\r\nX: ", b"a"),
}


@pytest.mark.parametrize(("first", "then"), SLOW.values(), ids=SLOW)
async def test_a_head_that_does_not_end_is_not_waited_for(ask: Caller, monkeypatch, first, then):
    monkeypatch.setattr(connections, "KEEPALIVE_S", 0.5)
    async with opened(ask.port, first) as (reader, writer):
        closed = asyncio.create_task(until_closed(reader))
        while not closed.done():
            writer.write(then)
            await asyncio.wait({closed}, timeout=0.05)
        await closed
    await eventually(lambda: not ask.sidecar._runner.server.connections)


async def test_who_takes_no_answers_is_cut(ask: Caller, monkeypatch):
    monkeypatch.setattr(connections, "WRITE_S", 0.5)
    server = ask.sidecar._runner.server
    async with opened(ask.port) as (_, writer):
        writer.transport.pause_reading()
        writer.write((b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n") * 3000)
        await eventually(lambda: server.connections)
        assert (await ask.get("/livez")).status == 200
        await eventually(lambda: len(server.connections) <= 1)  # our own


async def test_the_oldest_idle_connection_makes_room(ask: Caller, monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 5)
    async with contextlib.AsyncExitStack() as stack:
        listener = await stack.enter_async_context(opened(ask.port, b"GET /events HTTP/1.1\r\n" + HOST + b"\r\n"))
        await listener[0].readuntil(b"retry: 2000\n\n")
        silent = [await stack.enter_async_context(opened(ask.port)) for _ in range(4)]
        await eventually(lambda: len(ask.sidecar._runner.server.connections) == 5)
        answer = await ask.raw(b"GET /livez HTTP/1.1\r\n" + HOST + END)

        assert answer.status == 200
        assert await until_closed(silent[0][0]) == b""
        assert not silent[3][0].at_eof()
        ask.sidecar.publish({"still": "here"})
        assert b"still" in await listener[0].readuntil(b"\n\n")


PIECES = st.one_of(
    st.sampled_from(
        [
            b"GET /livez HTTP/1.1\r\n", b"GET /runs?limit=1 HTTP/1.1\r\n", b"POST /runs HTTP/1.1\r\n", b"HEAD / HTTP/1.0\r\n", HOST, END,
            b"Transfer-Encoding: chunked\r\n", b"Content-Length: 20\r\n", b"Content-Length: 99999999999999999999\r\n", b"\r\n", b"\n", b"\r",
            b"5\r\nhello\r\n", b"0\r\n\r\n", b"ffffffffffffffffff\r\n", b"5;ext=\xff\r\n", b"-1\r\n", b"Content-Encoding: gzip\r\n", b"Expect: 100-continue\r\n",
            b'{"kind": "k"}', b'{"kind": "\xff"}', b"Cookie: a=\xff; b\r\n", b"Authorization: Bearer \xc3\r\n", b"X: " + b"x" * 9000 + b"\r\n",
            b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"X: y\r\n" * 300, b"Content-Type: multipart/form-data; boundary=\xe4\r\n", b" folded\r\n",
        ]
    ),
    st.binary(max_size=40),
)  # fmt: skip


async def test_whatever_is_sent_is_answered_properly_or_not_at_all(ask: Caller, monkeypatch, caplog):
    for name, value in (("KEEPALIVE_S", 0.2), ("_LINGERING_S", 0.1)):
        monkeypatch.setattr(connections, name, value)
    monkeypatch.setattr("notifyworker.http.body.DEADLINE_S", 0.2)
    loop = asyncio.get_running_loop()

    async def sent(pieces: list[bytes]) -> None:
        async with opened(ask.port, b"".join(pieces)) as (reader, writer):
            with contextlib.suppress(OSError):
                writer.write_eof()
            answers = await until_closed(reader)
        assert b" 500 " not in answers, (pieces, answers)
        assert b"Traceback" not in answers
        assert answers == b"" or answers.startswith((b"HTTP/1.1 ", b"HTTP/1.0 "))

    @hypothesis.settings(max_examples=150, derandomize=True, database=None, deadline=None)
    @hypothesis.given(st.lists(PIECES, max_size=12))
    def whatever(pieces: list[bytes]) -> None:
        asyncio.run_coroutine_threadsafe(sent(pieces), loop).result(2 * SURELY_S)

    await asyncio.to_thread(whatever)
    assert not caplog.records
    await eventually(lambda: not ask.sidecar._runner.server.connections)
    assert (await ask.get("/healthz")).status == 200


async def test_ten_thousand_connections_opened_and_left_disturb_nobody(spawn, connection, monkeypatch):
    """As many as this process may have descriptors; each sends nothing, or part of a request."""
    port = free_port()
    worker = await spawn(sidecar="true", port=port).started()
    await eventually(lambda: worker.events("sidecar_listening"))
    process = psutil.Process(worker.popen.pid)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(10_000, (min(hard, 20_000) if hard != resource.RLIM_INFINITY else 20_000) - 1000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted + 1000), hard))
    before, memory = process.num_fds(), process.memory_info().rss
    most = 0
    left: list[asyncio.Transport] = []
    loop = asyncio.get_running_loop()
    chance = random.Random(1)
    parts = [
        b"",
        b"GET",
        b"GET /livez HTTP/1.1\r\nX: ",
        b"POST /runs HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\n",
        b"\xff\xfe\x00",
        b"x" * 9000,
    ]
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SURELY_S)) as http:
            began = time.monotonic()
            while len(left) < wanted:
                for _ in range(250):
                    transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
                    transport.write(chance.choice(parts))
                    left.append(transport)
                async with http.get(f"http://127.0.0.1:{port}/livez", headers={"Connection": "close"}) as answer:
                    assert answer.status == 200
                most = max(most, process.num_fds())
                run = await settled(connection, await insert(connection, "noop"))
                assert run["state"] == "completed"
            took_s = time.monotonic() - began
            assert most < before + 2 * connections.MAX_CONNECTIONS + 50, (before, most, took_s)
            assert process.memory_info().rss < memory + 50 * 2**20
    finally:
        for transport in left:
            transport.abort()
    await eventually(lambda: process.num_fds() <= before + 5)
    assert not worker.events("sidecar_error")
    assert not worker.exited()
