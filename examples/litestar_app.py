"""A Litestar host with a worker in its lifespan."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar, post
from litestar.datastructures import State
from litestar.params import FromPath

from notifyworker import Client, Run, Worker

worker = Worker()


@worker.handler("greet")
async def greet(run: Run, payload: dict[str, str]) -> str:
    return f"hello {payload['name']}"


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    async with worker, Client() as client:
        app.state.client = client
        yield


@post("/greetings/{name:str}")
async def create(name: FromPath[str], state: State) -> dict[str, str]:
    return {"run_id": str(await state.client.enqueue("greet", {"name": name}))}


app = Litestar(route_handlers=[create], lifespan=[lifespan])
