"""A FastAPI host with a worker in its lifespan: the request inserts the run, the worker beside it executes it."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI

from notifyworker import Run, Worker

worker = Worker()


@worker.handler("greet")
async def greet(run: Run, payload: dict[str, str]) -> str:
    return f"hello {payload['name']}"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["NOTIFYWORKER_DSN"], min_size=1) as pool, worker:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/greetings/{name}")
async def create(name: str) -> dict[str, str]:
    insert = (
        "INSERT INTO notifyworker.runs (kind, payload) VALUES ('greet', jsonb_build_object('name', $1::text)) RETURNING run_id"
    )
    return {"run_id": str(await app.state.pool.fetchval(insert, name))}
