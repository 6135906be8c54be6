"""A Starlette host with a worker in its lifespan."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from notifyworker import Client, Run, Worker

worker = Worker()


@worker.handler("greet")
async def greet(run: Run, payload: dict[str, str]) -> str:
    return f"hello {payload['name']}"


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with worker, Client() as client:
        app.state.client = client
        yield


async def create(request: Request) -> JSONResponse:
    run_id = await request.app.state.client.enqueue("greet", {"name": request.path_params["name"]})
    return JSONResponse({"run_id": str(run_id)})


app = Starlette(lifespan=lifespan, routes=[Route("/greetings/{name}", create, methods=["POST"])])
