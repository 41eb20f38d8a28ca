"""One QUIC connection of the front: its MQTT stream relayed to a broker over TCP, and everything that can go wrong."""

import asyncio
from collections.abc import Callable
import contextlib
from typing import TYPE_CHECKING, override

from aioquic.quic import events
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
)
from aioquic.tls import AlertDescription

from .front_policy import CloseSeen, Direction, PacketFilter, Rule, Stats
from .front_quic import MQTT_STREAM, FrontQuic, issued_by
from .front_stream import FrontStream
from .packets import Connack, Connect, PacketType, decode_disconnect, encode_disconnect
from .udp import Address

if TYPE_CHECKING:
    from .quic_front import Front

HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024
# EMQX says these with STOP_SENDING in place of a FIN.
_STOP_SENDING_REASONS = frozenset({0x8E, 0x98})
_CLEAN_CLOSE_DELAY = 0.09
_CONTROL = 1 << PacketType.CONNECT | 1 << PacketType.CONNACK | 1 << PacketType.DISCONNECT


class BrokerSide(asyncio.Protocol):
    """The TCP connection to the broker."""

    def __init__(self, owner: FrontConnection) -> None:
        self._owner = owner
        self.transport: asyncio.Transport | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self.transport = transport
            self._owner.front.broker_sides.add(self)

    def abort(self) -> None:
        """Drop the connection, what is unsent included."""
        if self.transport is not None:
            self.transport.abort()

    def leave(self, *, linger: bool) -> None:
        """Close the connection; with `linger` the broker has to close it, and what it still writes is taken."""
        transport = self.transport
        if transport is None:
            return
        if linger and not transport.is_closing():
            transport.resume_reading()
            with contextlib.suppress(OSError):  # the broker has just closed it, which the transport does not know yet
                transport.write_eof()
        else:
            transport.close()

    @override
    def data_received(self, data: bytes) -> None:
        self._owner.broker_data(data)

    @override
    def pause_writing(self) -> None:
        self._owner.broker_busy(True)

    @override
    def resume_writing(self) -> None:
        self._owner.broker_busy(False)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.front.broker_sides.discard(self)
        self._owner.broker_lost(self)


class FrontConnection:
    """A client's connection. The methods that end it or interfere with it may be called at any time."""

    def __init__(self, front: Front, quic: FrontQuic, number: int) -> None:
        self.front = front
        self.quic = quic
        self.number = number
        """1 for the front's first connection."""
        self.stats = Stats(connections=1)
        self.connect: Connect | None = None
        """The MQTT CONNECT, once it came."""
        self.rules: list[Rule] = []
        """Rules of this connection alone; they run before the front's. Add with `add_rule`."""
        self.closed = False
        """Whether the QUIC connection is over, whoever ended it."""
        self.ended = False
        """Whether we ended the MQTT stream; nothing is relayed any more."""
        self.resumed = False
        self.early_data = False
        self.accepted = False
        """The broker has accepted the CONNECT."""
        self.data_streams: dict[int, FrontStream] = {}
        """The client's bidirectional streams beside the MQTT stream, those that are over included."""
        self._tcp: asyncio.Transport | None = None
        self._tcp_protocol: BrokerSide | None = None
        self._dial: asyncio.Task[None] | None = None
        self._to_broker = bytearray()
        self._to_broker_size = 0
        self._to_client = bytearray()
        self._up = PacketFilter(
            self._to_broker.extend, self._from_client, (self.stats.from_client, front.stats.from_client)
        )
        self._down = PacketFilter(
            self._to_client.extend, self._from_broker, (self.stats.from_broker, front.stats.from_broker)
        )
        self.update_interest()
        self._broker_busy = True
        self._reading = True
        self._writing = True
        self._fin_received = False
        self._fin_sent = False
        self._broker_eof = False
        self._broker_reason = 0
        self._timers: set[asyncio.TimerHandle] = set()
        self._quic_timer: asyncio.TimerHandle | None = None

    @property
    def v5(self) -> bool:
        """Whether the client speaks MQTT 5."""
        return self.connect is not None and self.connect.level & 0x7F == 5

    @property
    def peer_address(self) -> Address | None:
        """Where the client's packets come from; changes when the client's address does."""
        address = self.quic.get_peer_address()
        return None if address is None else (address[0], address[1])

    # Rules

    def add_rule(self, rule: Rule) -> Rule:
        """Apply a rule to this connection from its next packet on."""
        self.rules.append(rule)
        self.update_interest()
        return rule

    def update_interest(self) -> None:
        """Take note of the rules that there are now."""
        up = down = _CONTROL
        for rule in (*self.rules, *self.front.rules):
            mask = sum(1 << kind for kind in set(rule.types))
            if rule.direction is Direction.TO_BROKER:
                up |= mask
            else:
                down |= mask
        self._up.interest, self._down.interest = up, down

    def _apply_rules(self, direction: Direction, kind: PacketType, packet: bytes) -> bytes:
        for rule in (*self.rules, *self.front.rules):
            if rule.direction is direction and kind in rule.types and packet:
                packet = rule.run(self, packet)
        return packet

    def _from_client(self, kind: PacketType, packet: bytes) -> bytes:
        if self.ended:
            return b""
        if kind is PacketType.CONNECT and self.connect is None:
            self._mqtt_connect(packet)
        elif kind is PacketType.DISCONNECT:
            for stats in (self.stats, self.front.stats):
                stats.disconnects.append(decode_disconnect(packet))
        return self._apply_rules(Direction.TO_BROKER, kind, packet)

    def _mqtt_connect(self, packet: bytes) -> None:
        try:
            connect = Connect.decode(packet)
        except ValueError:
            # Not MQTT: the broker shall say so.
            return
        self.connect = connect
        for stats in (self.stats, self.front.stats):
            stats.connects.append(connect)
        self._take_over(connect.client_id)
        if self.front.policy.on_connect is not None:
            self.front.policy.on_connect(self)

    def _take_over(self, client_id: str) -> None:
        # EMQX tells the older connection so; mosquitto just hangs up.
        for other in self.front.live:
            if other is not self and other.connect is not None and other.connect.client_id == client_id != "":
                other.kick(0x8E)

    def _from_broker(self, kind: PacketType, packet: bytes) -> bytes:
        if self.ended:
            return b""
        if kind is PacketType.DISCONNECT:
            self._broker_reason = decode_disconnect(packet)
        elif kind is PacketType.CONNACK and Connack.decode(packet).code == 0:
            self.accepted = True
            for stream in self.data_streams.values():
                stream.begin()
        return self._apply_rules(Direction.TO_CLIENT, kind, packet)

    # What a test or a rule may do: interfere

    def send(self, data: bytes) -> None:
        """Send any bytes to the client on the MQTT stream, between two packets of the broker, past all rules.

        They go behind what `stop_writing` holds back only if that is released before.
        """
        self._down.when_whole(lambda: self._send_now(data))

    def _send_now(self, data: bytes, *, fin: bool = False) -> None:
        if not self.closed and not self._fin_sent and self.quic.mqtt_stream_open:
            if self._writing:
                data = bytes(self._to_client) + data
                self._to_client.clear()
            self.quic.send_stream_data(MQTT_STREAM, data, end_stream=fin)
            self._fin_sent = fin
            self.front.touch(self)

    def stop_reading(self) -> None:
        """Take nothing more from the client: its flow control window closes when it is used up."""
        self._reading = False

    def resume_reading(self) -> None:
        """Go on."""
        self._reading = True
        self._forward_up()

    def stop_writing(self) -> None:
        """Hold back what the broker sends to the client."""
        self._writing = False

    def resume_writing(self) -> None:
        """Send what was held back, and go on."""
        self._writing = True
        self._forward_down()

    def call_later(self, delay: float, action: Callable[[], None]) -> None:
        """Do something later, unless the connection is over by then."""

        def run() -> None:
            self._timers.discard(handle)
            action()
            self.front.touch(self)

        handle = asyncio.get_running_loop().call_later(delay, run)
        self._timers.add(handle)

    def open_stream(self, data: bytes) -> int:
        """Open a bidirectional stream of the server's own; returns its identifier."""
        stream = self.quic.get_next_available_stream_id()
        self.quic.send_stream_data(stream, data)
        self.front.touch(self)
        return stream

    # What a test or a rule may do: end it

    def end_stream(
        self,
        *,
        disconnect: int | None = None,
        data: bytes = b"",
        fin: bool = True,
        stop_sending: int | None = None,
        reset: int | None = None,
    ) -> None:
        """End the MQTT session, by any mixture of a DISCONNECT, FIN, STOP_SENDING and RESET_STREAM.

        `data` goes before the DISCONNECT; both leave in one packet with the FIN. A packet of the broker that is half
        way is completed first, but for a RESET_STREAM. The QUIC connection stays, until the policy's `close_delay`
        (`close` or `never_close` change that). The broker's side is closed.
        """
        if disconnect is not None:
            data += encode_disconnect(disconnect if self.v5 else None)

        def end() -> None:
            if self.closed or self.ended:
                return
            self.ended = True
            if reset is not None:
                if self.quic.mqtt_stream_open:
                    self.quic.reset_stream(MQTT_STREAM, reset)
                self._fin_sent = True
            else:
                self._send_now(data, fin=fin)
            if stop_sending is not None and self.quic.mqtt_stream_open:
                self.quic.stop_stream(MQTT_STREAM, stop_sending)
            self._leave_broker()
            if self.front.policy.close_delay is not None:
                self.close(1, delay=self.front.policy.close_delay)
            self.front.touch(self)

        if reset is None:
            self._down.when_whole(end)
        else:
            end()

    def kick(self, code: int = 0x98) -> None:
        """End it as EMQX does on a kick (0x98) or a take-over (0x8E): DISCONNECT and STOP_SENDING without a FIN.

        An MQTT 3.1.1 client gets a FIN only.
        """
        if self.v5:
            self.end_stream(disconnect=code, fin=False, stop_sending=code)
        else:
            self.end_stream()

    def close(self, code: int = 0, reason: str = "", *, delay: float = 0.0, frame_type: int | None = None) -> None:
        """Send a CONNECTION_CLOSE: the application's, or the transport's when `frame_type` is given."""
        if delay:
            self.call_later(delay, lambda: self.close(code, reason, frame_type=frame_type))
        elif not self.closed:
            self.quic.close(error_code=code, reason_phrase=reason, frame_type=frame_type)
            self.front.transmit(self)
            self.release()

    def never_close(self) -> None:
        """Cancel a CONNECTION_CLOSE (and everything else) that is planned."""
        for handle in self._timers:
            handle.cancel()
        self._timers.clear()

    def release(self) -> None:
        """Forget the connection without a word to the client: timers, the broker's side, everything; idempotent."""
        if self.closed:
            return
        self.closed = self.ended = True
        self.never_close()
        if self._quic_timer is not None:
            self._quic_timer.cancel()
            self._quic_timer = None
        self._to_client.clear()
        self._leave_broker()
        for stream in self.data_streams.values():
            stream.release()
        self.front.forget(self)

    # QUIC side

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """Take a datagram."""
        self.quic.receive_datagram(data, address, now)

    def pump(self) -> None:
        """Handle what the datagrams brought; called once for a burst of them."""
        while not self.closed and (event := self.quic.next_event()) is not None:
            match event:
                case events.StreamDataReceived(stream_id=stream_id, data=data, end_stream=fin):
                    self._stream_data(stream_id, data, fin)
                case events.HandshakeCompleted(session_resumed=resumed, early_data_accepted=early):
                    self._handshake_completed(resumed, early)
                case events.StreamReset(stream_id=stream_id, error_code=code):
                    self._stream_reset(stream_id, code)
                case events.StopSendingReceived(stream_id=stream_id, error_code=code):
                    self._stop_sending(stream_id, code)
                case events.ConnectionIdIssued(connection_id=cid):
                    self.front.route(cid, self)
                case events.ConnectionIdRetired(connection_id=cid):
                    self.front.unroute(cid)
                case events.ConnectionTerminated():
                    self.release()
        if self.closed:
            return
        if (event := self.quic.closed_by_peer) is not None:
            seen = CloseSeen(int(event.error_code), event.frame_type, event.reason_phrase)
            for stats in (self.stats, self.front.stats):
                stats.closes.append(seen)
            self.release()
        elif self._to_client or self._tcp is not None:
            self._forward_down()

    def _handshake_completed(self, resumed: bool, early_data: bool) -> None:
        policy = self.front.policy
        self.resumed, self.early_data = resumed, early_data
        for stats in (self.stats, self.front.stats):
            stats.handshakes += 1
        if policy.client_ca_pem is not None and not resumed:
            certificate = self.quic.peer_certificate
            if certificate is None or not issued_by(certificate, policy.client_ca_pem):
                alert = AlertDescription.unknown_ca if certificate else AlertDescription.certificate_required
                self.close(QuicErrorCode.CRYPTO_ERROR + alert, frame_type=QuicFrameType.CRYPTO)
                return
        if policy.server_stream is not None:
            self.open_stream(policy.server_stream)
        if policy.on_handshake is not None:
            policy.on_handshake(self)

    def _stream_data(self, stream_id: int, data: bytes, fin: bool) -> None:
        if stream_id != MQTT_STREAM:
            self._other_stream(stream_id, data)
            return
        if self._dial is None and self._tcp is None and not self.ended:
            self._dial = self.front.own(self._connect_broker())
        if data:
            if self.ended:
                self.quic.consumed += len(data)
            else:
                self._to_broker_size += len(data)
                self._up.feed(data)
        if fin:
            self._fin_received = True
            for stats in (self.stats, self.front.stats):
                stats.stream_fins += 1
            if self.ended:
                self._both_ended()
        self._forward_up()

    def _other_stream(self, stream_id: int, data: bytes) -> None:
        if stream_id % 4:
            return  # not a bidirectional stream of the client; EMQX does not look at those either
        if stream_id not in self.data_streams:
            self.data_streams[stream_id] = FrontStream(self, stream_id)
            if self.front.policy.on_data_stream is not None:
                self.front.policy.on_data_stream(self)
        self.data_streams[stream_id].feed(data)

    def _stream_reset(self, stream_id: int, code: int) -> None:
        if stream_id != MQTT_STREAM:
            if stream_id in self.data_streams:
                self.data_streams[stream_id].release()
            return
        for stats in (self.stats, self.front.stats):
            stats.stream_resets.append(code)
        self._fin_received = True
        self.end_stream(reset=code)
        self._both_ended()

    def _stop_sending(self, stream_id: int, code: int) -> None:
        if stream_id != MQTT_STREAM:
            return
        for stats in (self.stats, self.front.stats):
            stats.stop_sendings.append(code)
        # aioquic has reset its side already: nothing can be completed any more.
        self._fin_sent = True
        self._down.cut()
        self.end_stream(fin=False, stop_sending=code)
        self._both_ended()

    def _both_ended(self) -> None:
        # EMQX closes with 0 a moment after both sides ended the stream, unless it never closes.
        if not self.closed and self.front.policy.close_delay is not None:
            self.never_close()
            self.close(0, delay=min(_CLEAN_CLOSE_DELAY, self.front.policy.close_delay))

    def arm(self) -> None:
        """Set the timer that QUIC asks for."""
        at = self.quic.get_timer()
        if at is None:
            return
        if self._quic_timer is not None:
            if self._quic_timer.when() <= at:
                # It fires early, finds nothing due and is set again: cheaper than a new timer for each datagram.
                return
            self._quic_timer.cancel()
        self._quic_timer = asyncio.get_running_loop().call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._quic_timer = None
        now = asyncio.get_running_loop().time()
        at = self.quic.get_timer()
        if at is not None and at <= now + 0.0005:
            self.quic.handle_timer(max(now, at))
            self.pump()
            if not self.closed:
                self.front.transmit(self)
        elif not self.closed:
            self.arm()

    # Broker side

    async def _connect_broker(self) -> None:
        protocol = BrokerSide(self)
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(lambda: protocol, *self.front.broker)
        except OSError:
            self._broker_eof = True
            self._forward_down()
            return
        if self.ended:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
        self._tcp, self._tcp_protocol, self._broker_busy = transport, protocol, False
        self._forward_up()

    def _leave_broker(self) -> None:
        if self._dial is not None:
            self._dial.cancel()
        if self._tcp_protocol is not None and self._tcp is not None:
            self._tcp_protocol.leave(linger=self.front.linger)
            self._tcp = None
        self._to_broker.clear()

    def broker_data(self, data: bytes) -> None:
        """Take bytes from the broker."""
        if not self.ended:
            self._down.feed(data)
            self._forward_down()

    def broker_busy(self, busy: bool) -> None:
        """The broker takes no more for now, or does again."""
        self._broker_busy = busy
        self._forward_up()

    def broker_lost(self, protocol: BrokerSide) -> None:
        """The broker closed the connection."""
        if protocol is self._tcp_protocol:
            self._tcp = None
            self._broker_eof = True
            self._down.cut()
            self._forward_down()

    def _forward_up(self) -> None:
        if self._tcp is None or self._broker_busy or not self._reading or self.ended:
            return
        if self._to_broker:
            self._tcp.write(bytes(self._to_broker))
            self._to_broker.clear()
        if self._to_broker_size:
            self.quic.consumed += self._to_broker_size
            self._to_broker_size = 0
            self.front.touch(self)
        if self._fin_received:
            # Half-closed is of no use to MQTT: the broker takes it as the end.
            self._tcp.write_eof()

    def _forward_down(self) -> None:
        if self.ended:
            return
        if self._to_client and self._writing and (room := HIGH_WATER - self.quic.unacknowledged) > 0:
            piece = bytes(self._to_client[:room])
            del self._to_client[:room]
            self.quic.send_stream_data(MQTT_STREAM, piece)
            self.front.touch(self)
        if self._tcp is not None:
            if len(self._to_client) > LOW_WATER:
                self._tcp.pause_reading()
            elif not self._to_client and not self._tcp.is_reading():
                self._tcp.resume_reading()
        if self._broker_eof and self._writing and not self._to_client:
            if self._broker_reason in _STOP_SENDING_REASONS and self.v5:
                self.end_stream(fin=False, stop_sending=self._broker_reason)
            else:
                self.end_stream()
            if self._fin_received:
                self._both_ended()
