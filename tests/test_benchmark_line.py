"""The bad line of benchmarks/network.py does what its figures say."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
import socket

import pytest
from pytest_socket import socket_allow_hosts

from benchmarks.line import AWAY_ADDRESS, Line, why_not

from .support.processes import wait_until

pytestmark = [
    pytest.mark.usefixtures("socket_enabled", "line_allowed"),
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]
PORT = 5000


@pytest.fixture
def line_allowed(socket_enabled: None) -> Iterator[None]:
    """Let sockets connect to the line's ends, too; the harness allows loopback alone."""
    socket_allow_hosts([AWAY_ADDRESS, "127.0.0.1"])
    yield
    socket_allow_hosts(["127.0.0.1"])


async def udp_pair(line: Line) -> tuple[socket.socket, socket.socket]:
    """Open a socket at home and one away that it sends to."""
    async with line.away.entered():
        away = socket.socket(type=socket.SOCK_DGRAM)
    away.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
    away.bind((AWAY_ADDRESS, PORT))
    async with line.home.entered():
        home = socket.socket(type=socket.SOCK_DGRAM)
    home.connect((AWAY_ADDRESS, PORT))
    for sock in (home, away):
        sock.setblocking(False)
    return home, away


def received(sock: socket.socket) -> int:
    """Take all that is there."""
    number = 0
    while True:
        try:
            sock.recv(2048)
        except BlockingIOError:
            return number
        number += 1


async def test_loss_and_cut() -> None:
    sent = 2000
    async with Line() as line:
        await line.shape(0.2, 0.0)
        home, away = await udp_pair(line)
        with home, away:
            for _ in range(sent // 20):
                for _ in range(20):
                    home.send(bytes(100))
                await line.mark()  # has carried these
            arrived = received(away)
            # Five standard deviations either way.
            assert abs(arrived - 0.8 * sent) < 90
            await line.shape(0.0, 0.0)
            await line.cut()
            home.send(b"lost")
            await line.mark()
            assert not received(away)
            await line.mend()
            home.send(b"arrives")
            await wait_until(lambda: received(away), what="a datagram")


async def test_round_trip_and_tcp_over_losses() -> None:
    """TCP meets the same losses, and repairs them."""
    data = bytes(range(256)) * 400
    loop = asyncio.get_running_loop()
    async with Line() as line:
        await line.shape(0.0, 0.1)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(len(data)))
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        async with line.away.entered():
            server = await asyncio.start_server(answer, AWAY_ADDRESS, PORT)
        async with server:
            began = loop.time()
            async with line.home.entered():
                reader, writer = await asyncio.open_connection(AWAY_ADDRESS, PORT)
            assert loop.time() - began >= 0.1
            first = await line.first_packet()
            assert first is not None
            assert began <= first < began + 0.1  # the SYN
            await line.shape(0.05, 0.01)
            writer.write(data)
            assert await reader.readexactly(len(data)) == data
            writer.close()
            await writer.wait_closed()


def line_processes() -> list[str]:
    """Return the processes of ours that carry packets."""
    children = Path("/proc/thread-self/children").read_text().split()
    return [pid for pid in children if b"benchmarks.line" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def test_nothing_is_left() -> None:
    async with Line():
        assert len(line_processes()) == 1
    assert not line_processes()
