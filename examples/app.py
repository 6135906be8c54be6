"""
Three small handlers: what `compose.yaml` runs.

    notifyworker dev examples.app:worker
    notifyworker enqueue text.count '{"text": "to be or not to be"}'
"""

import asyncio
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from notifyworker import Fail, Retry, Run, Worker

worker = Worker()


@dataclass
class Text:
    text: str
    most: int = 3


@worker.handler("text.count")
async def count_words(run: Run, payload: Text) -> dict[str, Any]:
    words = Counter(payload.text.lower().split())
    run.log.info("counted", words=words.total())
    return {"words": words.total(), "most": words.most_common(payload.most)}


@worker.handler("text.checksum", timeout=10)
def checksum(run: Run, payload: Text) -> dict[str, Any]:  # a plain function: executed in a thread
    return {"crc32": f"{zlib.crc32(payload.text.encode()):08x}", "attempt": run.attempt}


@dataclass
class Call:
    host: str
    port: int = 80


@worker.handler("port.probe", timeout=30, retry=Retry(max_attempts=5, on=(OSError, TimeoutError)))
async def probe(run: Run, payload: Call) -> dict[str, Any]:
    """Connect to a port; worth some more attempts while nobody listens there."""
    if payload.port not in range(1, 2**16):
        message = f"there is no port {payload.port}"
        raise Fail(message)

    async def connect() -> bool:
        async with asyncio.timeout(5):
            _reader, writer = await asyncio.open_connection(payload.host, payload.port)
        writer.close()
        await writer.wait_closed()
        return True

    # An effect: a shadow run records it and does not connect.
    return {"open": await run.effect("connect", connect, shadow_result=None)}
