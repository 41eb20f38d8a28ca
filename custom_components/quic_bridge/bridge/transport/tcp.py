"""MQTT bytes over TCP, with or without TLS."""

import asyncio
from enum import Enum, auto
import logging
import socket
import ssl
from typing import Final, override

from cryptography import x509

from ..certificates import describe
from ..config import BrokerConfig, TlsConfig, TransportKind
from ..errors import BridgeError, ErrorCode
from ..status import CertificateStatus, TransportStatus
from ..tls import ClientIdentity, check_pins, make_ssl_context, server_name, ssl_error
from .addresses import Address, in_executor, no_answer, race, reach_error, resolve, summary
from .base import HIGH_WATER, LOW_WATER, StreamReceiver, TransportReceiver
from .tcp_queue import unacknowledged
from .tls_stream import TlsStream

READ_SIZE: Final = 16 * 1024
"""Bytes per read. asyncio's default of 256 KiB would hold Home Assistant's loop for hundreds of messages."""
CLOSE_TIMEOUT: Final = 1.0
"""Seconds `close` waits for the kernel to take the last bytes."""
LINGER: Final = 0.2
"""... and then for the broker to close its side, which brokers do at once."""
UNSENT: Final = 128 * 1024
"""Bytes that wait in the kernel before it takes no more. It would take megabytes on a slow line, all of which look as
if they had left: for liveness, for back-pressure, and when messages are to go to the disk instead. What is on its way
comes on top, so a fast line loses nothing by it."""

_LOGGER = logging.getLogger(__name__)


class _State(Enum):
    NEW = auto()
    CONNECTING = auto()
    OPEN = auto()
    CLOSING = auto()
    CLOSED = auto()


class TcpTransport(asyncio.BufferedProtocol):
    """A Transport over TCP, and the protocol that asyncio's own transport talks to."""

    def __init__(self, config: BrokerConfig) -> None:
        """Prepare a connection to the broker; nothing happens before `connect`."""
        self._config = config
        self._state = _State.NEW
        self._receiver: TransportReceiver | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._handshake: asyncio.Future[BridgeError | None] | None = None
        self._transport: asyncio.Transport | None = None
        self._tls: TlsStream | None = None
        self._server_name = ""
        self._end: BridgeError | None = None
        self._sent = asyncio.Event()
        self._lost = asyncio.Event()

        self._buffer = bytearray(READ_SIZE)
        self._view = memoryview(self._buffer)
        self._reading_paused = False
        self._held = bytearray()
        """Decrypted and not yet delivered: at most two reads' worth."""
        self._delivery: asyncio.Handle | None = None
        self._outgoing: list[bytes] = []
        self._outgoing_size = 0
        self._wire_bytes = 0
        """Bytes given to the network, with what TLS adds."""
        self._flush_handle: asyncio.Handle | None = None
        self._writing_paused = False

        self._address: Address | None = None
        self._handshake_ms: float | None = None
        self._version: str | None = None
        self._cipher: str | None = None
        self._certificate: CertificateStatus | None = None
        self._client_certificate: CertificateStatus | None = None
        self._bytes_sent = 0
        self._bytes_received = 0

    @property
    def kind(self) -> TransportKind:
        """Which transport this is."""
        return TransportKind.TCP

    # Connecting

    async def connect(self, receiver: TransportReceiver, hello: bytes = b"") -> None:
        """Resolve, race the addresses, finish the TLS handshake within `connect_timeout` seconds and send `hello`.

        Raises BridgeError with the precise cause. Cancelling it releases everything at once.
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
                raise BridgeError(
                    ErrorCode.INTERNAL, "The connection was closed on our side before it was made"
                ) from None
            raise
        finally:
            self._connecting = None
            if self._state is _State.CONNECTING:
                self._release()

    async def _connect(self, hello: bytes) -> None:
        loop = asyncio.get_running_loop()
        config = self._config
        deadline = loop.time() + config.connect_timeout
        context: ssl.SSLContext | None = None
        if config.tls is not None:
            self._server_name = server_name(config)
            context, self._client_certificate = await in_executor(deadline, _load_tls, config.tls)
        addresses = await resolve(config.host, config.port, socket.SOCK_STREAM, deadline)
        started = loop.time()
        failures: list[BridgeError] = []
        while True:
            address, sock = await race(
                addresses, failures, lambda address: _reach(address, deadline), lambda sock: sock.close()
            )
            try:
                await self._establish(address, sock, deadline, context)
                break
            except BridgeError as error:
                failures.append(error)
                addresses.remove(address)
                if not addresses or loop.time() >= deadline:
                    raise summary(failures) from error
        self._handshake_ms = (loop.time() - started) * 1000
        _LOGGER.debug("TCP to %s: connected in %.0f ms", address, self._handshake_ms)
        # What ends the connection from here on is told by `connection_lost`.
        self._state = _State.OPEN
        self.write(hello)

    async def _establish(
        self, address: Address, sock: socket.socket, deadline: float, context: ssl.SSLContext | None
    ) -> None:
        """Take over a connected socket and do the TLS handshake, if any. Raises BridgeError, with the socket closed."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        self._address = address
        self._end = None
        self._sent.clear()
        self._lost.clear()
        self._version = self._cipher = self._certificate = None
        self._tls = None if context is None else TlsStream(context, self._server_name)
        self._handshake = loop.create_future()
        established = False
        try:
            async with asyncio.timeout_at(deadline):
                await loop.create_connection(lambda: self, sock=sock)
                failure = await self._handshake
            established = failure is None and self._end is None
        except TimeoutError:
            what = " to the TLS handshake; is it the plain MQTT port?"
            raise no_answer(address, loop.time() - started, what) from None
        except OSError as error:
            raise reach_error(error, address) from error
        finally:
            self._handshake = None
            if not established:
                self._drop_transport()
                sock.close()
        # The broker may have gone between the handshake and this turn of the loop.
        failure = failure or self._end
        if failure is not None:
            raise failure

    # The session's side

    def write(self, data: bytes) -> None:
        """Queue bytes; those of one turn of the loop leave together. Does nothing before and after the connection."""
        if self._state is not _State.OPEN:
            return
        self._outgoing.append(data)
        self._outgoing_size += len(data)
        if self._flush_handle is None:
            self._flush_handle = asyncio.get_running_loop().call_soon(self._flush)
        if self._outgoing_size > LOW_WATER:
            self._check_backlog()

    @property
    def backlog(self) -> int:
        """Bytes written that the kernel has not taken."""
        buffered = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return self._outgoing_size + buffered

    @property
    def written(self) -> int:
        """Bytes written; those that were encrypted already count as they travel."""
        return self._wire_bytes + self._outgoing_size

    @property
    def acknowledged(self) -> int:
        """How many of them the broker's host has acknowledged."""
        transport = self._transport
        if transport is None:
            return self._wire_bytes
        return self._wire_bytes - transport.get_write_buffer_size() - unacknowledged(transport.get_extra_info("socket"))

    def open_stream(self, _receiver: StreamReceiver) -> None:
        """TCP has one stream."""

    def pause_reading(self) -> None:
        """Stop reading; the kernel's buffer fills, and TCP tells the broker."""
        self._reading_paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on, in a later turn of the loop."""
        self._reading_paused = False
        if self._held:
            if self._delivery is None:
                self._delivery = asyncio.get_running_loop().call_soon(self._deliver_held)
        elif self._transport is not None:
            self._transport.resume_reading()

    async def close(self) -> None:
        """Let what was written leave (at most 1 s) and the broker close its side, release everything.

        Closing while the broker still sends would make the kernel reset the connection, and the broker lose what we
        said last.
        """
        if self._state is _State.OPEN:
            self._flush()  # which may find that it is over
        if self._state is _State.OPEN and self._transport is not None:
            self._state = _State.CLOSING
            self._receiver = None
            if self._tls is not None:
                self._tls.close()
                self._put(self._transport, self._tls.take())
            self._transport.resume_reading()
            if self._transport.get_write_buffer_size():
                self._transport.set_write_buffer_limits(0)  # `resume_writing` when all has left
            else:
                self._half_close(self._transport)
        elif self._state is not _State.CLOSING:
            self.abort()
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._sent.wait()
            async with asyncio.timeout(LINGER):
                await self._lost.wait()
        except TimeoutError:
            _LOGGER.debug("Closing with %d bytes not sent", self.backlog)
        finally:
            self._release()

    def abort(self) -> None:
        """Release everything now; what the kernel has not taken is dropped."""
        self._release()
        if self._connecting is not None:
            self._connecting.cancel()

    @property
    def status(self) -> TransportStatus:
        """Figures of the connection; after the end those of its last moment."""
        return TransportStatus(
            address=None if self._address is None else str(self._address),
            version=self._version,
            cipher=self._cipher,
            certificate=self._certificate,
            client_certificate=self._client_certificate,
            handshake_ms=self._handshake_ms,
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
        )

    # asyncio's side

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("Not a stream transport")
        if self._state is not _State.CONNECTING:
            transport.abort()
            return
        self._transport = transport
        # Both the lower mark: asyncio tells that its buffer emptied only if it was over the upper one before, and what
        # made us pause may mostly have left at once.
        transport.set_write_buffer_limits(high=LOW_WATER, low=LOW_WATER)
        if self._tls is None:
            self._connected(None)
        else:
            self._advance_tls(self._tls)

    @override
    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio.BufferedProtocol."""
        return self._view

    @override
    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        if self._state is _State.CLOSING:
            return
        if self._tls is not None:
            self._tls.feed(self._view[:nbytes])
            self._advance_tls(self._tls)
        elif self._receiver is not None:
            self._bytes_received += nbytes
            self._receiver.data_received(bytes(self._view[:nbytes]))

    @override
    def eof_received(self) -> None:
        """See asyncio.BufferedProtocol."""
        # asyncio would first wait until our own bytes have left, which may be never.
        self._sent.set()
        self._lost.set()
        self._ended(self._hang_up())

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.BaseProtocol."""
        self._sent.set()
        self._lost.set()
        if isinstance(exc, TimeoutError):
            self._ended(
                BridgeError(
                    ErrorCode.PING_TIMEOUT, "The network gave up on the TCP connection: nothing is acknowledged"
                )
            )
        else:
            self._ended(self._hang_up(exc))

    @override
    def pause_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._check_backlog()

    @override
    def resume_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        if self._state is _State.CLOSING and self._transport is not None:
            self._half_close(self._transport)
        else:
            self._check_backlog()

    # Steps

    def _connected(self, error: BridgeError | None) -> None:
        if self._handshake is not None and not self._handshake.done():
            self._handshake.set_result(error)

    def _advance_tls(self, tls: TlsStream) -> None:
        """Do what the bytes that came make possible: the handshake, then data."""
        data, failure = b"", None
        try:
            if tls.established or tls.handshake():
                if self._version is None:
                    self._take_certificate(tls)
                    self._version, self._cipher = tls.version, tls.cipher
                data = tls.read()
        except ssl.SSLError as error:
            failure = self._ssl_error(error)
        except BridgeError as error:
            failure = error
        if self._transport is not None:
            self._put(self._transport, tls.take())  # also the alert that says why
        if self._version is not None:
            self._connected(None)
        if data and self._receiver is not None:
            self._held += data
            self._deliver_held()
        if failure is not None:
            self._ended(failure)
        elif tls.closed:
            self._ended(self._hang_up())

    def _take_certificate(self, tls: TlsStream) -> None:
        """Check the pins, which `ssl` knows nothing of, and note what the certificate says. Raises BridgeError."""
        try:
            certificate = x509.load_der_x509_certificate(tls.peer_certificate or b"")
        except ValueError as error:
            raise BridgeError(ErrorCode.TLS_FAILED, f"The broker's certificate cannot be read: {error}") from error
        check_pins(certificate, self._config.tls.pins if self._config.tls else ())
        self._certificate = describe(certificate)

    def _deliver_held(self) -> None:
        """Hand on what was decrypted, in pieces, unless the session pauses."""
        if self._delivery is not None:
            self._delivery.cancel()
            self._delivery = None
        while self._held and self._receiver is not None and (not self._reading_paused or self._end is not None):
            data = bytes(self._held[:READ_SIZE])
            del self._held[:READ_SIZE]
            self._bytes_received += len(data)
            self._receiver.data_received(data)
        if not self._held and not self._reading_paused and self._transport is not None:
            self._transport.resume_reading()

    def _flush(self) -> None:
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        if not self._outgoing or self._transport is None:
            return
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        self._outgoing_size = 0
        self._bytes_sent += len(data)
        if self._tls is not None:
            try:
                self._tls.write(data)
            except ssl.SSLError as error:
                self._ended(self._ssl_error(error))
                return
            data = self._tls.take()
        self._put(self._transport, data)
        self._check_backlog()

    def _put(self, transport: asyncio.Transport, data: bytes) -> None:
        """Give bytes to the network."""
        self._wire_bytes += len(data)
        transport.write(data)

    def _check_backlog(self) -> None:
        """Tell the session when the backlog crosses a mark; asyncio's own marks do not count what waits here."""
        if self._receiver is None or self._state is not _State.OPEN:
            return
        if not self._writing_paused and self.backlog > HIGH_WATER:
            self._writing_paused = True
            self._receiver.pause_writing()
        elif self._writing_paused and self.backlog <= LOW_WATER:
            self._writing_paused = False
            self._receiver.resume_writing()

    def _hang_up(self, cause: Exception | None = None) -> BridgeError:
        """Name the end of the TCP connection."""
        detail = f": {cause}" if cause is not None else ""
        if self._tls is not None and not self._tls.established:
            return BridgeError(
                ErrorCode.TLS_FAILED,
                f"{self._address} closed the connection during the TLS handshake{detail}; is it the plain MQTT port?",
            )
        return BridgeError(ErrorCode.CLOSED_BY_BROKER, f"The broker closed the TCP connection{detail}")

    def _ssl_error(self, error: ssl.SSLError) -> BridgeError:
        return ssl_error(error, self._server_name, self._config.tls or TlsConfig())

    def _ended(self, error: BridgeError) -> None:
        """Release everything and tell the session, once."""
        if self._end is not None:
            return
        self._end = error
        _LOGGER.debug("TCP ended: %s", error)
        if self._state is _State.CONNECTING:
            self._connected(error)
        elif self._state is _State.OPEN:
            self._deliver_held()
            receiver = self._receiver
            self._release()
            if receiver is not None:
                receiver.connection_lost(error)

    def _half_close(self, transport: asyncio.Transport) -> None:
        """Send FIN. asyncio's `write_eof` raises, even in a callback of its own, when the broker has already gone."""
        try:
            transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
        except OSError:
            self._lost.set()
        self._sent.set()

    def _drop_transport(self) -> None:
        if self._transport is not None:
            # Its last call must not reach us: by then we may be dialling the next address.
            self._transport.set_protocol(asyncio.Protocol())
            self._transport.abort()
            self._transport = None

    def _release(self) -> None:
        """Let go of everything, from any state."""
        self._state = _State.CLOSED
        self._receiver = None
        for handle in (self._flush_handle, self._delivery):
            if handle is not None:
                handle.cancel()
        self._flush_handle = self._delivery = None
        self._outgoing.clear()
        self._outgoing_size = 0
        self._held.clear()
        self._drop_transport()


async def _reach(address: Address, deadline: float) -> socket.socket:
    """Connect a socket to an address; `deadline` is in the loop's time. Raises BridgeError."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    connected = False
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux, macOS
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        async with asyncio.timeout_at(deadline):
            await loop.sock_connect(sock, address.sockaddr)
        connected = True
    except TimeoutError:
        raise no_answer(address, loop.time() - started) from None
    except OSError as error:
        raise reach_error(error, address) from error
    finally:
        if not connected:
            sock.close()
    return sock


def _load_tls(tls: TlsConfig) -> tuple[ssl.SSLContext, CertificateStatus | None]:
    """Parse all TLS material; blocking."""
    identity = ClientIdentity.load(tls)
    return make_ssl_context(tls, identity), None if identity is None else describe(identity.certificate)
