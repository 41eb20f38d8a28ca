"""A TCP relay in front of a broker, over which bytes travel as slowly as over a bad uplink.

What it has not taken waits in the sender's kernel, as it does with a slow line: hardly any of it is acknowledged ahead.
"""

import asyncio
from collections.abc import Coroutine
import contextlib
import socket
from typing import Self

from .udp import Address

_BUFFER = 8192
_PIECE = 2048


class SlowRelay:
    """Relays connections to `target`; the rates are in bytes a second and may be changed at any time."""

    host = "127.0.0.1"

    def __init__(self, target: Address, *, up: float = 1e9, down: float = 1e9) -> None:
        self.target = target
        self.up = up
        self.down = down
        self.port = 0
        self.flowing = asyncio.Event()
        """When it is cleared, nothing passes."""
        self.flowing.set()
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> Address:
        """Where clients connect to."""
        return self.host, self.port

    async def __aenter__(self) -> Self:
        self._listener = listener = _socket()
        listener.bind((self.host, 0))
        listener.listen()
        self.port = listener.getsockname()[1]
        self._own(self._accept(listener))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    def _own(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
            client.setblocking(False)
            self._own(self._relay(client))

    async def _relay(self, client: socket.socket) -> None:
        broker = _socket()
        with client, broker, contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_connect(broker, self.target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(client, broker, upwards=True))
                group.create_task(self._carry(broker, client, upwards=False))

    async def _carry(self, source: socket.socket, sink: socket.socket, *, upwards: bool) -> None:
        loop = asyncio.get_running_loop()
        free_at = loop.time()
        while data := await loop.sock_recv(source, _PIECE):
            await self.flowing.wait()
            free_at = max(free_at, loop.time() - 0.05) + len(data) / (self.up if upwards else self.down)
            if free_at > loop.time():
                await asyncio.sleep(free_at - loop.time())
            await loop.sock_sendall(sink, data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _socket() -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)  # what it accepts has the same
    return sock
