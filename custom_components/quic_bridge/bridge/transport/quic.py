"""MQTT bytes over one bidirectional QUIC stream (EMQX's single-stream mode)."""

import asyncio
from enum import Enum, auto
import logging
import socket
from typing import Final

from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion

from ..config import BrokerConfig, TlsConfig, TransportKind
from ..errors import BridgeError, ErrorCode
from ..status import TransportStatus
from ..tls import CertificateVerifier, ClientIdentity, server_name
from .addresses import Address, in_executor, no_answer, resolve, try_addresses
from .aioquic_internals import CertificateCheck, ClientConnection
from .base import ExtraStream, StreamReceiver, TransportReceiver
from .quic_driver import QuicDriver

ALPN: Final = "mqtt"
CONGESTION_CONTROLS: Final = frozenset({"reno", "cubic"})
"""What aioquic offers."""
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

    def __init__(self, config: BrokerConfig) -> None:
        """Prepare a connection to the broker; nothing happens before `connect`."""
        self._config = config
        self._state = _State.NEW
        self._receiver: TransportReceiver | None = None
        self._driver: QuicDriver | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._handshake: asyncio.Future[BridgeError | None] | None = None
        self._end: BridgeError | None = None
        self._closed = asyncio.Event()

        self._reading_paused = False
        self._incoming = bytearray()
        self._delivery: asyncio.Handle | None = None
        self._bytes_received = 0
        self._handshake_ms: float | None = None
        self._last_status = TransportStatus()

    @property
    def kind(self) -> TransportKind:
        """Which transport this is."""
        return TransportKind.QUIC

    # Connecting

    async def connect(self, receiver: TransportReceiver) -> None:
        """Resolve, dial each address in turn and finish the QUIC handshake within `handshake_timeout` seconds.

        Raises BridgeError with the precise cause. Cancelling it releases everything at once.
        """
        if self._state is not _State.NEW:
            raise RuntimeError("A transport connects once")
        self._state = _State.CONNECTING
        self._receiver = receiver
        self._connecting = task = asyncio.current_task()
        cancelling = task.cancelling() if task is not None else 0
        try:
            await self._connect()
        except asyncio.CancelledError:
            # `abort` and `close` cancel us, too; a cancellation from elsewhere goes on.
            if self._state is _State.CLOSED and task is not None and task.uncancel() <= cancelling:
                raise _closed_meanwhile() from None
            raise
        finally:
            self._connecting = None
            if self._state is _State.CONNECTING:
                self._release()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        config = self._config
        deadline = loop.time() + config.quic.handshake_timeout
        tls = config.tls or TlsConfig()
        name = server_name(config)
        identity, verify = await in_executor(deadline, _load_tls, tls, name)
        addresses = await resolve(config.host, config.port, socket.SOCK_DGRAM, deadline)

        async def dial(address: Address, deadline: float) -> None:
            await self._dial(address, deadline, name, identity, verify)

        await try_addresses(addresses, deadline, dial)
        # What ends the connection from here on is told by `connection_lost`.
        self._state = _State.OPEN

    async def _dial(
        self,
        address: Address,
        deadline: float,
        name: str,
        identity: ClientIdentity | None,
        verify: CertificateCheck | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        connection = ClientConnection(configuration=self._configuration(name, identity), verify=verify)
        self._handshake = handshake = loop.create_future()
        self._end = None
        self._driver = driver = QuicDriver(connection, address, self._config.quic, self)
        started = loop.time()
        told = False
        try:
            driver.start()
            async with asyncio.timeout_at(deadline):
                error = await handshake
            told = True
        except TimeoutError:
            raise no_answer(address, loop.time() - started, _silence(driver)) from None
        finally:
            self._handshake = None
            if not told:  # also when the deadline or a cancellation came in the same turn as the handshake's end
                self._drop_driver()
        # `ended` may have come between the handshake and this turn of the loop.
        error = error or self._end
        if error is not None:
            self._drop_driver()
            if error.code is ErrorCode.IDLE_TIMEOUT:
                raise no_answer(address, loop.time() - started, _silence(driver))
            raise error
        self._handshake_ms = (loop.time() - started) * 1000
        _LOGGER.debug("QUIC to %s: handshake done in %.0f ms", address, self._handshake_ms)

    def _configuration(self, name: str, identity: ClientIdentity | None) -> QuicConfiguration:
        quic = self._config.quic
        if quic.max_datagram_size < SMALLEST_MAX_DATAGRAM_SIZE:
            raise BridgeError(
                ErrorCode.CONFIGURATION, f"QUIC datagrams cannot be smaller than {SMALLEST_MAX_DATAGRAM_SIZE} bytes"
            )
        if quic.congestion_control not in CONGESTION_CONTROLS:
            raise BridgeError(
                ErrorCode.CONFIGURATION, f"There is no congestion control {quic.congestion_control!r} for QUIC"
            )
        configuration = QuicConfiguration(
            alpn_protocols=[ALPN],
            congestion_control_algorithm=quic.congestion_control,
            idle_timeout=quic.idle_timeout,
            initial_rtt=quic.initial_rtt,
            is_client=True,
            max_data=quic.flow_window,
            max_datagram_size=quic.max_datagram_size,
            max_stream_data=quic.flow_window,
            server_name=name,
            supported_versions=[QuicProtocolVersion.VERSION_1],
        )
        if identity is not None:
            configuration.certificate = identity.certificate
            configuration.certificate_chain = identity.chain
            configuration.private_key = identity.private_key
        return configuration

    # The session's side

    def write(self, data: bytes) -> None:
        """Queue bytes; those of one turn of the loop leave together. Does nothing before and after the connection."""
        if self._state is _State.OPEN and self._driver is not None:
            self._driver.write(data)

    @property
    def backlog(self) -> int:
        """Bytes written that the broker has not acknowledged."""
        return self._driver.backlog if self._driver is not None else 0

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
        if self._driver is not None:
            self._last_status = self._snapshot(self._driver)
        return self._last_status

    def _snapshot(self, driver: QuicDriver) -> TransportStatus:
        connection = driver.connection
        rtt = connection.rtt
        sent, received = driver.datagram_bytes
        moved = driver.migration_seconds
        return TransportStatus(
            address=str(driver.address),
            version=connection.version_name,
            cipher=connection.cipher_name,
            handshake_ms=self._handshake_ms,
            rtt_ms=None if rtt is None else rtt * 1000,
            packets_sent=connection.packets_sent,
            packets_lost=connection.packets_lost,
            bytes_sent=driver.bytes_sent,
            bytes_received=self._bytes_received,
            datagram_bytes_sent=sent,
            datagram_bytes_received=received,
            migrations=driver.migrations,
            migration_ms=None if moved is None else moved * 1000,
        )

    # The driver's side

    def handshake_completed(self) -> None:
        """See DriverOwner."""
        if self._handshake is not None and not self._handshake.done():
            self._handshake.set_result(None)

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
        if self._state is _State.CONNECTING:
            if self._handshake is not None and not self._handshake.done():
                self._handshake.set_result(error)
        elif self._state is _State.OPEN:
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

    def _drop_driver(self) -> None:
        if self._driver is not None:
            self._last_status = self._snapshot(self._driver)
            self._driver.stop()
            self._driver = None

    def _release(self) -> None:
        """Let go of everything, from any state."""
        self._state = _State.CLOSED
        self._receiver = None
        self._drop_driver()
        if self._delivery is not None:
            self._delivery.cancel()
            self._delivery = None
        self._incoming.clear()
        self._closed.set()


def _load_tls(tls: TlsConfig, name: str) -> tuple[ClientIdentity | None, CertificateCheck | None]:
    """Parse all TLS material; blocking."""
    identity = ClientIdentity.load(tls)
    if identity is not None:
        identity.require_quic()
    return identity, CertificateVerifier(tls, name).verify if tls.verify else None


def _silence(driver: QuicDriver) -> str:
    if driver.answered:
        return " after it had begun the handshake"
    return " over QUIC; is there a QUIC listener, and does the network let UDP through?"


def _closed_meanwhile() -> BridgeError:
    return BridgeError(ErrorCode.INTERNAL, "The connection was closed on our side before it was made")
