"""The "remote broker over QUIC": a QUIC server in front of a real broker, which can fail in every way EMQX was seen to.

In-process for tests (`Front`); as a process of its own for the demo, the benchmarks and kill -9:
`python -m tests.support.quic_front --broker HOST:PORT --cert FILE --key FILE [--listen HOST:PORT]`.
"""

import argparse
import asyncio
from collections.abc import Callable, Coroutine
import contextlib
from dataclasses import replace
import os
from pathlib import Path
import signal
from typing import Literal, Self

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.packet import (
    QuicFrameType,
    QuicPacketType,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.tls import SessionTicket

from .front_connection import BrokerSide, FrontConnection
from .front_policy import Policy, Rule, Stats
from .front_quic import FrontQuic
from .processes import PATIENCE, free_port, wait_until
from .udp import Address, Impairment, UdpEndpoint

HOST = "127.0.0.1"
_STOP_TIMEOUT = 2.0
_CID_LENGTH = 8
_REMEMBERED = 100
"""Connections kept in `connections`: what measures memory over many reconnects shall not find them all."""
_IDLE_TIMEOUT = 24 * 3600.0
"""Not told to the client, whose own idle timeout alone counts, as with EMQX."""

type Way = Literal["both", "incoming", "outgoing"]


class Front:
    """A QUIC listener that relays each connection's first stream to a broker over TCP.

    The port is chosen at the first start and stays the same over restarts. `policy` and `rules` hold for every
    connection; `connections` are those of now and the latest of the past, the newest last.
    """

    host = HOST

    def __init__(
        self, broker: Address, cert_file: Path, key_file: Path, *, port: int = 0, policy: Policy | None = None
    ) -> None:
        self.broker = broker
        """Where the MQTT bytes go; may be changed, for connections to come."""
        self.port = port
        self.policy = policy or Policy()
        self.rules: list[Rule] = []
        self.stats = Stats()
        self.connections: list[FrontConnection] = []
        self.answer_unknown = False
        """Answer packets of connections we do not know with a stateless reset that no client can verify, as EMQX does
        after a kill -9 and a restart."""
        self.linger = False
        """Leave the broker by half-closing, and take what it still writes. mosquitto forgets that it sent a PUBREL when
        it cannot write it, and repeats the QoS 2 PUBLISH; a broker that speaks QUIC itself has no such gap."""
        self.unknown_packets = 0
        """Packets of connections we do not know that came."""
        self.broker_sides: set[BrokerSide] = set()
        self._configuration = QuicConfiguration(
            is_client=False, connection_id_length=_CID_LENGTH, max_data=16 * 1024 * 1024, idle_timeout=_IDLE_TIMEOUT
        )
        self._configuration.load_cert_chain(cert_file, key_file)
        self._endpoint = UdpEndpoint(self._datagram, self._flush)
        self._routes: dict[bytes, FrontConnection] = {}
        self._touched: set[FrontConnection] = set()
        self._flush_handle: asyncio.Handle | None = None
        self._flushing = False
        self._tickets: dict[bytes, SessionTicket] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reset_token = os.urandom(16)

    # Life

    @property
    def address(self) -> Address:
        """Host and port of the listener."""
        return self.host, self.port

    @property
    def live(self) -> list[FrontConnection]:
        """The connections that are not over."""
        return [connection for connection in self.connections if not connection.closed]

    @property
    def connection(self) -> FrontConnection:
        """The newest connection; raises IndexError when there was none."""
        return self.connections[-1]

    async def start(self) -> None:
        """Listen; raises OSError when the port is taken."""
        if not self.port:
            self.port = free_port()
        self._endpoint.open(self.host, self.port)

    async def stop(self) -> None:
        """Stop as EMQX does when its listener or node stops: CONNECTION_CLOSE 0, no MQTT packet; release everything."""
        for connection in self.live:
            connection.close(0)
        self._silence()
        await self._released()

    def die(self) -> None:
        """Go like a killed process: no word to anybody, the port closed at once (ICMP answers from now on)."""
        self._silence()
        for connection in self.live:
            connection.release()
        if not self.linger:
            for side in self.broker_sides:
                side.abort()

    def renew(self, cert_file: Path, key_file: Path) -> None:
        """Show another certificate to connections to come."""
        self._configuration.load_cert_chain(cert_file, key_file)

    async def restart(self) -> None:
        """Come back on the same port after `die` or `stop`; connections and tickets of before are unknown."""
        await self.start()

    def _silence(self) -> None:
        self._endpoint.close()
        self._tickets.clear()
        self._reset_token = os.urandom(16)
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        self._touched.clear()

    async def _released(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self.linger:
            return
        with contextlib.suppress(TimeoutError):
            await wait_until(lambda: not self.broker_sides, _STOP_TIMEOUT)
        for side in self.broker_sides:
            side.abort()
        await wait_until(lambda: not self.broker_sides)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # Faults of the whole front

    @property
    def incoming(self) -> Impairment:
        """What happens to datagrams from clients."""
        return self._endpoint.incoming.impairment

    @property
    def outgoing(self) -> Impairment:
        """What happens to datagrams to clients."""
        return self._endpoint.outgoing.impairment

    def freeze(self, way: Way = "both") -> None:
        """Become a black hole, in both directions or one: the port stays open and nothing gets through."""
        self.incoming.blackhole = way != "outgoing"
        self.outgoing.blackhole = way != "incoming"

    def thaw(self) -> None:
        """Let datagrams through again."""
        self.incoming.blackhole = self.outgoing.blackhole = False

    def add_rule(self, *rules: Rule) -> None:
        """Apply rules to all connections, those of now from their next packet on."""
        self.rules += rules
        self._rules_changed()

    def remove_rule(self, *rules: Rule) -> None:
        """Stop applying rules."""
        self.rules = [rule for rule in self.rules if rule not in rules]
        self._rules_changed()

    def clear_rules(self) -> None:
        """Stop applying all of them."""
        self.rules.clear()
        self._rules_changed()

    def _rules_changed(self) -> None:
        for connection in self.live:
            connection.update_interest()

    # Observing

    async def wait_until(self, condition: Callable[[], object], timeout: float = PATIENCE) -> None:  # noqa: ASYNC109
        """Wait until something was seen; raises TimeoutError."""
        await wait_until(condition, timeout, "condition of the QUIC front")

    async def wait_session(self, number: int = 1, timeout: float = PATIENCE) -> FrontConnection:  # noqa: ASYNC109
        """Wait for the number-th MQTT CONNECT in all and return the newest connection that has one."""
        await wait_until(lambda: len(self.stats.connects) >= number, timeout, f"MQTT CONNECT number {number}")
        return next(connection for connection in reversed(self.connections) if connection.connect is not None)

    # For connections

    def own(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run a coroutine that ends with the front."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def route(self, connection_id: bytes, connection: FrontConnection) -> None:
        """Send packets with this connection identifier there."""
        self._routes[connection_id] = connection

    def unroute(self, connection_id: bytes) -> None:
        """Forget a connection identifier."""
        self._routes.pop(connection_id, None)

    def forget(self, connection: FrontConnection) -> None:
        """Forget all identifiers of a connection."""
        self._routes = {cid: owner for cid, owner in self._routes.items() if owner is not connection}
        self._touched.discard(connection)

    def touch(self, connection: FrontConnection) -> None:
        """Send what a connection has to send at the end of this turn of the loop."""
        if self._endpoint.is_open and not connection.closed:
            self._touched.add(connection)
            if self._flush_handle is None and not self._flushing:
                self._flush_handle = asyncio.get_running_loop().call_soon(self._flush)

    def transmit(self, connection: FrontConnection) -> None:
        """Send what a connection has to send now."""
        if self._endpoint.is_open:
            for data, address in connection.quic.datagrams_to_send(asyncio.get_running_loop().time()):
                self._endpoint.send(data, address[:2])
            connection.arm()

    # Datagrams

    def _flush(self) -> None:
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        touched, self._touched = self._touched, set()
        self._flushing = True
        try:
            for connection in touched:
                connection.pump()
        finally:
            self._flushing = False
        for connection in touched | self._touched:
            if not connection.closed:
                self.transmit(connection)
        self._touched.clear()

    def _datagram(self, data: bytes, address: Address) -> None:
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=_CID_LENGTH)
        except ValueError:
            return
        if header.version is not None and header.version not in self._configuration.supported_versions:
            if header.packet_type is not QuicPacketType.VERSION_NEGOTIATION:
                answer = encode_quic_version_negotiation(
                    source_cid=header.destination_cid,
                    destination_cid=header.source_cid,
                    supported_versions=self._configuration.supported_versions,
                )
                self._endpoint.send(answer, address)
            return
        connection = self._routes.get(header.destination_cid)
        if connection is None:
            if header.packet_type is not QuicPacketType.INITIAL or len(data) < SMALLEST_MAX_DATAGRAM_SIZE:
                self._unknown(header.packet_type, data, address)
                return
            connection = self._accept(header.destination_cid)
        connection.receive(data, address, asyncio.get_running_loop().time())
        if self.policy.refuse_handshake is not None and not connection.stats.handshakes:
            connection.close(self.policy.refuse_handshake, frame_type=QuicFrameType.CRYPTO)
            return
        self._touched.add(connection)

    def _unknown(self, packet_type: QuicPacketType, data: bytes, address: Address) -> None:
        self.unknown_packets += 1
        if self.answer_unknown and packet_type is QuicPacketType.ONE_RTT:
            # As EMQX 5.8.9: 34 bytes, always the same last 16, which match no token that the client was given.
            self._endpoint.send(bytes((0x40 | os.urandom(1)[0] & 0x3F,)) + os.urandom(17) + self._reset_token, address)

    def _accept(self, connection_id: bytes) -> FrontConnection:
        policy = self.policy
        configuration = replace(
            self._configuration, alpn_protocols=list(policy.alpn), max_stream_data=policy.stream_window
        )
        # aioquic's server cannot take a resumption and a request for a certificate together.
        tickets = policy.tickets and policy.client_ca_pem is None
        quic = FrontQuic(
            window=policy.stream_window,
            bidirectional_streams=policy.bidirectional_streams,
            want_client_certificate=policy.client_ca_pem is not None,
            migration=policy.migration,
            configuration=configuration,
            original_destination_connection_id=connection_id,
            session_ticket_fetcher=self._take_ticket if tickets else None,
            session_ticket_handler=self._give_ticket if tickets else None,
        )
        self.stats.connections += 1
        connection = FrontConnection(self, quic, self.stats.connections)
        self.connections.append(connection)
        if len(self.connections) > _REMEMBERED and self.connections[0].closed:
            del self.connections[0]
        self._routes[connection_id] = connection
        self._routes[quic.host_cid] = connection
        return connection

    def _give_ticket(self, ticket: SessionTicket) -> None:
        self._tickets[ticket.ticket] = ticket

    def _take_ticket(self, identity: bytes) -> SessionTicket | None:
        return self._tickets.pop(identity, None)


def _endpoint(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


async def _serve(front: Front) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    async with front:
        print(f"listening {front.host}:{front.port}", flush=True)
        await ended.wait()


def main() -> None:
    """Run the front until SIGINT or SIGTERM; prints `listening HOST:PORT` when it is ready."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", type=_endpoint, default=(HOST, 0), help="HOST:PORT; port 0 chooses one")
    parser.add_argument("--broker", type=_endpoint, required=True, help="HOST:PORT of the MQTT broker (TCP)")
    parser.add_argument("--cert", type=Path, required=True, help="certificate chain (PEM)")
    parser.add_argument("--key", type=Path, required=True, help="private key (PEM)")
    parser.add_argument("--client-ca", type=Path, help="want client certificates of this authority (PEM)")
    parser.add_argument("--tickets", action="store_true", help="give session tickets, and take early data")
    parser.add_argument("--answer-unknown", action="store_true", help="stateless resets for unknown connections")
    arguments = parser.parse_args()
    policy = Policy(
        client_ca_pem=arguments.client_ca.read_text() if arguments.client_ca else None, tickets=arguments.tickets
    )
    host, port = arguments.listen
    front = Front(arguments.broker, arguments.cert, arguments.key, port=port, policy=policy)
    front.host = host
    front.answer_unknown = arguments.answer_unknown
    asyncio.run(_serve(front))


if __name__ == "__main__":
    main()
