"""The front's own kind of aioquic server connection: all private access to aioquic is here."""

from typing import override

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic import events
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.packet import pull_quic_transport_parameters, push_quic_transport_parameters
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from cryptography import x509
from cryptography.exceptions import InvalidSignature

MQTT_STREAM = 0
"""The client's first bidirectional stream."""


class FrontQuic(QuicConnection):
    """A server connection whose receive windows follow what was consumed, with EMQX's transport parameters.

    aioquic by itself doubles its windows whether the application reads or not, so that nothing would ever push back.
    """

    def __init__(
        self,
        *,
        window: int,
        bidirectional_streams: int,
        want_client_certificate: bool,
        migration: bool,
        **arguments: object,
    ) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self._window = window
        self._want_client_certificate = want_client_certificate
        self._migration = migration
        self.consumed = 0
        # msquic as EMQX sets it up: 10 bidirectional streams and one unidirectional.
        self._local_max_streams_bidi.value = bidirectional_streams
        self._local_max_streams_uni.value = 1

    @override
    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls._request_client_certificate = self._want_client_certificate

    @override
    def _serialize_transport_parameters(self) -> bytes:
        # EMQX sends no max_idle_timeout, so that the client's alone counts; aioquic always sends one.
        parameters = pull_quic_transport_parameters(Buffer(data=super()._serialize_transport_parameters()))
        parameters.max_idle_timeout = None
        parameters.disable_active_migration = not self._migration
        buffer = Buffer(capacity=512)
        push_quic_transport_parameters(buffer, parameters)
        return bytes(buffer.data)

    @override
    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        if stream.stream_id == MQTT_STREAM:
            limit = self.consumed + self._window
            if limit - stream.max_stream_data_local >= self._window // 2:
                stream.max_stream_data_local = limit
            # Zero keeps the parent's doubling from happening.
            highest, stream.receiver.highest_offset = stream.receiver.highest_offset, 0
            try:
                super()._write_stream_limits(builder, space, stream)
            finally:
                stream.receiver.highest_offset = highest
        else:
            super()._write_stream_limits(builder, space, stream)

    @property
    def mqtt_stream_open(self) -> bool:
        """Whether the client opened the MQTT stream and not both sides of it are finished."""
        return MQTT_STREAM in self._streams

    @property
    def unacknowledged(self) -> int:
        """Bytes of the MQTT stream the client has not acknowledged yet."""
        stream = self._streams.get(MQTT_STREAM)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender._buffer_start

    @property
    def closed_by_peer(self) -> events.ConnectionTerminated | None:
        """The client's CONNECTION_CLOSE, without waiting for the end of the draining period."""
        return self._close_event if self._state is QuicConnectionState.DRAINING else None

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The client's certificate, if it sent one."""
        return self.tls._peer_certificate


def issued_by(certificate: x509.Certificate, ca_pem: str) -> bool:
    """Tell whether a certificate was signed by an authority."""
    authority = x509.load_pem_x509_certificate(ca_pem.encode())
    try:
        certificate.verify_directly_issued_by(authority)
    except ValueError, TypeError, InvalidSignature:
        return False
    return True
