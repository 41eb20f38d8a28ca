"""Drives one QUIC connection: its UDP socket, which may be replaced, and its timer. Knows nothing of MQTT.

aioquic's QuicConnection does no I/O and never looks at our own address, so another socket is all that a new path takes
(RFC 9000 section 9).
"""

import asyncio
from collections.abc import Callable
import functools
import logging
from typing import Concatenate, Final, Protocol

from aioquic.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)

from ..config import QuicConfig
from ..errors import BridgeError, ErrorCode
from .addresses import Address
from .aioquic_internals import STREAM_ID, ClientConnection
from .base import StreamReceiver
from .quic_errors import closed_by_peer, closed_by_us, stream_ended
from .quic_liveness import Liveness
from .quic_socket import PeerSocket
from .quic_streams import GIVEN_UP, QuicStream

RECEIVE_BUDGET: Final = 8
"""Datagrams taken in one turn of the loop, which is Home Assistant's; the rest waits in the kernel for the next."""
OLD_PATH_PTOS: Final = 3
"""Probe timeouts for which a socket that was replaced is still read."""
CID_LIFETIME: Final = 3600.0
"""Seconds for which a connection identifier of the peer's is used, so that no long run shares one."""
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
        """The backlog went over the flow window."""

    def resume_writing(self) -> None:
        """The backlog fell below a quarter of the flow window."""

    def ended(self, error: BridgeError) -> None:
        """The connection is over, and everything of it is released."""


def _guarded[**P](step: Callable[Concatenate[QuicDriver, P], None]) -> Callable[Concatenate[QuicDriver, P], None]:
    """Guard a way into aioquic: whatever breaks there ends the connection, and never leaves a zombie behind."""

    @functools.wraps(step)
    def guarded(self: QuicDriver, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            step(self, *args, **kwargs)
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
        self.early_data_accepted = False
        self.migrations = 0
        """How often the connection went on from another socket, and the broker answered there (RFC 9000 section 9)."""
        self.migration_seconds: float | None = None
        """From the last such change to the broker's first answer."""
        self.connection = connection
        self._flow_window = config.flow_window
        self._owner: DriverOwner | None = owner
        self._loop = asyncio.get_running_loop()
        self._has_certificate = connection.configuration.certificate is not None
        self._liveness = Liveness(connection, address, config, self, self._on_liveness)

        self._socket: PeerSocket | None = None
        self._old_socket: PeerSocket | None = None
        self._moved_at: float | None = None
        """When the present socket was taken, until something came there."""
        self._released_bytes = (0, 0)
        self._flush_handle: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None

        self._established = False
        self._outgoing: list[bytes] = []
        self._outgoing_size = 0
        self._unacknowledged = 0
        self._writing_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._streams: dict[int, QuicStream] = {}
        self._next_key_update = KEY_UPDATE_PACKETS
        self._next_identifier = self._loop.time() + CID_LIFETIME
        self._warned_of_stream = False

    # Life

    def start(self, early: bytes = b"") -> None:
        """Open the socket and send the first flight, with early data if there is any. Raises BridgeError UNREACHABLE.

        Early data (0-RTT) needs a ticket that allows it, and may be replayed by whoever sees it pass.
        """
        self._socket = PeerSocket(self.address, self._on_readable)
        self._begin(early)

    @_guarded
    def _begin(self, early: bytes) -> None:
        self.connection.connect(self.address.sockaddr, now=self._loop.time())
        if early:
            self.connection.send_stream_data(STREAM_ID, early)
            self.bytes_sent += len(early)
        self._transmit()

    def hand_over(self, owner: DriverOwner) -> None:
        """Tell another owner from now on, unless the connection is over."""
        if self._owner is not None:
            self._owner = owner

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
        """Bytes of the stream written and not acknowledged by the peer."""
        return self._outgoing_size + self._unacknowledged

    @property
    def written(self) -> int:
        """Bytes of the stream written."""
        return self.bytes_sent + self._outgoing_size

    def open_stream(self, receiver: StreamReceiver) -> QuicStream | None:
        """Open one more stream; None if the peer allows no more."""
        stream_id = self.connection.next_stream() if self._established and self._socket is not None else None
        if stream_id is None:
            return None
        self.connection.send_stream_data(stream_id, b"")
        self._streams[stream_id] = stream = QuicStream(self.connection, stream_id, receiver, self._schedule_flush)
        return stream

    def write(self, data: bytes) -> None:
        """Queue bytes of the stream; all of one turn of the loop leave in one go."""
        if self._socket is None:
            return
        self._outgoing.append(data)
        self._outgoing_size += len(data)
        if self._flush_handle is None:
            self._schedule_flush()
        if self._outgoing_size + self._unacknowledged > self._flow_window and not self._writing_paused:
            self._writing_paused = True
            if self._owner is not None:
                self._owner.pause_writing()

    def consume(self, size: int) -> None:
        """Give the peer credit for bytes of the stream that the application took."""
        if self.connection.consume(size):
            self._schedule_flush()

    def _schedule_flush(self) -> None:
        if self._flush_handle is None and self._socket is not None:
            self._flush_handle = self._loop.call_soon(self._on_flush)

    # Ways in from the event loop

    @_guarded
    def _on_readable(self, sock: PeerSocket) -> None:
        connection, address = self.connection, self.address.sockaddr
        now = self._loop.time()
        received, acknowledged = connection.packets_received, connection.packets_acknowledged
        for _ in range(RECEIVE_BUDGET):
            if sock.closed:
                return
            try:
                datagram = sock.receive()
            except OSError as error:
                if sock is not self._socket:
                    sock.close()
                elif self._liveness.network_error(error):
                    return
                continue
            if datagram is None:
                break
            before = connection.packets_received
            connection.receive_datagram(datagram, address, now)
            if connection.packets_received == before:
                if self._liveness.not_ours(datagram):
                    return
            elif connection.close_event is not None:
                # Nothing that follows counts; above all not what follows a certificate that we refused.
                break
        if connection.packets_received != received:
            self.answered = True
            connection.hasten_ack(now)
            if sock is self._socket:
                self._liveness.heard(now, acknowledged=connection.packets_acknowledged != acknowledged)
                self._arrived(now)
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
        self._liveness.look()
        now = self._loop.time()
        if now >= self._next_identifier and self.connection.rotate():
            self._next_identifier = now + CID_LIFETIME
            self._schedule_flush()

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
        if self._writing_paused and self.backlog < self._flow_window // 4:
            self._writing_paused = False
            if self._owner is not None:
                self._owner.resume_writing()
        for stream in list(self._streams.values()):
            stream.relieve()
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
                elif (stream := self._streams.get(event.stream_id)) is not None:
                    stream.received(event.data)
                    if event.end_stream:
                        self._stream_ended(event.stream_id, "FIN")
                else:
                    self._foreign_stream(event.stream_id)
            elif type(event) is HandshakeCompleted:
                self._handshake_completed(early_data_accepted=event.early_data_accepted)
            elif type(event) is StreamReset:
                if event.stream_id == STREAM_ID:
                    end = end or stream_ended("RESET_STREAM", event.error_code)
                else:
                    self._stream_ended(event.stream_id, f"RESET_STREAM, code {event.error_code}")
            elif type(event) is StopSendingReceived:
                if event.stream_id == STREAM_ID:
                    end = end or stream_ended("STOP_SENDING", event.error_code)
                else:
                    self._stream_ended(event.stream_id, f"STOP_SENDING, code {event.error_code}")
            elif type(event) is ConnectionTerminated:
                break  # known already by `close_event`
        if pieces and self._owner is not None:
            self._owner.stream_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if end is not None and self._socket is not None:
            self._close(end)
            return True
        return False

    def _handshake_completed(self, *, early_data_accepted: bool) -> None:
        connection = self.connection
        if not connection.is_trusted:
            self._close(BridgeError(ErrorCode.INTERNAL, "The broker's certificate was not checked"))
            return
        self._established = True
        self.early_data_accepted = early_data_accepted
        if not early_data_accepted:
            connection.early_data_refused(self._loop.time())
        self._liveness.established(connection.idle_timeout)
        if self._owner is not None:
            self._owner.handshake_completed()

    def _stream_ended(self, stream_id: int, how: str) -> None:
        """Forget a stream beside the first that the peer ended in either direction: of half of one there is no use."""
        if (stream := self._streams.pop(stream_id, None)) is not None:
            self.connection.give_up_stream(stream_id, GIVEN_UP)
            stream.ended(how)

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
        for stream in self._streams.values():
            stream.send()
        if connection.packets_sent >= self._next_key_update:
            self._next_key_update = connection.packets_sent + KEY_UPDATE_PACKETS
            connection.request_key_update()
        trouble = self._send(sock, now)
        self._unacknowledged = connection.unacknowledged
        if trouble is None or not self._liveness.network_error(trouble):
            self._arm()

    def _send(self, sock: PeerSocket, now: float) -> OSError | None:
        """Send all datagrams that are due; return an error met."""
        trouble: OSError | None = None
        for datagram, _ in self.connection.datagrams_to_send(now):
            trouble = sock.send(datagram) or trouble
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

    # What liveness asks

    def ping(self) -> None:
        """See LivenessOwner."""
        self.connection.send_ping(0)
        self._schedule_flush()

    def is_preferred_path(self) -> bool:
        """See LivenessOwner."""
        return self._socket is None or self._socket.is_preferred

    def move(self, why: str) -> bool:
        """Go on from a new socket (RFC 9000 section 9), whose local address and route the kernel chooses now.

        The broker validates the new path; we wait for its answer. The old socket is read for a while, as answers may
        be on their way to it.
        """
        old = self._socket
        if old is None or not self.connection.can_move:
            return False
        if self._moved_at is not None and old.is_preferred:
            return False  # the last move was not answered yet, and nothing is different since
        try:
            new = PeerSocket(self.address, self._on_readable)
        except BridgeError as error:
            _LOGGER.debug("No other way to %s: %s", self.address, error)
            return False
        _LOGGER.debug("Moving the QUIC connection with %s from %s to %s: %s", self.address, old.source, new.source, why)
        linger = OLD_PATH_PTOS * self.connection.probe_timeout
        self._moved_at = now = self._loop.time()
        self.connection.move(now)
        self._forget_old_socket()
        self._socket, self._old_socket = new, old
        old.expire(linger)
        return True

    def dead(self, error: BridgeError) -> None:
        """See LivenessOwner."""
        self._close(error)

    def _arrived(self, now: float) -> None:
        """Note that the peer answered on the present path."""
        if self._moved_at is not None:
            self.migrations += 1
            self.migration_seconds = now - self._moved_at
            self._moved_at = None
            _LOGGER.info(
                "The QUIC connection with %s goes on from a new socket; the broker answered there after %.0f ms",
                self.address,
                self.migration_seconds * 1000,
            )

    def _forget_old_socket(self) -> None:
        if self._old_socket is not None:
            self._released_bytes = self._sum_bytes(self._old_socket)
            self._old_socket.close()
            self._old_socket = None

    def _sum_bytes(self, *sockets: PeerSocket | None) -> tuple[int, int]:
        used = [sock for sock in sockets if sock is not None]
        sent, received = self._released_bytes
        return sent + sum(sock.bytes_sent for sock in used), received + sum(sock.bytes_received for sock in used)

    @property
    def datagram_bytes(self) -> tuple[int, int]:
        """UDP payload sent and received, over all sockets."""
        return self._sum_bytes(self._socket, self._old_socket)

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
        self._liveness.stop()
        for handle in (self._flush_handle, self._timer):
            if handle is not None:
                handle.cancel()
        self._flush_handle = self._timer = None
        self._forget_old_socket()
        self._old_socket, self._socket = self._socket, None
        self._forget_old_socket()
        self._outgoing.clear()
        self._outgoing_size = self._unacknowledged = 0
        self._streams.clear()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
