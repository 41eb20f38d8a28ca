"""MQTT bytes over one bidirectional QUIC stream (EMQX's single-stream mode)."""

import asyncio
from dataclasses import replace
from enum import Enum, auto
import logging
from typing import Final

from ..config import BrokerConfig, TransportKind
from ..errors import BridgeError, ErrorCode
from ..status import TransportStatus
from .base import ExtraStream, StreamReceiver, TransportReceiver
from .quic_dial import Attempt, Dialler
from .quic_driver import QuicDriver
from .quic_resources import QuicResources

READ_SIZE: Final = 16 * 1024
"""Most bytes in one `data_received`."""
CLOSE_TIMEOUT: Final = 1.0
"""Seconds `close` waits for the broker to acknowledge the last bytes."""

_LOGGER = logging.getLogger(__name__)


class _State(Enum):
    NEW = auto()
    CONNECTING = auto()
    OPEN = auto()
    ENDING = auto()
    """The connection is gone; what it brought is still being delivered."""
    CLOSING = auto()
    CLOSED = auto()


class QuicTransport:
    """A Transport over QUIC v1 with ALPN `mqtt`; stream 0 carries everything.

    The session may pause reading; should the connection end meanwhile, what is held back (at most the flow window) is
    delivered nevertheless, in pieces, before `connection_lost`.
    """

    def __init__(self, config: BrokerConfig, resources: QuicResources | None = None) -> None:
        """Prepare a connection to the broker; nothing happens before `connect`."""
        self._dialler = Dialler(config, resources or QuicResources())
        self._state = _State.NEW
        self._receiver: TransportReceiver | None = None
        self._attempt: Attempt | None = None
        """What made the connection."""
        self._driver: QuicDriver | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._end: BridgeError | None = None
        self._closed = asyncio.Event()

        self._reading_paused = False
        self._incoming = bytearray()
        self._delivery: asyncio.Handle | None = None
        self._bytes_received = 0
        self._last_status: TransportStatus | None = None

    @property
    def kind(self) -> TransportKind:
        """Which transport this is."""
        return TransportKind.QUIC

    # Connecting

    async def connect(self, receiver: TransportReceiver, hello: bytes = b"") -> None:
        """Resolve, race the addresses and finish the QUIC handshake within `handshake_timeout` seconds; send `hello`.

        With early data (0-RTT) `hello` goes with the first flight. Raises BridgeError with the precise cause.
        Cancelling it releases everything at once.
        """
        if self._state is not _State.NEW:
            raise RuntimeError("A transport connects once")
        self._state = _State.CONNECTING
        self._receiver = receiver
        self._connecting = task = asyncio.current_task()
        cancelling = task.cancelling() if task is not None else 0
        try:
            await self._connect(hello)
        except asyncio.CancelledError:
            # `abort` and `close` cancel us, too; a cancellation from elsewhere goes on.
            if self._state is _State.CLOSED and task is not None and task.uncancel() <= cancelling:
                raise _closed_meanwhile() from None
            raise
        finally:
            self._connecting = None
            if self._state is _State.CONNECTING:
                self._release()

    async def _connect(self, hello: bytes) -> None:
        self._attempt = attempt = await self._dialler.connect(hello)
        if attempt.end is not None and not attempt.held:  # in this very turn of the loop
            self._snapshot()
            raise attempt.end
        # What ends the connection from here on is told by `connection_lost`.
        self._state = _State.OPEN
        self._driver = attempt.driver
        attempt.driver.hand_over(self)
        if attempt.early_data is None:
            self.write(hello)
        if attempt.held:
            self._incoming += attempt.held
            attempt.held.clear()
            self._schedule_delivery()
        if attempt.end is not None:
            self.ended(attempt.end)

    # The session's side

    def write(self, data: bytes) -> None:
        """Queue bytes; those of one turn of the loop leave together. Does nothing before and after the connection."""
        if self._state is _State.OPEN and self._driver is not None:
            self._driver.write(data)

    @property
    def backlog(self) -> int:
        """Bytes written that the broker has not acknowledged."""
        return self._driver.backlog if self._driver is not None else 0

    @property
    def written(self) -> int:
        """Bytes of the stream that were written."""
        return self._driver.written if self._driver is not None else 0

    @property
    def acknowledged(self) -> int:
        """How many of them the broker has acknowledged."""
        return self.written - self.backlog

    def open_stream(self, receiver: StreamReceiver) -> ExtraStream | None:
        """Open one more bidirectional stream; None if the broker allows no more."""
        if self._state is not _State.OPEN or self._driver is None:
            return None
        return self._driver.open_stream(receiver)

    def pause_reading(self) -> None:
        """Stop calling `data_received`; what the broker still sends, at most the flow window, waits here."""
        self._reading_paused = True

    def resume_reading(self) -> None:
        """Go on, in a later turn of the loop."""
        self._reading_paused = False
        if self._incoming:
            self._schedule_delivery()

    async def close(self) -> None:
        """Let what was written be acknowledged (at most 1 s), send CONNECTION_CLOSE 0, release everything."""
        if self._state is _State.CLOSING:
            await self._closed.wait()
            return
        if self._state is not _State.OPEN or self._driver is None:
            self.abort()
            return
        self._state = _State.CLOSING
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._driver.drain()
        except TimeoutError:
            _LOGGER.debug("Closing with %d bytes not acknowledged", self.backlog)
        finally:
            self._release()

    def abort(self) -> None:
        """Send CONNECTION_CLOSE and release everything now; what the broker has not got is dropped."""
        self._release()
        if self._connecting is not None:
            self._connecting.cancel()

    @property
    def status(self) -> TransportStatus:
        """Figures of the connection; after the end those of its last moment."""
        if self._driver is None:
            return self._last_status or self._dialler.last_status
        return self._snapshot()

    def _snapshot(self) -> TransportStatus:
        if self._attempt is not None:
            self._last_status = replace(self._attempt.status, bytes_received=self._bytes_received)
        return self._last_status or TransportStatus()

    # The driver's side

    def handshake_completed(self) -> None:
        """See DriverOwner; it was before we own the driver."""

    def stream_received(self, data: bytes) -> None:
        """See DriverOwner."""
        if self._state is _State.CLOSING or self._driver is None:
            return
        if self._reading_paused or self._incoming or len(data) > READ_SIZE:
            self._incoming += data
            if not self._reading_paused:
                self._schedule_delivery()
        else:
            self._deliver(data, self._driver)

    def pause_writing(self) -> None:
        """See DriverOwner."""
        if self._receiver is not None and self._state is _State.OPEN:
            self._receiver.pause_writing()

    def resume_writing(self) -> None:
        """See DriverOwner."""
        if self._receiver is not None and self._state is _State.OPEN:
            self._receiver.resume_writing()

    def ended(self, error: BridgeError) -> None:
        """See DriverOwner."""
        _LOGGER.debug("QUIC ended: %s", error)
        self._end = error
        if self._state is _State.OPEN:
            self._state = _State.ENDING
            if self._incoming:
                self._schedule_delivery()
            else:
                self._tell_end()

    # Delivery

    def _deliver(self, data: bytes, driver: QuicDriver) -> None:
        self._bytes_received += len(data)
        driver.consume(len(data))
        if self._receiver is not None:
            self._receiver.data_received(data)

    def _schedule_delivery(self) -> None:
        if self._delivery is None:
            self._delivery = asyncio.get_running_loop().call_soon(self._deliver_waiting)

    def _deliver_waiting(self) -> None:
        """Hand on one piece of what waits, and come back for the next in the next turn of the loop."""
        self._delivery = None
        if self._driver is None or (self._reading_paused and self._state is not _State.ENDING):
            return
        data = bytes(self._incoming[:READ_SIZE])
        del self._incoming[:READ_SIZE]
        if self._incoming:
            self._schedule_delivery()
        if data:
            self._deliver(data, self._driver)
        if self._state is _State.ENDING and not self._incoming:
            self._tell_end()

    # End

    def _tell_end(self) -> None:
        receiver, error = self._receiver, self._end
        self._release()
        if receiver is not None and error is not None:
            receiver.connection_lost(error)

    def _release(self) -> None:
        """Let go of everything, from any state."""
        self._state = _State.CLOSED
        self._receiver = None
        self._dialler.abort()
        if self._driver is not None:
            self._snapshot()
            self._driver.stop()
            self._driver = None
        if self._delivery is not None:
            self._delivery.cancel()
            self._delivery = None
        self._incoming.clear()
        self._closed.set()


def _closed_meanwhile() -> BridgeError:
    return BridgeError(ErrorCode.INTERNAL, "The connection was closed on our side before it was made")
