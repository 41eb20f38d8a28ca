"""The UDP socket of a QUIC connection: connected to the peer, replaced by another when the network changes.

Only a connected socket is told of ICMP errors, and its kernel drops datagrams from anybody else.
"""

import asyncio
from collections.abc import Callable
import errno
import logging
import socket
from typing import Final

from .addresses import Address, reach_error

RECEIVE_SIZE: Final = 65536
"""Larger than any datagram."""
SOCKET_BUFFER: Final = 1024 * 1024
"""What is asked for; the kernel gives what it allows."""

_LOGGER = logging.getLogger(__name__)


class PeerSocket:
    """A non-blocking UDP socket on which the peer alone is heard."""

    def __init__(self, address: Address, on_readable: Callable[[PeerSocket], None]) -> None:
        """Open it, in a running loop; `on_readable` is called when there is something to `receive`.

        Raises BridgeError UNREACHABLE.
        """
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(RECEIVE_SIZE)
        self._view = memoryview(self._buffer)
        self._expiry: asyncio.TimerHandle | None = None
        self.closed = False
        self.bytes_sent = 0
        """Bytes of UDP payload that the kernel took."""
        self.bytes_received = 0
        try:
            self._socket = connected_socket(address)
        except OSError as error:
            raise reach_error(error, address) from error
        self.source = str(self._socket.getsockname()[0])
        """The local IP address that the kernel chose for it."""
        self._loop.add_reader(self._socket, on_readable, self)

    @property
    def is_preferred(self) -> bool:
        """Whether the kernel would choose the same local address again; without a way to the peer it is the same."""
        source = preferred_source(self._address)
        return source is None or source == self.source

    def receive(self) -> bytes | None:
        """Return the next datagram, None if there is none. Raises OSError for what the network reported (ICMP)."""
        try:
            size = self._socket.recv_into(self._buffer)
        except BlockingIOError, InterruptedError:
            return None
        self.bytes_received += size
        return bytes(self._view[:size])

    def send(self, datagram: bytes) -> OSError | None:
        """Send a datagram; what the kernel does not take is lost, and repaired as any loss. Return an error met."""
        trouble: OSError | None = None
        for _ in range(2):
            try:
                self.bytes_sent += self._socket.send(datagram)
            except BlockingIOError, InterruptedError:
                pass
            except OSError as error:
                if trouble is None and error.errno == errno.ECONNREFUSED:
                    trouble = error  # the answer to an earlier datagram; this one was not even tried
                    continue
                _LOGGER.debug("A datagram to %s was not sent: %s", self._address, error)
                return trouble or error
            return trouble
        return trouble

    def expire(self, seconds: float) -> None:
        """Close it after a while, in which what is still on its way can arrive."""
        if not self.closed and self._expiry is None:
            self._expiry = self._loop.call_later(seconds, self.close)

    def close(self) -> None:
        """Close it now; idempotent."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._socket)
            self._socket.close()


def connected_socket(address: Address) -> socket.socket:
    """Open a UDP socket to an address. Raises OSError."""
    sock = socket.socket(address.family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        sock.connect(address.sockaddr)
    except OSError:
        sock.close()
        raise
    return sock


def preferred_source(address: Address) -> str | None:
    """Ask the kernel's routes, without a packet, for the local IP address towards an address; None: there is no way."""
    with socket.socket(address.family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(address.sockaddr)
            return str(sock.getsockname()[0])
        except OSError:
            return None
