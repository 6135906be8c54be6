"""The process that `notifyworker dev` starts anew: a worker that ends when its standard input does."""

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING

from notifyworker.cli import told
from notifyworker.errors import NotifyWorkerError

if TYPE_CHECKING:
    from notifyworker.lifespan import Ending, Worker


def main() -> int:
    """Read the settings of the command line from the first line of standard input, and work."""
    from notifyworker.cli.load import load_worker
    from notifyworker.cli.options import log_early
    from notifyworker.cli.worker import executed
    from notifyworker.observe import configure_logging

    given = json.loads(sys.stdin.buffer.readline())
    log_early(given.get("log_format"), given.get("log_level"))
    found = load_worker(sys.argv[1])
    found.configure(given)
    configure_logging(found.settings.log_format, found.settings.log_level)
    return executed(found, _run(found))


async def _run(found: "Worker") -> "Ending":
    loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()

    def ended() -> None:
        if not os.read(stdin, 4096):
            loop.remove_reader(stdin)
            found.stop()

    loop.add_reader(stdin, ended)
    return await found.run()


if __name__ == "__main__":
    try:
        code = main()
    except NotifyWorkerError as error:
        code = told(error)
    sys.exit(code)
