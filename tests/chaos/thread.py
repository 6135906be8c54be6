"""The thread in which all proxies live, so that nothing the harness does delays what they do."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class ProxyThread:
    """The thread and loop in which all proxies live."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="chaos proxies", daemon=True)
        self._thread.start()

    async def do(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Execute it there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    def stop(self) -> None:
        """End the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
