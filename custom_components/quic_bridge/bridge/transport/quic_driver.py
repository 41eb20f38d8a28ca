"""Drives one QUIC connection: its UDP socket, its timer, the proof that the peer lives. Knows nothing of MQTT.

aioquic's QuicConnection does no I/O; here it gets a connected socket of its own, because only a connected one is told
of ICMP errors, and because datagrams from anybody else are then dropped by the kernel.
"""

import asyncio
from collections.abc import Callable
import errno
import functools
import logging
import socket
from typing import Final, Protocol

from aioquic.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)

from ..config import QuicConfig
from ..errors import BridgeError, ErrorCode
from .addresses import Address, reach_error
from .aioquic_internals import RESET_TOKEN_SIZE, STATELESS_RESET_SIZE, STREAM_ID, ClientConnection
from .base import HIGH_WATER, LOW_WATER
from .quic_errors import closed_by_peer, closed_by_us, stream_ended

RECEIVE_BUDGET: Final = 8
"""Datagrams taken in one turn of the loop, which is Home Assistant's; the rest waits in the kernel for the next."""
RECEIVE_SIZE: Final = 65536
"""Larger than any datagram."""
SOCKET_BUFFER: Final = 1024 * 1024
"""What is asked for; the kernel gives what it allows."""
HANDSHAKE_REFUSALS: Final = 2
"""ICMP errors that end a handshake. One may stem from a former user of our port."""
REFUSALS: Final = 3
REFUSAL_SPAN: Final = 0.2
"""An established connection is dead after this many ICMP refusals over this many seconds with nothing in between."""
UNKNOWN_RESETS: Final = 3
"""Datagrams that hold nothing for us and end alike: the stateless resets of a broker that forgot its tokens."""
KEY_UPDATE_PACKETS: Final = 1_000_000
"""Packets between key updates; AES-GCM's limit is 2^23 (RFC 9001 section 6.6), and aioquic never updates by itself."""
TIMER_RESOLUTION: Final = 0.0005

_LOGGER = logging.getLogger(__name__)


class DriverOwner(Protocol):
    """Whom the driver tells. Nothing is called after `stop`, nor after `ended`."""

    def handshake_completed(self) -> None:
        """The TLS handshake is done. With client certificates the broker may still refuse ours."""

    def stream_received(self, data: bytes) -> None:
        """The next bytes of the stream, of any length."""

    def pause_writing(self) -> None:
        """The backlog went over HIGH_WATER."""

    def resume_writing(self) -> None:
        """The backlog fell below LOW_WATER."""

    def ended(self, error: BridgeError) -> None:
        """The connection is over, and everything of it is released."""


def _guarded(step: Callable[[QuicDriver], None]) -> Callable[[QuicDriver], None]:
    """Guard a way into aioquic: whatever breaks there ends the connection, and never leaves a zombie behind."""

    @functools.wraps(step)
    def guarded(self: QuicDriver) -> None:
        try:
            step(self)
        except Exception as error:
            _LOGGER.exception("The QUIC connection to %s broke on our side", self.address)
            self._release()
            self._report(BridgeError(ErrorCode.INTERNAL, f"The QUIC connection broke on our side: {error!r}"))

    return guarded


class QuicDriver:
    """One attempt at, and then one life of, a QUIC connection."""

    def __init__(self, connection: ClientConnection, address: Address, config: QuicConfig, owner: DriverOwner) -> None:
        """Take over a new connection; call `start` next, in a running loop."""
        self.address = address
        self.answered = False
        """Something authentic has come from the address."""
        self.bytes_sent = 0
        """Bytes of the stream handed to QUIC."""
        self.connection = connection
        self._config = config
        self._owner: DriverOwner | None = owner
        self._loop = asyncio.get_running_loop()
        self._has_certificate = connection.configuration.certificate is not None

        self._socket: socket.socket | None = None
        self._buffer = bytearray(RECEIVE_SIZE)
        self._view = memoryview(self._buffer)
        self._flush_handle: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._liveness_timer: asyncio.TimerHandle | None = None

        self._established = False
        self._outgoing: list[bytes] = []
        self._outgoing_size = 0
        self._unacknowledged = 0
        self._writing_paused = False
        self._drained: asyncio.Future[None] | None = None

        self._last_received = 0.0
        self._ping_interval = config.ping_interval
        self._ping_sent: float | None = None
        self._ping_deadline = 0.0
        self._ping_reason = ""
        self._refusals = 0
        self._first_refusal = 0.0
        self._reset_tail = b""
        self._resets = 0
        self._next_key_update = KEY_UPDATE_PACKETS
        self._warned_of_stream = False

    # Life

    def start(self) -> None:
        """Open the socket and send the first flight. Raises BridgeError UNREACHABLE."""
        self._socket = sock = socket.socket(self.address.family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
            sock.connect(self.address.sockaddr)
        except OSError as error:
            self._release()
            raise reach_error(error, self.address) from error
        self._loop.add_reader(sock, self._on_readable)
        self._begin()

    @_guarded
    def _begin(self) -> None:
        self.connection.connect(self.address.sockaddr, now=self._loop.time())
        self._transmit()

    def stop(self) -> None:
        """Send CONNECTION_CLOSE, wait for nothing, release everything; the owner hears nothing any more."""
        self._owner = None
        self._close(None)

    async def drain(self) -> None:
        """Send what was written and wait until the peer has acknowledged it, or the connection is over."""
        self._on_flush()
        if self.backlog and self._socket is not None:
            self._drained = self._loop.create_future()
            await self._drained

    # Stream

    @property
    def backlog(self) -> int:
        """Bytes written and not acknowledged by the peer."""
        return self._outgoing_size + self._unacknowledged

    def write(self, data: bytes) -> None:
        """Queue bytes of the stream; all of one turn of the loop leave in one go."""
        if self._socket is None:
            return
        self._outgoing.append(data)
        self._outgoing_size += len(data)
        if self._flush_handle is None:
            self._flush_handle = self._loop.call_soon(self._on_flush)
        if self._outgoing_size + self._unacknowledged > HIGH_WATER and not self._writing_paused:
            self._writing_paused = True
            if self._owner is not None:
                self._owner.pause_writing()

    def consume(self, size: int) -> None:
        """Give the peer credit for bytes of the stream that the application took."""
        if self.connection.consume(size) and self._flush_handle is None and self._socket is not None:
            self._flush_handle = self._loop.call_soon(self._on_flush)

    # Ways in from the event loop

    @_guarded
    def _on_readable(self) -> None:
        connection, address, sock = self.connection, self.address.sockaddr, self._socket
        if sock is None:
            return
        now = self._loop.time()
        authentic = connection.packets_received
        for _ in range(RECEIVE_BUDGET):
            try:
                size = sock.recv_into(self._buffer)
            except BlockingIOError, InterruptedError:
                break
            except OSError as error:
                if self._network_error(error):
                    return
                continue
            datagram = bytes(self._view[:size])
            before = connection.packets_received
            connection.receive_datagram(datagram, address, now)
            if connection.packets_received == before:
                if self._not_ours(datagram):
                    return
            elif connection.close_event is not None:
                # Nothing that follows counts; above all not what follows a certificate that we refused.
                break
        if connection.packets_received != authentic:
            self._last_received = now
            self.answered = True
            self._resets = 0
            connection.hasten_ack(now)
        self._proceed()

    @_guarded
    def _on_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        at = self.connection.get_timer()
        if at is None or self._socket is None:
            return
        if at > now + TIMER_RESOLUTION:
            self._arm()
            return
        self.connection.handle_timer(max(now, at))
        self._proceed()

    @_guarded
    def _on_flush(self) -> None:
        if self._socket is not None:
            self._transmit()

    @_guarded
    def _on_liveness(self) -> None:
        """Ask for a sign of life when none came for a while, and give up when the answer is overdue."""
        self._liveness_timer = None
        now = self._loop.time()
        if self._ping_sent is not None:
            if self._last_received <= self._ping_sent:
                if now < self._ping_deadline:
                    self._watch(self._ping_deadline)
                    return
                self._close(
                    BridgeError(
                        ErrorCode.PING_TIMEOUT,
                        f"The broker did not answer a PING within {now - self._ping_sent:.1f} s{self._ping_reason}",
                    )
                )
                return
            self._ping_sent = None
        due = self._last_received + self._ping_interval
        if now >= due:
            self._ping(self._config.ping_timeout)
        else:
            self._watch(due)

    # Steps

    def _proceed(self) -> None:
        """After anything came in: hand on what it brought, then send what it asks for."""
        if self._handle_events() or self._socket is None:
            return
        event = self.connection.close_event
        if event is not None:
            if self.connection.closed_by_peer:
                self._close(closed_by_peer(event, has_certificate=self._has_certificate))
            else:
                self._close(self.connection.certificate_error or closed_by_us(event))
            return
        self._transmit()
        if self._writing_paused and self.backlog < LOW_WATER:
            self._writing_paused = False
            if self._owner is not None:
                self._owner.resume_writing()
        if self._drained is not None and not self.backlog and not self._drained.done():
            self._drained.set_result(None)

    def _handle_events(self) -> bool:
        """Hand on aioquic's events; return True if the connection ended by one."""
        pieces: list[bytes] = []
        end: BridgeError | None = None
        next_event = self.connection.next_event
        while (event := next_event()) is not None:
            if type(event) is StreamDataReceived:
                if event.stream_id == STREAM_ID:
                    pieces.append(event.data)
                    if event.end_stream:
                        end = end or stream_ended("FIN")
                else:
                    self._foreign_stream(event.stream_id)
            elif type(event) is HandshakeCompleted:
                self._handshake_completed()
            elif type(event) is StreamReset:
                if event.stream_id == STREAM_ID:
                    end = end or stream_ended("RESET_STREAM", event.error_code)
            elif type(event) is StopSendingReceived:
                if event.stream_id == STREAM_ID:
                    end = end or stream_ended("STOP_SENDING", event.error_code)
            elif type(event) is ConnectionTerminated:
                break  # known already by `close_event`
        if pieces and self._owner is not None:
            self._owner.stream_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if end is not None and self._socket is not None:
            self._close(end)
            return True
        return False

    def _handshake_completed(self) -> None:
        connection = self.connection
        if not connection.is_trusted:
            self._close(BridgeError(ErrorCode.INTERNAL, "The broker's certificate was not checked"))
            return
        self._established = True
        self._refusals = 0
        # A PING each way must fit into what the peer takes for silence.
        self._ping_interval = min(self._ping_interval, connection.idle_timeout / 2)
        self._watch(self._loop.time() + self._ping_interval)
        if self._owner is not None:
            self._owner.handshake_completed()

    def _foreign_stream(self, stream_id: int) -> None:
        """Drop what came on a stream that the broker opened; it is not part of MQTT over one stream."""
        if not self._warned_of_stream:
            self._warned_of_stream = True
            _LOGGER.warning(
                "The broker %s opened QUIC stream %d, which is ignored: "
                "this bridge uses one stream, and expects its answers there",
                self.address,
                stream_id,
            )
        self.connection.refuse_stream(stream_id)
        self.connection.raise_connection_window()

    def _transmit(self) -> None:
        """Send what is due. One call a turn: each costs aioquic at least one packet's worth of work."""
        connection, sock = self.connection, self._socket
        if sock is None:
            return
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        now = self._loop.time()
        if self._outgoing:
            connection.carry_ack(now)
            connection.send_stream_data(STREAM_ID, b"".join(self._outgoing))
            self.bytes_sent += self._outgoing_size
            self._outgoing.clear()
            self._outgoing_size = 0
        if connection.packets_sent >= self._next_key_update:
            self._next_key_update = connection.packets_sent + KEY_UPDATE_PACKETS
            connection.request_key_update()
        trouble = self._send(sock, now)
        self._unacknowledged = connection.unacknowledged
        if trouble is None or not self._network_error(trouble):
            self._arm()

    def _send(self, sock: socket.socket, now: float) -> OSError | None:
        """Send all datagrams; what the kernel does not take is lost, and repaired as any loss. Return an error met."""
        trouble: OSError | None = None
        for datagram, _ in self.connection.datagrams_to_send(now):
            try:
                sock.send(datagram)
            except BlockingIOError, InterruptedError:
                continue
            except OSError as error:
                trouble = error
                if error.errno == errno.ECONNREFUSED:
                    # The answer to an earlier datagram; this one was not even tried.
                    try:
                        sock.send(datagram)
                    except OSError as again:
                        _LOGGER.debug("A datagram to %s was not sent: %s", self.address, again)
        return trouble

    def _arm(self) -> None:
        """Set the timer, lazily: one that fires early looks again, which is cheaper than moving it each time."""
        at = self.connection.get_timer()
        if at is None:
            return
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._on_timer)

    # Liveness

    def _watch(self, at: float) -> None:
        if self._liveness_timer is not None:
            self._liveness_timer.cancel()
        self._liveness_timer = self._loop.call_at(at, self._on_liveness)

    def _ping(self, timeout: float, reason: str = "") -> None:
        """Send a PING that must be answered, by any packet, within `timeout` seconds."""
        now = self._loop.time()
        if self._ping_sent is None or self._last_received > self._ping_sent:
            self._ping_sent = now
            self._ping_deadline = now + timeout
        else:
            self._ping_deadline = min(self._ping_deadline, now + timeout)
        self._ping_reason = reason
        self.connection.send_ping(0)
        if self._flush_handle is None:
            self._flush_handle = self._loop.call_soon(self._on_flush)
        self._watch(self._ping_deadline)

    def _network_error(self, error: OSError) -> bool:
        """Judge an ICMP error or a refusal of the kernel to send; return True if the connection ended by it.

        A wake-up by ICMP is no sign of life, and one ICMP error alone no proof of death: they are not authenticated.
        """
        now = self._loop.time()
        if self._refusals and self._last_received <= self._first_refusal:
            self._refusals += 1
        else:
            self._refusals = 1
            self._first_refusal = now
        if not self._established:
            if self._refusals < HANDSHAKE_REFUSALS:
                return False
            self._close(reach_error(error, self.address))
            return True
        if self._refusals == 1:
            _LOGGER.debug("The network refuses datagrams to %s (%s): probing", self.address, error)
            self._ping(self._config.ping_timeout, f" after the network reported: {error.strerror}")
            return False
        if (
            error.errno == errno.ECONNREFUSED
            and self._refusals >= REFUSALS
            and now - self._first_refusal >= REFUSAL_SPAN
        ):
            self._close(
                BridgeError(
                    ErrorCode.REFUSED,
                    f"Nothing listens on {self.address} any more: its host refuses our datagrams; the broker is down",
                )
            )
            return True
        return False

    def _not_ours(self, datagram: bytes) -> bool:
        """Look at a datagram in which nothing was authentic; return True if the connection ended by it."""
        if self.connection.is_stateless_reset(datagram):
            self._close(
                BridgeError(
                    ErrorCode.CLOSED_BY_BROKER,
                    "The broker no longer knows the connection (stateless reset): it was restarted",
                )
            )
            return True
        if not self._established or len(datagram) < STATELESS_RESET_SIZE or datagram[0] & 0x80:
            return False
        tail = datagram[-RESET_TOKEN_SIZE:]
        if tail != self._reset_tail:
            self._reset_tail, self._resets = tail, 0
        self._resets += 1
        if self._resets == UNKNOWN_RESETS:
            # msquic draws its tokens anew at each start, so a broker that restarted cannot prove that it did.
            # Anybody can send such datagrams; they may make us ask, not believe.
            timeout = min(self._config.ping_timeout, max(1.0, 6 * self.connection.probe_timeout))
            self._ping(timeout, "; it answers with stateless resets of another run, so it was restarted")
        return False

    # End

    def _close(self, error: BridgeError | None) -> None:
        """Tell the peer if that is still possible, release everything, tell the owner."""
        if self._socket is not None and not self.connection.is_closed:
            self._say_goodbye()
        self._release()
        if error is not None:
            self._report(error)

    @_guarded
    def _say_goodbye(self) -> None:
        if self._socket is not None:
            self.connection.close()
            self._send(self._socket, self._loop.time())

    def _report(self, error: BridgeError) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.ended(error)

    def _release(self) -> None:
        for handle in (self._flush_handle, self._timer, self._liveness_timer):
            if handle is not None:
                handle.cancel()
        self._flush_handle = self._timer = self._liveness_timer = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        self._outgoing.clear()
        self._outgoing_size = self._unacknowledged = 0
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
