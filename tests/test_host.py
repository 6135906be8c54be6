"""A worker inside a host's lifespan: it works beside the host, and leaves nothing behind."""

import asyncio
import contextlib
import importlib.util
import signal
import sys
from pathlib import Path
from types import ModuleType
from uuid import UUID

import httpx
import uvicorn
from aiohttp import web
from servers import eventually, free_port
from test_life import settled

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    """A module of its own for each test: a worker is made when its module is imported."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


async def greet(port: int) -> UUID:
    async with httpx.AsyncClient() as client:
        return UUID((await client.post(f"http://127.0.0.1:{port}/greetings/world")).json()["run_id"])


async def test_fastapi(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    host = load("fastapi_app")
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(host.app, port=port, log_level="error", ws="none"))
    server.capture_signals = contextlib.nullcontext
    before = signal.getsignal(signal.SIGTERM)
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)

    run = await settled(connection, await greet(port))

    assert run["result"] == '"hello world"'
    assert host.worker.url is None
    assert signal.getsignal(signal.SIGTERM) is before
    server.should_exit = True
    await serving


async def test_aiohttp(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    host = load("aiohttp_app")
    runner = web.AppRunner(host.app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]

    run = await settled(connection, await greet(port))

    assert run["result"] == '"hello world"'
    assert host.worker.url is None
    await runner.cleanup()
