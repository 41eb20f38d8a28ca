"""A TCP front that refuses versions of MQTT as older or stricter brokers than the one behind it do."""

import asyncio
import contextlib
from dataclasses import replace
from typing import Self

from .packets import Connect, Splitter

BRIDGE_BIT = 0x80
_REFUSED = b"\x20\x02\x00\x01"
"""CONNACK of MQTT 3.1.1: unacceptable protocol version."""


class VersionGate:
    """Lets CONNECTs of some protocol levels through to a broker. `levels` has all that came, in order."""

    host = "127.0.0.1"

    def __init__(
        self, broker: tuple[str, int], *allowed: int, silent: bool = False, ignores_bridge_bit: bool = False
    ) -> None:
        """`silent`: the connection is closed without the CONNACK that says why."""
        self.levels: list[int] = []
        self.port = 0
        self._broker = broker
        self._allowed = allowed
        self._silent = silent
        self._ignores_bridge_bit = ignores_bridge_bit
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._on_connection, self.host)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            splitter, data = Splitter(), b""
            packets: list[bytes] = []
            while not packets:
                piece = await reader.read(65_536)
                if not piece:
                    return
                data += piece
                packets = splitter.feed(piece)
            connect = Connect.decode(packets[0])
            level = connect.level
            self.levels.append(level)
            if self._ignores_bridge_bit:
                data = replace(connect, level=level & ~BRIDGE_BIT).encode() + data[len(packets[0]) :]
            if level not in self._allowed:
                writer.write(b"" if self._silent else _REFUSED)
                await writer.drain()
                return
            broker_reader, broker_writer = await asyncio.open_connection(*self._broker)
            with contextlib.closing(broker_writer):
                broker_writer.write(data)
                pipes = [
                    asyncio.create_task(_pipe(reader, broker_writer)),
                    asyncio.create_task(_pipe(broker_reader, writer)),
                ]
                try:
                    await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pipe in pipes:
                        pipe.cancel()
                    await asyncio.gather(*pipes, return_exceptions=True)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
