"""
Command lines whose process is forked from a server that has imported all of it already.

A call then takes some 20 ms of a processor in place of more than half a second, which is what a thousand calls need. It is
a process of its own, with its own arguments, environment, directory and files, and ends as an interpreter does. Those
that look at how a process starts, reads a pipe, or hears signals are started as a user does: `start` in test_cli.
"""

import asyncio
import atexit
import contextlib
import functools
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: What a command imports when it runs; the rest comes with the table of commands.
_IMPORTED = ("notifyworker.cli.app", "notifyworker.cli.database", "notifyworker.cli.live", "notifyworker.lifespan", "aiohttp.web")


async def output(
    arguments: Sequence[str], *, cwd: Path | str = "/", env: Mapping[str, str], stdin: bytes = b"", timeout_s: float = 60
) -> tuple[int, bytes, bytes]:
    """Execute `notifyworker` with these arguments to its end; its exit code as a shell's Popen has it, stdout and stderr."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(stdin)
        files[0].seek(0)
        order = json.dumps([list(arguments), str(cwd), dict(env)]).encode()
        with theirs:
            socket.send_fds(_server(), [order], [theirs.fileno(), *(file.fileno() for file in files)])
        ours.setblocking(False)
        pid = 0
        try:
            async with asyncio.timeout(timeout_s):
                pid = int(await loop.sock_recv(ours, 32))
                code = int(await loop.sock_recv(ours, 32))
        except BaseException:
            if pid:
                os.kill(pid, signal.SIGKILL)
            raise
        for file in files:
            file.seek(0)
        return code, files[1].read(), files[2].read()


@functools.cache
def _server() -> socket.socket:
    """Start the server, once in this process. It ends when its socket is closed, however that comes."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours


def _next_command(orders: socket.socket) -> list[str]:
    """In the server: fork for each order. Returns the arguments in the process that is to execute them."""
    while True:
        order, files, _, _ = socket.recv_fds(orders, 1 << 20, 4)
        if not order:
            os._exit(0)
        if os.fork() == 0:
            break
        for file in files:
            os.close(file)
        with contextlib.suppress(ChildProcessError):  # those that have told an exit code
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
    orders.close()
    told = socket.socket(fileno=files[0])
    pid = os.fork()
    if pid:
        told.send(b"%d" % pid)
        for file in files[1:]:
            os.close(file)
        told.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    told.close()
    for number, file in enumerate(files[1:]):
        os.dup2(file, number)
        os.close(file)
    arguments, cwd, env = json.loads(order)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    sys.path[:1] = [str(Path.cwd()), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    return list(arguments)


def _serve() -> None:
    for name in _IMPORTED:
        __import__(name)
    from notifyworker import __main__, cli

    assert threading.active_count() == 1
    gc.freeze()
    sys.argv = [__main__.__file__, *_next_command(socket.socket(fileno=int(sys.argv[1])))]
    cli.main()


if __name__ == "__main__":
    _serve()
