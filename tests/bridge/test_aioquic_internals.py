"""One test for each thing that we assume of aioquic's private parts: an upgrade that changes one fails here.

Client and server talk in memory, at times of our own choosing.
"""

from collections.abc import Callable
from dataclasses import replace
import importlib.metadata
from ipaddress import IPv4Address
from itertools import pairwise
import logging
import ssl
from typing import override

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import Limit, QuicConnection
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicPreferredAddress,
    QuicTransportParameters,
    encode_quic_retry,
    pull_quic_transport_parameters,
    push_quic_transport_parameters,
)
from aioquic.tls import AlertDescription, Epoch, SessionTicket
import certifi
from cryptography import x509
import pytest

from custom_components.quic_bridge.bridge.errors import BridgeError, ErrorCode
from custom_components.quic_bridge.bridge.transport.aioquic_internals import (
    ACK_DELAY,
    ACK_SOON,
    FOREIGN_STREAMS,
    MAX_ALERT_TEXT,
    PROBE_INTERVAL,
    STREAM_ID,
    CertificateCheck,
    ClientConnection,
    is_idle_timeout,
)

from ..support.certs import Certificates

WINDOW = 64 * 1024
ADDRESS = ("192.0.2.1", 14567)
CLIENT = ("192.0.2.2", 50000)
DELAY = 0.01


class ServerConnection(QuicConnection):
    """A server that says what a test wants it to say in its transport parameters."""

    change: Callable[[QuicTransportParameters], None] | None = None

    @override
    def _serialize_transport_parameters(self) -> bytes:
        from aioquic._buffer import Buffer

        data = super()._serialize_transport_parameters()
        if self.change is None:
            return data
        parameters = pull_quic_transport_parameters(Buffer(data=data))
        type(self).change(parameters)  # type: ignore[misc]
        buffer = Buffer(capacity=2000)
        push_quic_transport_parameters(buffer, parameters)
        return buffer.data


def accept(certificate: x509.Certificate, chain: list[x509.Certificate]) -> None:
    """Trust anybody."""


class Pair:
    """A client and, once it has heard of it, a server."""

    def __init__(
        self,
        certs: Certificates,
        verify: CertificateCheck | None = accept,
        *,
        ticket: SessionTicket | None = None,
        known: SessionTicket | None = None,
        early: bytes = b"",
    ) -> None:
        """Begin the client's handshake: with a ticket, if there is one, of which the server knows `known`."""
        self.tickets: list[SessionTicket] = []
        self.known = known
        self.now = 100.0
        self.client = ClientConnection(
            configuration=QuicConfiguration(
                alpn_protocols=["mqtt"],
                server_name="localhost",
                max_data=WINDOW,
                max_stream_data=WINDOW,
                session_ticket=ticket,
            ),
            verify=verify,
            on_ticket=self.tickets.append,
        )
        self.server_configuration = QuicConfiguration(is_client=False, alpn_protocols=["mqtt"])
        self.server_configuration.load_cert_chain(certs.server.cert_file, certs.server.key_file)
        self.server_class: type[QuicConnection] = QuicConnection
        self.server: QuicConnection | None = None
        self.client_events: list[events.QuicEvent] = []
        self.server_events: list[events.QuicEvent] = []
        self.client.connect(ADDRESS, self.now)
        if early:
            self.client.send_stream_data(STREAM_ID, early)

    @property
    def peer(self) -> QuicConnection:
        """The server."""
        assert self.server is not None
        return self.server

    def to_server(self, *, drop: bool = False) -> list[bytes]:
        """Carry the client's datagrams to the server."""
        sent = self.client.datagrams_to_send(self.now)
        assert all(address == ADDRESS for _, address in sent)
        if self.server is None and sent:
            first = sent[0][0]
            self.server = self.server_class(
                configuration=self.server_configuration,
                original_destination_connection_id=first[6 : 6 + first[5]],
                session_ticket_fetcher=lambda _: self.known,
                session_ticket_handler=lambda _: None,
            )
        if not drop:
            for datagram, _ in sent:
                self.peer.receive_datagram(datagram, CLIENT, self.now)
        while self.server is not None and (event := self.server.next_event()) is not None:
            self.server_events.append(event)
        return [datagram for datagram, _ in sent]

    def to_client(self, *, drop: bool = False) -> list[bytes]:
        """Carry the server's datagrams to the client."""
        sent = [datagram for datagram, _ in self.peer.datagrams_to_send(self.now)]
        if not drop:
            for datagram in sent:
                self.client.receive_datagram(datagram, ADDRESS, self.now)
        self.collect()
        return sent

    def collect(self) -> None:
        """Note the client's events."""
        while (event := self.client.next_event()) is not None:
            self.client_events.append(event)

    def settle(self, rounds: int = 8) -> None:
        """Let both talk until they have nothing more to say."""
        for _ in range(rounds):
            self.to_server()
            self.now += DELAY
            self.to_client()
            self.now += DELAY
            for end in (self.client, self.peer):
                at = end.get_timer()
                if at is not None and at <= self.now:
                    end.handle_timer(self.now)

    def server_data(self) -> bytes:
        """Return what the server got on our stream."""
        found = (event for event in self.server_events if isinstance(event, events.StreamDataReceived))
        return b"".join(event.data for event in found if event.stream_id == STREAM_ID)


@pytest.fixture
def pair(certs: Certificates) -> Pair:
    """A pair whose handshake is complete and confirmed."""
    pair = Pair(certs)
    pair.settle()
    assert pair.client._handshake_confirmed
    return pair


def test_this_is_the_version_all_of_it_was_read_in() -> None:
    assert importlib.metadata.version("aioquic") == "1.7.2"


def test_our_stream_is_the_clients_first(pair: Pair) -> None:
    assert pair.client.get_next_available_stream_id() == STREAM_ID


# The certificate


def test_the_check_sees_the_certificate_and_its_chain(certs: Certificates) -> None:
    seen: list[tuple[x509.Certificate, list[x509.Certificate]]] = []
    pair = Pair(certs, lambda certificate, chain: seen.append((certificate, chain)))
    pair.server_configuration.certificate_chain = [x509.load_pem_x509_certificate(certs.ca_pem.encode())]
    assert not pair.client.is_trusted
    pair.settle()
    assert seen == [
        (
            x509.load_pem_x509_certificate(certs.server.pem.encode()),
            [x509.load_pem_x509_certificate(certs.ca_pem.encode())],
        )
    ]
    assert pair.client.is_trusted
    assert any(isinstance(event, events.HandshakeCompleted) for event in pair.client_events)


@pytest.mark.parametrize(
    ("code", "alert"),
    [
        (ErrorCode.CERTIFICATE_EXPIRED, AlertDescription.certificate_expired),
        (ErrorCode.CERTIFICATE_UNTRUSTED, AlertDescription.unknown_ca),
        (ErrorCode.CERTIFICATE_NAME, AlertDescription.bad_certificate),
    ],
)
def test_a_refused_certificate_ends_the_handshake(certs: Certificates, code: ErrorCode, alert: int) -> None:
    refusal = BridgeError(code, "é" * 2000)

    def refuse(certificate: x509.Certificate, chain: list[x509.Certificate]) -> None:
        raise refusal

    pair = Pair(certs, refuse)
    pair.to_server()
    flight = pair.to_client()
    assert pair.client.certificate_error is refusal
    assert pair.client.close_event is not None
    assert pair.client.close_event.error_code == QuicErrorCode.CRYPTO_ERROR + alert
    assert not pair.client.closed_by_peer
    # What follows the refusal in the same burst does not complete the handshake behind our back.
    for datagram in flight:
        pair.client.receive_datagram(datagram, ADDRESS, pair.now)
    pair.collect()
    assert not pair.client.is_trusted
    assert not any(isinstance(event, events.HandshakeCompleted) for event in pair.client_events)
    # Whatever the length of the text, the server is told.
    pair.to_server()
    assert pair.peer._close_event is not None
    assert pair.peer._close_event.error_code == QuicErrorCode.CRYPTO_ERROR + alert
    assert len(pair.peer._close_event.reason_phrase) == MAX_ALERT_TEXT


def test_the_proof_of_the_key_is_still_demanded(certs: Certificates) -> None:
    """A server with somebody else's certificate: our check likes it, the signature does not fit."""
    pair = Pair(certs)
    pair.server_configuration.certificate = x509.load_pem_x509_certificate(certs.other_name.pem.encode())
    pair.to_server()
    pair.to_client()
    assert pair.client.close_event is not None
    assert pair.client.close_event.error_code == QuicErrorCode.CRYPTO_ERROR + AlertDescription.decrypt_error
    assert not pair.client.is_trusted


def test_without_our_check_aioquic_trusts_nobody(certs: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ClientConnection, "_initialize")
    monkeypatch.setattr(certifi, "where", lambda: str(certs.ca_file))
    pair = Pair(certs)
    pair.to_server()
    pair.to_client()
    assert pair.client.close_event is not None
    assert pair.client.close_event.error_code == QuicErrorCode.CRYPTO_ERROR + AlertDescription.bad_certificate
    assert not pair.client.is_trusted


def test_no_check_wanted(certs: Certificates) -> None:
    pair = Pair(certs, None)
    pair.settle()
    assert pair.client.is_trusted
    assert pair.client.configuration.verify_mode == ssl.CERT_NONE


def test_the_check_survives_a_retry(certs: Certificates) -> None:
    seen: list[x509.Certificate] = []
    pair = Pair(certs, lambda certificate, chain: seen.append(certificate))
    first = pair.client.datagrams_to_send(pair.now)[0][0]
    original, source = first[6:14], b"retry..."
    context = pair.client.tls
    retry = encode_quic_retry(
        version=1,
        source_cid=source,
        destination_cid=pair.client.host_cid,
        original_destination_cid=original,
        retry_token=b"token",
    )
    pair.client.receive_datagram(retry, ADDRESS, pair.now)
    assert pair.client.tls is not context
    pair.server = QuicConnection(
        configuration=pair.server_configuration,
        original_destination_connection_id=original,
        retry_source_connection_id=source,
    )
    pair.settle()
    assert len(seen) == 1
    assert pair.client.is_trusted
    assert pair.client._handshake_confirmed


# Tickets


@pytest.fixture
def ticket(pair: Pair) -> SessionTicket:
    """A ticket of the server's."""
    (ticket,) = pair.tickets
    return ticket


def refuse(certificate: x509.Certificate, chain: list[x509.Certificate]) -> None:
    """Trust nobody."""
    raise BridgeError(ErrorCode.CERTIFICATE_UNTRUSTED, "nobody")


def completed(pair: Pair) -> events.HandshakeCompleted:
    """Return how the client's handshake ended."""
    (event,) = [event for event in pair.client_events if isinstance(event, events.HandshakeCompleted)]
    return event


def test_a_resumed_handshake_shows_no_certificate_and_is_trusted(certs: Certificates, ticket: SessionTicket) -> None:
    pair = Pair(certs, refuse, ticket=ticket, known=ticket)
    assert not pair.client.is_trusted
    assert not pair.client.resumed
    pair.settle()
    assert completed(pair).session_resumed
    assert pair.client.resumed
    assert pair.client.is_trusted
    assert not pair.client.certificate_checked
    assert pair.client.certificate is None
    assert len(pair.tickets) == 1, "the next connection needs one, too"


def test_a_full_handshake_shows_its_certificate(pair: Pair, certs: Certificates) -> None:
    assert not pair.client.resumed
    assert pair.client.certificate == x509.load_pem_x509_certificate(certs.server.pem.encode())
    fresh = ClientConnection(configuration=QuicConfiguration(), verify=None)
    assert (fresh.certificate, fresh.resumed) == (None, False)


def test_who_does_not_know_the_tickets_secret_does_not_pass(certs: Certificates, ticket: SessionTicket) -> None:
    pair = Pair(certs, refuse, ticket=ticket, known=replace(ticket, resumption_secret=bytes(48)))
    pair.settle()
    assert not pair.client.is_trusted
    assert not any(isinstance(event, events.HandshakeCompleted) for event in pair.client_events)


def test_a_ticket_that_is_refused_leads_to_the_certificate(certs: Certificates, ticket: SessionTicket) -> None:
    pair = Pair(certs, ticket=ticket)
    pair.settle()
    assert not completed(pair).session_resumed
    assert pair.client.certificate_checked
    pair = Pair(certs, refuse, ticket=ticket)
    pair.settle()
    assert pair.client.certificate_error is not None
    assert not pair.client.is_trusted


def test_early_data_comes_with_the_first_flight_and_once(certs: Certificates, ticket: SessionTicket) -> None:
    pair = Pair(certs, ticket=ticket, known=ticket, early=b"early")
    pair.to_server()
    assert pair.server_data() == b"early"
    pair.settle()
    assert completed(pair).early_data_accepted
    pair.client.send_stream_data(STREAM_ID, b", late")
    pair.settle()
    assert pair.server_data() == b"early, late"


def test_no_early_data_with_a_ticket_that_does_not_allow_it(certs: Certificates, ticket: SessionTicket) -> None:
    ticket = replace(ticket, max_early_data_size=None)
    pair = Pair(certs, ticket=ticket, known=ticket, early=b"early")
    pair.to_server()
    assert pair.server_data() == b""
    pair.settle()
    assert pair.server_data() == b"early"


def test_refused_early_data_is_sent_again_at_once(
    certs: Certificates, ticket: SessionTicket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """... within the limits of now, which may be narrower than those that the ticket remembers."""

    def narrow(parameters: QuicTransportParameters) -> None:
        parameters.initial_max_stream_data_bidi_remote = 3

    change(monkeypatch, narrow)
    pair = Pair(certs, ticket=ticket, early=b"early")
    pair.server_class = ServerConnection
    pair.to_server()
    assert pair.server_data() == b""
    pair.to_client()
    assert not completed(pair).early_data_accepted
    lost = pair.client.packets_lost
    pair.client.early_data_refused(pair.now)
    pair.to_server()
    assert pair.server_data() == b"ear"
    assert pair.client.packets_lost == lost
    assert pair.client.close_event is None


def test_early_data_survives_a_retry(certs: Certificates, ticket: SessionTicket) -> None:
    pair = Pair(certs, ticket=ticket, known=ticket, early=b"early")
    first = pair.client.datagrams_to_send(pair.now)[0][0]
    original, source = first[6:14], b"retry..."
    retry = encode_quic_retry(
        version=1,
        source_cid=source,
        destination_cid=pair.client.host_cid,
        original_destination_cid=original,
        retry_token=b"token",
    )
    pair.client.receive_datagram(retry, ADDRESS, pair.now)
    pair.server = QuicConnection(
        configuration=pair.server_configuration,
        original_destination_connection_id=original,
        retry_source_connection_id=source,
        session_ticket_fetcher=lambda _: ticket,
    )
    pair.settle()
    assert completed(pair).early_data_accepted
    assert pair.server_data() == b"early"


def test_what_a_ticket_remembers_is_not_taken_for_this_connection(
    certs: Certificates, ticket: SessionTicket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 9000 section 7.4.1."""

    def odd(parameters: QuicTransportParameters) -> None:
        parameters.ack_delay_exponent = 8
        parameters.disable_active_migration = True

    change(monkeypatch, odd)
    first = Pair(certs)
    first.server_class = ServerConnection
    first.settle()
    second = Pair(certs, ticket=first.tickets[0], known=first.tickets[0])
    assert second.client._remote_ack_delay_exponent == 3
    second.settle()
    assert second.client.can_move


# Transport parameters


def change(monkeypatch: pytest.MonkeyPatch, what: Callable[[QuicTransportParameters], None]) -> None:
    """Let servers say something else."""
    monkeypatch.setattr(ServerConnection, "change", staticmethod(what))


def test_no_idle_timeout_of_the_peer_is_none(certs: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_timeout(parameters: QuicTransportParameters) -> None:
        parameters.max_idle_timeout = 0

    change(monkeypatch, no_timeout)
    pair = Pair(certs)
    pair.server_class = ServerConnection
    pair.settle()
    assert pair.client.idle_timeout == 60.0
    at = pair.client.get_timer()
    assert at is not None
    assert at > pair.now + 59


def test_the_smaller_idle_timeout_counts(certs: Certificates) -> None:
    pair = Pair(certs)
    pair.server_configuration.idle_timeout = 7.0
    pair.settle()
    assert pair.client.idle_timeout == 7.0


def test_the_peers_ack_delay_exponent_is_used(certs: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    def msquic(parameters: QuicTransportParameters) -> None:
        parameters.ack_delay_exponent = 8

    change(monkeypatch, msquic)
    pair = Pair(certs)
    pair.server_class = ServerConnection
    pair.settle()
    assert pair.client._remote_ack_delay_exponent == 8


def test_the_peers_preferred_address_is_not_probed(certs: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(parameters: QuicTransportParameters) -> None:
        parameters.preferred_address = QuicPreferredAddress(
            ipv4_address=(str(IPv4Address("192.0.2.77")), 14567),
            ipv6_address=None,
            connection_id=b"12345678",
            stateless_reset_token=bytes(16),
        )

    change(monkeypatch, elsewhere)
    pair = Pair(certs)
    pair.server_class = ServerConnection
    pair.settle()  # `to_server` looks at the address of each datagram
    assert pair.client._handshake_confirmed
    assert len(pair.client._network_paths) == 1


# Another path


def test_a_move_uses_another_identifier_and_retires_the_old(pair: Pair) -> None:
    client = pair.client
    assert client.can_move
    used = client._peer_cid.cid
    client.move(pair.now)
    assert client._peer_cid.cid != used
    client.send_ping(1)
    pair.settle()
    assert events.PingAcknowledged(uid=1) in pair.client_events
    assert [event.connection_id for event in pair.server_events if type(event) is events.ConnectionIdRetired] == [used]
    # The peer gives a new one for each that is retired, so that this never ends.
    for number in range(20):
        assert client.can_move
        client.move(pair.now)
        client.send_ping(number + 2)
        pair.settle()
    assert client.close_event is None


def test_a_move_sends_again_what_is_under_way_and_knows_nothing_of_the_new_path(pair: Pair) -> None:
    client = pair.client
    client.send_stream_data(STREAM_ID, bytes(100_000))
    for _ in range(6):
        pair.to_server()
        pair.now += DELAY
        pair.to_client()
    loss = client._loss
    window = loss.congestion_window
    assert window > 10 * 1200
    pair.to_server(drop=True)
    assert loss.bytes_in_flight
    lost = client.packets_lost
    loss._pto_count = 3
    client.move(pair.now)
    assert loss.bytes_in_flight == 0
    assert loss.congestion_window == 10 * 1200
    assert client.rtt is None
    assert client.probe_timeout == 2 * client.configuration.initial_rtt
    assert client.packets_lost == lost, "they were not lost by the network's fault"
    assert pair.to_server(drop=False), "at once, not after a probe timeout"
    pair.settle(40)
    assert len(pair.server_data()) == 100_000
    assert client.unacknowledged == 0
    assert client.rtt == pytest.approx(DELAY, abs=2 * DELAY)
    # The new path's packets are counted as the old one's were.
    before = client.packets_acknowledged
    client.send_ping(1)
    pair.settle()
    assert client.packets_acknowledged > before


def test_the_first_packet_after_a_move_lets_the_peer_send_at_once(pair: Pair) -> None:
    """Until it has validated the new address, it may send three times as much as it got from there."""
    client = pair.client
    client.send_stream_data(STREAM_ID, b"hello")
    assert [len(datagram) < 100 for datagram in pair.to_server()] == [True]
    pair.settle()
    client.move(pair.now)
    client.send_ping(1)
    [(datagram, _)] = client.datagrams_to_send(pair.now)
    assert len(datagram) == 1200
    pair.peer.receive_datagram(datagram, ("192.0.2.3", 50000), pair.now)
    pair.peer.send_stream_data(STREAM_ID, bytes(2000))
    pair.now += DELAY
    assert sum(map(len, pair.to_client())) > 2000, "it waits for the new address to be validated"
    received = [event.data for event in pair.client_events if isinstance(event, events.StreamDataReceived)]
    assert sum(map(len, received)) == 2000
    # Once is enough.
    pair.settle()
    client.send_ping(2)
    assert [len(datagram) < 100 for datagram in pair.to_server()] == [True]


def test_no_move_before_the_handshake_is_confirmed(certs: Certificates) -> None:
    pair = Pair(certs)
    pair.to_server()
    assert not pair.client.can_move
    pair.settle()
    assert pair.client.can_move


def test_no_move_against_the_peers_will(certs: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(parameters: QuicTransportParameters) -> None:
        parameters.disable_active_migration = True

    change(monkeypatch, forbid)
    pair = Pair(certs)
    pair.server_class = ServerConnection
    pair.settle()
    assert pair.client._handshake_confirmed
    assert not pair.client.can_move


def test_no_move_without_a_spare_identifier(pair: Pair) -> None:
    while pair.client._peer_cid_available:
        pair.client.change_connection_id()
    assert not pair.client.can_move


def test_another_identifier_now_and_then(pair: Pair) -> None:
    """As often as one likes: the peer replaces each. One is left for a move."""
    client = pair.client
    seen = {client._peer_cid.cid}
    for number in range(20):
        assert client.rotate()
        client.send_ping(number)
        pair.settle()
        seen.add(client._peer_cid.cid)
        assert events.PingAcknowledged(uid=number) in pair.client_events
    assert len(seen) == 21
    assert client.close_event is None
    while client.rotate():
        pass
    assert client.can_move


def test_no_other_identifier_before_the_handshake_is_confirmed(certs: Certificates) -> None:
    assert not Pair(certs).client.rotate()


# Signs of life


def test_packets_that_the_peer_acknowledges_are_counted(pair: Pair) -> None:
    before = pair.client.packets_acknowledged
    pair.client.send_ping(1)
    pair.to_server()
    assert pair.client.packets_acknowledged == before
    pair.settle()
    assert pair.client.packets_acknowledged == before + 1


def test_only_authentic_and_new_packets_count(pair: Pair) -> None:
    pair.peer.send_ping(1)
    before = pair.client.packets_received
    (datagram,) = pair.to_client()
    assert pair.client.packets_received == before + 1
    pair.client.receive_datagram(datagram, ADDRESS, pair.now)
    pair.client.receive_datagram(datagram[:-1] + bytes([datagram[-1] ^ 1]), ADDRESS, pair.now)
    pair.client.receive_datagram(b"\x40" + bytes(40), ADDRESS, pair.now)
    pair.client.receive_datagram(b"", ADDRESS, pair.now)
    assert pair.client.packets_received == before + 1


def test_reset_tokens_are_known(pair: Pair) -> None:
    tokens = [cid.stateless_reset_token for cid in pair.peer._host_cids]
    assert len(tokens) > 1
    for token in tokens:
        assert pair.client.is_stateless_reset(b"\x41" + bytes(20) + token)
        assert pair.client.is_stateless_reset(b"\x41" + bytes(4) + token)
        assert not pair.client.is_stateless_reset(b"\x41" + bytes(3) + token)
        assert not pair.client.is_stateless_reset(b"\xc1" + bytes(20) + token)
    assert not pair.client.is_stateless_reset(b"\x41" + bytes(36))


def test_an_idle_timeout_is_told_from_an_error(pair: Pair) -> None:
    pair.client.handle_timer(pair.now + 61)
    pair.collect()
    event = pair.client.close_event
    assert event is not None
    assert event in pair.client_events
    assert is_idle_timeout(event)
    assert pair.client.is_closed
    assert not pair.client.closed_by_peer
    assert pair.client.get_timer() is None
    assert not is_idle_timeout(events.ConnectionTerminated(QuicErrorCode.INTERNAL_ERROR, 0, "Something else"))
    assert not is_idle_timeout(events.ConnectionTerminated(QuicErrorCode.INTERNAL_ERROR, None, "Idle timeout"))


def test_the_peers_close_is_known_before_draining(pair: Pair) -> None:
    assert pair.client.close_event is None
    assert not pair.client.is_closed
    pair.peer.close(2, reason_phrase="full")
    pair.to_client()
    assert pair.client.close_event == events.ConnectionTerminated(2, None, "full")
    assert pair.client.closed_by_peer
    assert pair.client.is_closed
    assert not any(isinstance(event, events.ConnectionTerminated) for event in pair.client_events)


def test_our_close_is_sent_once(pair: Pair) -> None:
    pair.client.close()
    assert pair.client.close_event is not None
    assert not pair.client.closed_by_peer
    assert not pair.client.is_closed
    assert len(pair.to_server()) == 1
    assert pair.client.is_closed
    assert pair.peer._close_event == events.ConnectionTerminated(0, None, "")


# Flow control


def send(pair: Pair, size: int, stream_id: int = STREAM_ID) -> int:
    """Let the server send, and return how many bytes it was able to."""
    before = pair.peer._streams[stream_id].sender.highest_offset if stream_id in pair.peer._streams else 0
    pair.peer.send_stream_data(stream_id, bytes(size))
    pair.settle(20)
    return pair.peer._streams[stream_id].sender.highest_offset - before


def test_the_window_follows_consumption(pair: Pair) -> None:
    pair.client.send_stream_data(STREAM_ID, b"x")
    pair.settle()
    assert send(pair, 3 * WINDOW) == WINDOW
    assert not pair.client.consume(WINDOW // 2 - 1)
    assert pair.client.consume(1)
    pair.settle(20)
    sender = pair.peer._streams[STREAM_ID].sender
    assert sender.highest_offset == WINDOW * 3 // 2
    # A lost update is sent again.
    assert pair.client.consume(WINDOW)
    assert pair.to_server(drop=True)
    for _ in range(10):
        pair.now += 0.5
        pair.client.handle_timer(pair.now)
        pair.settle(2)
    pair.settle(20)
    assert sender.highest_offset == WINDOW * 5 // 2
    assert pair.client.close_event is None


def test_consuming_without_a_stream_is_nothing(pair: Pair) -> None:
    assert not pair.client.consume(WINDOW)


def test_other_streams_do_not_use_up_the_connection(pair: Pair) -> None:
    pair.client.send_stream_data(STREAM_ID, b"x")
    pair.settle()
    for stream_id in (1, 3, 5, 7):
        assert send(pair, WINDOW, stream_id) == WINDOW
        pair.client.raise_connection_window()
        pair.settle()
    # On our stream a whole window is still open; on theirs nothing more.
    assert send(pair, 2 * WINDOW) == WINDOW
    assert send(pair, 1, 1) == 0
    assert pair.client.close_event is None


def test_few_streams_of_the_peer_are_allowed_and_can_be_refused(pair: Pair) -> None:
    assert pair.peer._remote_max_streams_bidi == FOREIGN_STREAMS
    assert pair.peer._remote_max_streams_uni == FOREIGN_STREAMS
    for limit in (pair.client._local_max_streams_bidi, pair.client._local_max_streams_uni):
        assert isinstance(limit, Limit)
    pair.peer.send_stream_data(1, b"hello")
    pair.settle()
    pair.client.refuse_stream(1)
    pair.client.refuse_stream(5)
    pair.settle()
    assert events.StopSendingReceived(error_code=0, stream_id=1) in pair.server_events
    pair.client.refuse_stream(1)
    # Its place is given back, and no window update breaks for that.
    pair.peer.send_stream_data(3, b"", end_stream=True)
    pair.settle()
    assert pair.peer._remote_max_streams_uni >= FOREIGN_STREAMS
    assert pair.client.close_event is None


def test_what_the_peer_has_not_acknowledged(pair: Pair) -> None:
    assert pair.client.unacknowledged == 0
    pair.client.send_stream_data(STREAM_ID, bytes(50_000))
    assert pair.client.unacknowledged == 50_000
    pair.to_server()
    assert pair.client.unacknowledged == 50_000
    pair.settle(20)
    assert pair.client.unacknowledged == 0
    assert len(pair.server_data()) == 50_000


# More streams of ours


def test_no_more_streams_than_the_peer_allows(certs: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    def two_streams(parameters: QuicTransportParameters) -> None:
        parameters.initial_max_streams_bidi = 2

    change(monkeypatch, two_streams)
    pair = Pair(certs)
    pair.server_class = ServerConnection
    pair.settle()
    for expected in (STREAM_ID, STREAM_ID + 4):
        assert pair.client.next_stream() == expected
        pair.client.send_stream_data(expected, b"x")
    assert pair.client.next_stream() is None
    pair.settle()
    assert pair.client.close_event is None


def test_a_stream_that_is_credited_brings_more_than_a_window(pair: Pair) -> None:
    pair.client.send_stream_data(STREAM_ID, b"x")
    pair.client.send_stream_data(STREAM_ID + 4, b"x")
    pair.settle()
    pair.peer.send_stream_data(STREAM_ID + 4, bytes(3 * WINDOW))
    received = 0
    for _ in range(40):
        pair.settle(1)
        for event in pair.client_events:
            if isinstance(event, events.StreamDataReceived):
                received += len(event.data)
                pair.client.credit_stream(event.stream_id)
        pair.client_events.clear()
    assert received == 3 * WINDOW
    pair.client.credit_stream(STREAM_ID + 8)


def test_what_the_peer_has_not_acknowledged_on_another_stream(pair: Pair) -> None:
    pair.client.send_stream_data(STREAM_ID, b"12345")
    pair.client.send_stream_data(STREAM_ID + 4, b"123")
    assert (pair.client.unacknowledged, pair.client.unacknowledged_on(STREAM_ID + 4)) == (5, 3)
    assert pair.client.unacknowledged_on(STREAM_ID + 8) == 0
    pair.settle()
    assert pair.client.unacknowledged_on(STREAM_ID + 4) == 0


@pytest.mark.parametrize("first", ["us", "the peer"])
def test_a_stream_that_is_given_up(pair: Pair, first: str) -> None:
    stream_id = STREAM_ID + 4
    pair.client.send_stream_data(STREAM_ID, b"x")
    pair.client.send_stream_data(stream_id, bytes(5000))
    pair.settle()
    if first == "the peer":
        pair.peer.reset_stream(stream_id, 1)
        pair.peer.stop_stream(stream_id, 1)
        pair.settle(1)
    pair.client.give_up_stream(stream_id, 7)
    pair.client.give_up_stream(stream_id, 7)
    pair.client.give_up_stream(stream_id + 4, 7)
    pair.settle()
    resets = [event for event in pair.server_events if isinstance(event, events.StreamReset)]
    assert [event.stream_id for event in resets] == [stream_id]
    pair.client.give_up_stream(stream_id, 7)
    pair.client.send_stream_data(STREAM_ID, b"y")
    pair.settle()
    assert pair.server_data() == b"xy"
    assert pair.client.close_event is None


# Acknowledgements


def acknowledged_after(pair: Pair) -> float:
    """Return the seconds until the client sends an acknowledgement."""
    start = pair.now
    while not pair.to_server():
        pair.now += 0.0005
        assert pair.now < start + 1
    return pair.now - start


def test_a_lone_packet_waits_for_company(pair: Pair) -> None:
    pair.peer.send_ping(1)
    pair.to_client()
    pair.client.hasten_ack(pair.now)
    assert acknowledged_after(pair) == pytest.approx(ACK_DELAY, abs=0.001)


def test_two_packets_are_acknowledged_soon(pair: Pair) -> None:
    for _ in range(2):
        pair.peer.send_ping(1)
        pair.to_client()
    pair.client.hasten_ack(pair.now)
    assert acknowledged_after(pair) == pytest.approx(ACK_SOON, abs=0.001)


def test_a_gap_is_acknowledged_soon(pair: Pair) -> None:
    pair.peer.send_ping(1)
    pair.to_client(drop=True)
    pair.peer.send_ping(2)
    pair.to_client()
    pair.client.hasten_ack(pair.now)
    assert acknowledged_after(pair) == pytest.approx(ACK_SOON, abs=0.001)


def test_data_takes_the_acknowledgement_along(pair: Pair) -> None:
    pair.peer.send_ping(42)
    pair.to_client()
    pair.client.carry_ack(pair.now)
    pair.client.send_stream_data(STREAM_ID, b"data")
    assert len(pair.to_server()) == 1
    assert events.PingAcknowledged(uid=42) in pair.server_events
    assert pair.server_data() == b"data"
    # ... and nothing is left to acknowledge.
    pair.now += 2 * ACK_DELAY
    assert not pair.to_server()
    pair.client.carry_ack(pair.now)


# Figures and keys


def test_lost_packets_are_counted(pair: Pair) -> None:
    assert pair.client.packets_lost == 0
    pair.client.send_ping(1)
    assert len(pair.to_server(drop=True)) == 1
    for number in range(3):
        pair.now += DELAY / 10
        pair.client.send_stream_data(STREAM_ID, bytes([number]))
        assert len(pair.to_server()) == 1
    pair.now += DELAY
    pair.to_client()
    assert pair.client.packets_lost == 1


def test_a_silent_peer_is_probed_at_short_intervals(pair: Pair) -> None:
    """Also after a long silence, also with the congestion window full; and then all of it arrives."""
    data = bytes(100_000)
    pair.client.send_stream_data(STREAM_ID, data)
    probes = []
    began = pair.now
    while pair.now < began + 20.0:
        if pair.to_server(drop=True):
            probes.append(pair.now)
        at = pair.client.get_timer()
        assert at is not None
        pair.now = max(at, pair.now)
        pair.client.handle_timer(pair.now)
    assert pair.client._loss._pto_count > 8
    waits = [after - before for before, after in pairwise(probes)]
    assert max(waits) <= PROBE_INTERVAL + 0.01
    assert waits[-1] >= PROBE_INTERVAL - 0.01
    pair.settle(100)
    assert pair.server_data() == data


def test_a_slow_path_is_not_probed_before_an_answer_can_be_there(pair: Pair) -> None:
    pair.client._loss._rtt_smoothed = 3.0
    pair.client.send_stream_data(STREAM_ID, b"data")
    pair.to_server(drop=True)
    wait = 0.0
    for _ in range(6):
        at = pair.client.get_timer()
        assert at is not None
        wait, pair.now = at - pair.now, at
        pair.client.handle_timer(pair.now)
        pair.to_server(drop=True)
    assert wait == pytest.approx(2 * pair.client.probe_timeout)


def test_figures(certs: Certificates) -> None:
    pair = Pair(certs)
    assert pair.client.rtt is None
    assert pair.client.cipher_name is None
    pair.settle()
    client = pair.client
    assert client.rtt == pytest.approx(DELAY, abs=DELAY)
    assert client.probe_timeout > DELAY
    assert (client.version_name, client.cipher_name) == ("QUIC v1", "AES_256_GCM_SHA384")
    before = pair.client.packets_sent
    pair.client.send_ping(1)
    pair.to_server()
    assert pair.client.packets_sent == before + 1


def test_figures_before_anything() -> None:
    client = ClientConnection(configuration=QuicConfiguration(), verify=None)
    assert (client.cipher_name, client.version_name, client.rtt, client.unacknowledged) == (None, None, None, 0)


def test_keys_are_updated_on_request(pair: Pair) -> None:
    assert pair.client.key_phase == 0
    pair.client.request_key_update()
    pair.client.send_stream_data(STREAM_ID, b"under new keys")
    pair.settle()
    assert pair.client.key_phase == 1
    assert pair.server_data() == b"under new keys"


def test_aioquic_does_not_warn_beside_our_errors(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    pair.peer.send_stream_data(1, b"x")
    pair.peer._streams[1].max_stream_data_remote = 10 * WINDOW
    pair.peer._remote_max_data = 10 * WINDOW
    with caplog.at_level(logging.INFO):
        send(pair, 3 * WINDOW, 1)
    assert pair.client.close_event is not None
    assert pair.client.close_event.error_code == QuicErrorCode.FLOW_CONTROL_ERROR
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert pair.client._spaces[Epoch.ONE_RTT].is_application_data
