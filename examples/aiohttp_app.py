"""An aiohttp host with a worker in its cleanup context."""

from collections.abc import AsyncIterator

from aiohttp import web

from notifyworker import Client, Run, Worker

worker = Worker()


@worker.handler("greet")
def greet(run: Run, payload: dict[str, str]) -> str:
    return f"hello {payload['name']}"


async def working(app: web.Application) -> AsyncIterator[None]:
    async with worker, Client() as client:
        app[CLIENT] = client
        yield


async def create(request: web.Request) -> web.Response:
    run_id = await request.app[CLIENT].enqueue("greet", {"name": request.match_info["name"]})
    return web.json_response({"run_id": str(run_id)})


CLIENT = web.AppKey("client", Client)
app = web.Application()
app.cleanup_ctx.append(working)
app.router.add_post("/greetings/{name}", create)
