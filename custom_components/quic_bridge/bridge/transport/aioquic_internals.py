"""Everything that reaches into aioquic's private parts, in one place, for one pinned version (1.7.2).

What is assumed of aioquic is said where it is used, and each assumption has its test in
tests/bridge/test_aioquic_internals.py, so that an upgrade fails there and not in the field.
"""

from collections.abc import Callable
import hmac
import math
import ssl
from typing import Any, Final, cast, override

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.base import create_congestion_control
from aioquic.quic.connection import QuicConnection, QuicConnectionAdapter, QuicConnectionState, QuicReceiveContext
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicProtocolVersion,
    pull_quic_transport_parameters,
)
from aioquic.quic.packet_builder import QuicPacketBuilder, QuicSentPacket
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketSpace
from aioquic.quic.stream import QuicStream
from cryptography import x509

from ..errors import BridgeError, ErrorCode

STREAM_ID: Final = 0
"""The one stream: the first bidirectional one a client opens."""
FOREIGN_STREAMS: Final = 8
"""Streams of each kind that the peer may have open; nothing that it sends there is kept."""
ACK_DELAY: Final = 0.015
"""Seconds that the acknowledgement of a lone packet waits for company; we announce at most 25 ms (max_ack_delay)."""
ACK_SOON: Final = 0.001
"""... and of several: as long as aioquic gives each."""
PROBE_INTERVAL: Final = 2.0
"""Most seconds between probes while the peer is silent and data is under way, or two PTO if that is longer.

RFC 9002 (section 6.2.1) doubles the wait each time: after an outage, nothing may be tried for as long as it took.
A small packet each 2 s, until the PING's deadline ends the connection, burdens no network.
"""
MAX_ALERT_TEXT: Final = 200
"""aioquic cannot build a CONNECTION_CLOSE whose reason does not fit one packet."""
STATELESS_RESET_SIZE: Final = 21
"""Smallest stateless reset (RFC 9000 section 10.3)."""
RESET_TOKEN_SIZE: Final = 16

_VERSION_NAMES: Final[dict[int, str]] = {
    QuicProtocolVersion.VERSION_1: "QUIC v1",
    QuicProtocolVersion.VERSION_2: "QUIC v2",
}
_ALERTS: Final = {
    ErrorCode.CERTIFICATE_EXPIRED: tls.AlertDescription.certificate_expired,
    ErrorCode.CERTIFICATE_UNTRUSTED: tls.AlertDescription.unknown_ca,
}

type CertificateCheck = Callable[[x509.Certificate, list[x509.Certificate]], None]
"""Returns if the peer's certificate (and the chain it sent) is good, else raises BridgeError."""


class _CertificateAlert(tls.Alert):
    """The alert that ends a handshake in which our own check refused the certificate."""

    def __init__(self, error: BridgeError) -> None:
        super().__init__(error.text[:MAX_ALERT_TEXT].encode("ascii", "replace").decode())
        self.description = _ALERTS.get(error.code, tls.AlertDescription.bad_certificate)


class _QuietAdapter(QuicConnectionAdapter):
    """aioquic's logger without its warnings: each becomes a BridgeError, which is logged where it matters."""

    @override
    def warning(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)

    @override
    def error(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)


class ClientConnection(QuicConnection):
    """A QuicConnection for one client stream, whose receive windows follow what the application took.

    aioquic itself doubles its windows as data arrives, so that a slow application buffers without bound.
    """

    certificate_error: BridgeError | None = None
    """Why our check refused the peer's certificate, once it did."""
    certificate_checked: bool = False
    """The peer's certificate passed our check, or none was asked for."""
    packets_received: int = 0
    """Packets that were authentic and new: what proves that the peer lives."""
    packets_acknowledged: int = 0
    """Packets of ours that the peer acknowledged: what proves that it hears us."""
    packets_lost: int = 0
    """Packets declared lost by loss detection (not those a probe timeout sent again on suspicion)."""

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        verify: CertificateCheck | None,
        on_ticket: tls.SessionTicketHandler | None = None,
    ) -> None:
        """Make a client connection; `verify` None accepts any certificate.

        The configuration's max_stream_data is the receive window. Its session_ticket, if it allows early data, makes
        what is written before the handshake leave at once, readable by the peer alone but open to replay (0-RTT).
        `on_ticket` gets each ticket that the peer gives.
        """
        self._verify = verify
        self._consumed = 0
        self._unanswered = 0
        self._window = configuration.max_stream_data
        self.certificate_checked = verify is None
        if verify is None:
            configuration.verify_mode = ssl.CERT_NONE
        else:
            # Nothing is trusted: should our check below ever not be called, aioquic's own refuses every certificate.
            configuration.verify_mode = ssl.CERT_REQUIRED
            configuration.cadata = b""
        super().__init__(configuration=configuration, session_ticket_handler=on_ticket)
        self._logger = _QuietAdapter(self._logger.logger, self._logger.extra)
        for limit in (self._local_max_streams_bidi, self._local_max_streams_uni):
            limit.value = limit.sent = FOREIGN_STREAMS
        self._ack_delay = ACK_DELAY
        self._may_move = True
        self._path_is_new = False
        self._watch_packets()
        self._probe_regularly()

    # What aioquic calls

    @override
    def _initialize(self, peer_cid: bytes) -> None:
        if self._spaces:
            # A Retry: what left as early data would be waited for in a packet space that is gone.
            self._send_again(0.0)
        super()._initialize(peer_cid)
        # `tls` is made anew here, also after a Retry.
        if self._verify is not None:
            aioquics_own = self.tls._client_handle_certificate_verify
            verify = self._verify

            def check_certificate(input_buf: Buffer) -> None:
                context = self.tls
                certificate = context._peer_certificate
                try:
                    verify(cast("x509.Certificate", certificate), context._peer_certificate_chain)
                except BridgeError as error:
                    self.certificate_error = error
                    raise _CertificateAlert(error) from error
                context._verify_mode = ssl.CERT_NONE
                aioquics_own(input_buf)  # the proof that the peer holds the certificate's key
                self.certificate_checked = True

            self.tls._client_handle_certificate_verify = check_certificate  # type: ignore[method-assign]

    @override
    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        if from_session_ticket:
            return
        parameters = pull_quic_transport_parameters(Buffer(data=data))
        if parameters.max_idle_timeout == 0:
            # "No timeout" (RFC 9000 section 18.2); aioquic takes it for 0 s and ends the connection after 3 PTO.
            self._remote_max_idle_timeout = None
        if parameters.ack_delay_exponent is not None:
            # aioquic assigns the old value to itself; msquic uses 8, not the default 3.
            self._remote_ack_delay_exponent = parameters.ack_delay_exponent
        self._may_move = not parameters.disable_active_migration
        # Our socket is connected to one address, so the peer's preferred one cannot be probed from it.
        self._remote_preferred_address = None

    @override
    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        self.packets_received += 1
        found = super()._payload_received(context, plain, crypto_frame_required)
        if found[0] and context.epoch is tls.Epoch.ONE_RTT:
            self._unanswered += 1
        return found

    @override
    def _write_ack_frame(self, builder: QuicPacketBuilder, space: QuicPacketSpace, now: float) -> None:
        super()._write_ack_frame(builder, space, now)
        if space.is_application_data:
            self._unanswered = 0

    @override
    def _write_ping_frame(self, builder: QuicPacketBuilder, uids: list[int] = [], comment: str = "") -> None:  # noqa: B006 - aioquic's
        super()._write_ping_frame(builder, uids, comment)
        if self._path_is_new:
            # aioquic fills such a datagram up with PADDING, if congestion control lets it.
            self._path_is_new = False
            builder._datagram_needs_padding = True

    @override
    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        if stream.max_stream_data_local_sent == stream.max_stream_data_local:
            return
        receiver = stream.receiver
        received, receiver.highest_offset = receiver.highest_offset, 0  # what aioquic doubles the window by
        try:
            super()._write_stream_limits(builder, space, stream)
        finally:
            receiver.highest_offset = received

    @override
    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        data, bidi, uni = self._local_max_data, self._local_max_streams_bidi, self._local_max_streams_uni
        if data.sent == data.value and bidi.sent == bidi.value and uni.sent == uni.value:
            return
        used, data.used = data.used, 0  # what aioquic doubles the window by
        try:
            super()._write_connection_limits(builder, space)
        finally:
            data.used = used

    def _watch_packets(self) -> None:
        """Count what the congestion controller hears."""
        control = self._loss._cc
        acked, lost = control.on_packet_acked, control.on_packets_lost

        def on_packet_acked(*, now: float, packet: QuicSentPacket) -> None:
            self.packets_acknowledged += 1
            acked(now=now, packet=packet)

        def on_packets_lost(*, now: float, packets: list[QuicSentPacket]) -> None:
            self.packets_lost += len(packets)
            lost(now=now, packets=packets)

        control.on_packet_acked = on_packet_acked  # type: ignore[method-assign]
        control.on_packets_lost = on_packets_lost  # type: ignore[method-assign,assignment]

    def _probe_regularly(self) -> None:
        """Limit how far the waits for a silent peer grow."""
        loss = self._loss
        aioquics_own = loss.get_loss_detection_time

        def get_loss_detection_time(*, amplification_limited: bool) -> float | None:
            at = aioquics_own(amplification_limited=amplification_limited)
            if at is None or not loss.handshake_confirmed or loss._get_loss_space() is not None:
                return at
            longest = max(PROBE_INTERVAL, 2 * loss.get_probe_timeout())
            return min(at, loss._time_of_last_sent_ack_eliciting_packet + longest)

        loss.get_loss_detection_time = get_loss_detection_time  # type: ignore[method-assign]

    # What the driver asks

    def hasten_ack(self, now: float) -> None:
        """After a burst: acknowledge soon if more than one packet waits for it, or one is missing (RFC 9000 13.2)."""
        space = self._spaces[tls.Epoch.ONE_RTT]
        if self._unanswered < 2 and len(space.ack_queue) < 2:
            return
        if space.ack_at is not None and space.ack_at > now + ACK_SOON:
            space.ack_at = now + ACK_SOON

    def carry_ack(self, now: float) -> None:
        """Let an acknowledgement that waits leave with the data that is about to be sent."""
        if self._unanswered and self._loss._pacer.next_send_time(now=now) is None:
            space = self._spaces[tls.Epoch.ONE_RTT]
            if space.ack_at is not None:
                space.ack_at = now

    @property
    def must_stay(self) -> bool:
        """The peer forbids its clients to go on from another address (disable_active_migration, RFC 9000 18.2)."""
        return not self._may_move

    @property
    def can_move(self) -> bool:
        """The connection may go on from another local address (RFC 9000 section 9).

        The handshake is confirmed, the peer did not forbid it, and there is a connection identifier of the peer's that
        was not used before (also never with a peer that uses none).
        """
        return self._handshake_confirmed and self._may_move and bool(self._peer_cid_available)

    def move(self, now: float) -> None:
        """Begin a new path: under another connection identifier, and with nothing known of its RTT and capacity.

        What is under way is sent again at once: the old path may be gone. Its late acknowledgements teach us nothing
        about the new one (RFC 9000 section 9.4). The next PING fills its datagram: until the peer has validated our
        new address it may send three times what came from there (section 8.1), and that of a lone PING would be less
        than one message.
        """
        self.change_connection_id()
        self._path_is_new = True
        loss, space = self._loss, self._spaces[tls.Epoch.ONE_RTT]
        loss._on_packets_lost(congestion_event=False, now=now, packets=tuple(space.sent_packets.values()), space=space)
        space.loss_time = None
        loss._pto_count = 0
        loss._rtt_initialized = False
        loss._rtt_min = math.inf
        size = self._max_datagram_size
        loss._cc = create_congestion_control(self._configuration.congestion_control_algorithm, max_datagram_size=size)
        loss._pacer = QuicPacketPacer(max_datagram_size=size)
        self._watch_packets()

    def rotate(self) -> bool:
        """Go over to another connection identifier of the peer's, if there is one more than a `move` needs."""
        if not self._handshake_confirmed or len(self._peer_cid_available) < 2:
            return False
        self.change_connection_id()
        return True

    def _send_again(self, now: float) -> None:
        """Take all application data under way for not delivered, though by no fault of the network's."""
        space = self._spaces[tls.Epoch.ONE_RTT]
        packets = tuple(space.sent_packets.values())
        self._loss._on_packets_lost(congestion_event=False, now=now, packets=packets, space=space)
        space.loss_time = None

    def early_data_refused(self, now: float) -> None:
        """Send early data again, which the peer did not take, within the limits that it has named now.

        aioquic by itself waits until loss detection finds out.
        """
        self._send_again(now)
        stream = self._streams.get(STREAM_ID)
        if stream is not None:
            stream.max_stream_data_remote = self._remote_max_stream_data_bidi_remote

    def consume(self, size: int) -> bool:
        """Note that the application took `size` more bytes of the stream; return if the peer is due more credit."""
        self._consumed += size
        stream = self._streams.get(STREAM_ID)
        if stream is None:
            return False
        limit = self._consumed + self._window
        if limit - stream.max_stream_data_local < self._window // 2:
            return False
        stream.max_stream_data_local = limit
        self.raise_connection_window()
        return True

    def raise_connection_window(self) -> None:
        """Let the connection's window follow: all data but what waits in our stream counts as taken."""
        stream = self._streams.get(STREAM_ID)
        waiting = stream.receiver.highest_offset - self._consumed if stream is not None else 0
        limit = self._local_max_data.used - waiting + self._window
        if limit - self._local_max_data.value >= self._window // 2:
            self._local_max_data.value = limit

    def refuse_stream(self, stream_id: int) -> None:
        """Ask the peer to stop sending on a stream of its own."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            self.stop_stream(stream_id, QuicErrorCode.NO_ERROR)

    @property
    def unacknowledged(self) -> int:
        """Bytes of the stream that the peer has not acknowledged, sent or not."""
        return self.unacknowledged_on(STREAM_ID)

    def unacknowledged_on(self, stream_id: int) -> int:
        """Bytes of a stream that the peer has not acknowledged, sent or not."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return 0
        sender = stream.sender
        return sender._buffer_stop - sender._buffer_start

    def next_stream(self) -> int | None:
        """Return the identifier of the next bidirectional stream; None while the peer allows no more.

        What aioquic writes to a stream over the peer's limit waits there, unseen.
        """
        stream_id = self.get_next_available_stream_id()
        return stream_id if stream_id // 4 < self._remote_max_streams_bidi else None

    def credit_stream(self, stream_id: int) -> None:
        """Let the peer go on sending on a stream whose data is taken at once."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            limit = stream.receiver.highest_offset + self._window
            if limit - stream.max_stream_data_local >= self._window // 2:
                stream.max_stream_data_local = limit
        self.raise_connection_window()

    def give_up_stream(self, stream_id: int, code: int) -> None:
        """End a stream in both directions: RESET_STREAM and STOP_SENDING."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        self.reset_stream(stream_id, code)
        if not stream.receiver.is_finished:
            self.stop_stream(stream_id, code)

    @property
    def is_trusted(self) -> bool:
        """The peer is who it should be: without this a handshake must not count.

        Either its certificate passed our check, or it took a ticket, whose secret only the peer of an earlier
        connection knows, in which the certificate did.
        """
        return self.certificate_checked or self.resumed

    @property
    def resumed(self) -> bool:
        """The handshake went by a ticket, without certificates."""
        return self._connect_called and self.tls.session_resumed

    @property
    def certificate(self) -> x509.Certificate | None:
        """The peer's certificate; a resumed handshake has none."""
        return self.tls._peer_certificate if self._connect_called else None

    @property
    def close_event(self) -> ConnectionTerminated | None:
        """Why the connection ends, known at once; aioquic's event comes only after draining (3 PTO)."""
        return self._close_event

    @property
    def closed_by_peer(self) -> bool:
        """The end was announced by the peer's CONNECTION_CLOSE, not found by us."""
        return self._state is QuicConnectionState.DRAINING

    @property
    def is_closed(self) -> bool:
        """Nothing can be sent any more, not even CONNECTION_CLOSE."""
        return self._state in {
            QuicConnectionState.CLOSING,
            QuicConnectionState.DRAINING,
            QuicConnectionState.TERMINATED,
        }

    @property
    def idle_timeout(self) -> float:
        """Seconds of silence after which the connection ends: the smaller of both sides' wishes."""
        return self._idle_timeout()

    @property
    def probe_timeout(self) -> float:
        """PTO without back-off, in seconds (RFC 9002 section 6.2.1)."""
        return self._loss.get_probe_timeout()

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time in seconds."""
        return self._loss._rtt_smoothed if self._loss._rtt_initialized else None

    @property
    def packets_sent(self) -> int:
        """Packets sent in all packet number spaces."""
        return self._packet_number

    @property
    def key_phase(self) -> int:
        """Which of the two key phases is in use (RFC 9001 section 6)."""
        return self._cryptos[tls.Epoch.ONE_RTT].key_phase

    @property
    def version_name(self) -> str | None:
        """The negotiated version."""
        return None if self._version is None else _VERSION_NAMES.get(self._version, hex(self._version))

    @property
    def cipher_name(self) -> str | None:
        """The negotiated cipher suite."""
        schedule = self.tls.key_schedule if self._connect_called else None
        return None if schedule is None else schedule.cipher_suite.name

    def is_stateless_reset(self, datagram: bytes) -> bool:
        """Tell if a datagram that held no packet of ours ends with a token the peer gave us; aioquic never looks."""
        if len(datagram) < STATELESS_RESET_SIZE or datagram[0] & 0x80:
            return False
        token = datagram[-RESET_TOKEN_SIZE:]
        return any(
            cid.stateless_reset_token and hmac.compare_digest(token, cid.stateless_reset_token)
            for cid in (self._peer_cid, *self._peer_cid_available)
        )


def is_idle_timeout(event: ConnectionTerminated) -> bool:
    """Tell aioquic's idle timeout from an internal error: by nothing but its text."""
    return (
        event.error_code == QuicErrorCode.INTERNAL_ERROR
        and event.frame_type == QuicFrameType.PADDING
        and event.reason_phrase == "Idle timeout"
    )
