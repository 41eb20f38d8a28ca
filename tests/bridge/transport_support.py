"""The two ends of a transport under test: a receiver that records, and a TCP peer behind it that does as told."""

import asyncio
from collections.abc import Callable
from pathlib import Path
import ssl
from typing import override

from custom_components.quic_bridge.bridge.config import BrokerConfig, QuicConfig, TlsConfig, TransportKind
from custom_components.quic_bridge.bridge.errors import BridgeError
from custom_components.quic_bridge.bridge.transport.base import Transport

from ..support.processes import PATIENCE, wait_until

MAX_READ = 16 * 1024
QUICK = QuicConfig(handshake_timeout=5.0, ping_interval=0.3, ping_timeout=0.3, idle_timeout=5.0)
"""Liveness within fractions of a second."""


def payload(size: int, seed: int = 0) -> bytes:
    """Make bytes that tell their place, and that the QUIC front does not take for MQTT."""
    text = b"".join(b"%08d" % number for number in range(seed, seed + size // 8 + 1))
    return b"\0" + text[: size - 1]


def quic_config(
    address: tuple[str, int], ca: str | None, *, quic: QuicConfig | None = None, tls: TlsConfig | None = None
) -> BrokerConfig:
    """Make the configuration of a broker over QUIC."""
    return BrokerConfig(
        host=address[0],
        port=address[1],
        client_id="test",
        transport=TransportKind.QUIC,
        tls=tls or TlsConfig(ca=ca),
        quic=quic or QuicConfig(handshake_timeout=5.0),
    )


def tcp_config(address: tuple[str, int], *, tls: TlsConfig | None = None, connect_timeout: float = 5.0) -> BrokerConfig:
    """Make the configuration of a broker over TCP."""
    return BrokerConfig(host=address[0], port=address[1], client_id="test", tls=tls, connect_timeout=connect_timeout)


class Receiver:
    """Takes what a transport gives, and remembers the order of things."""

    def __init__(self) -> None:
        """Start with nothing received."""
        self.data = bytearray()
        self.sizes: list[int] = []
        self.lost: list[BridgeError] = []
        self.pauses = 0
        self.resumed_at: list[int] = []
        """The backlog at each `resume_writing`."""
        self.writable = True
        self.pause_after: int | None = None
        """Call `pause_reading` of `transport` when so many bytes have come."""
        self.transport: Transport | None = None
        self.on_data: Callable[[], None] | None = None
        """Called from within `data_received`."""

    def data_received(self, data: bytes) -> None:
        """See TransportReceiver."""
        assert not self.lost, "data after the end"
        self.data += data
        self.sizes.append(len(data))
        if self.on_data is not None:
            self.on_data()
        if self.pause_after is not None and len(self.data) >= self.pause_after and self.transport is not None:
            self.pause_after = None
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        """See TransportReceiver."""
        assert self.writable, "paused twice"
        self.writable = False
        self.pauses += 1

    def resume_writing(self) -> None:
        """See TransportReceiver."""
        assert not self.writable, "resumed without a pause"
        self.writable = True
        if self.transport is not None:
            self.resumed_at.append(self.transport.backlog)

    def connection_lost(self, error: BridgeError) -> None:
        """See TransportReceiver."""
        self.lost.append(error)

    async def wait_data(self, size: int, seconds: float = PATIENCE) -> bytes:
        """Wait until so many bytes have come in all, and return them."""
        await wait_until(lambda: len(self.data) >= size, seconds, f"{size} bytes (there are {len(self.data)})")
        return bytes(self.data)

    async def wait_lost(self, seconds: float = PATIENCE) -> BridgeError:
        """Wait for the end, and return its cause."""
        await wait_until(lambda: self.lost, seconds, "end of the connection")
        assert len(self.lost) == 1
        return self.lost[0]


async def refusal(transport: Transport) -> BridgeError:
    """Connect, and return why that is impossible: told by `connect` or, late, by `connection_lost`."""
    receiver = Receiver()
    try:
        await transport.connect(receiver)
    except BridgeError as error:
        assert not receiver.lost
        return error
    try:
        return await receiver.wait_lost()
    finally:
        transport.abort()


class PeerConnection(asyncio.Protocol):
    """A connection that the peer accepted."""

    def __init__(self, peer: Peer) -> None:
        """Belong to a peer."""
        self.peer = peer
        self.data = bytearray()
        self.reads = 0
        self.closed = False
        self.eof = False
        self.transport: asyncio.Transport | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.peer.connections.append(self)
        if self.peer.greeting:
            transport.write(self.peer.greeting)

    @override
    def data_received(self, data: bytes) -> None:
        self.data += data
        self.reads += 1
        if self.peer.echo and self.transport is not None:
            self.transport.write(data)

    @override
    def eof_received(self) -> None:
        self.eof = True

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True

    def send(self, data: bytes) -> None:
        """Send bytes to the transport under test."""
        assert self.transport is not None
        self.transport.write(data)

    async def wait_data(self, size: int, seconds: float = PATIENCE) -> bytes:
        """Wait until so many bytes have come in all, and return them."""
        await wait_until(lambda: len(self.data) >= size, seconds, f"{size} bytes at the peer")
        return bytes(self.data)

    def pause(self) -> None:
        """Read nothing more."""
        assert self.transport is not None
        self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        assert self.transport is not None
        self.transport.resume_reading()


class Peer:
    """A TCP server on loopback: the far end of the byte stream."""

    def __init__(self, *, echo: bool = False, greeting: bytes = b"") -> None:
        """Make it; `greeting` is sent to each connection at once."""
        self.echo = echo
        self.greeting = greeting
        self.connections: list[PeerConnection] = []
        self._server: asyncio.Server | None = None

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        """Listen, with or without TLS."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: PeerConnection(self), "127.0.0.1", 0, ssl=tls)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return host, port

    async def connection(self, number: int = 1) -> PeerConnection:
        """Wait for the number-th connection."""
        await wait_until(lambda: len(self.connections) >= number, what=f"connection {number} at the peer")
        return self.connections[number - 1]

    async def stop(self) -> None:
        """Close everything."""
        assert self._server is not None
        self._server.close()
        for connection in self.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await wait_until(lambda: all(connection.closed for connection in self.connections), what="closed connections")
        await self._server.wait_closed()


def open_files() -> set[str]:
    """List what this process has open, sockets above all."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name}={entry.readlink()}")
        except OSError:
            continue
    return found
