"""A plain aioquic client that only records: it shows what the front really puts on the wire."""

import asyncio
from collections.abc import Callable
import contextlib
from typing import Self

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.tls import SessionTicket

from .certs import Certificate
from .packets import Connect, MalformedError, PacketType, Splitter
from .processes import PATIENCE, wait_until
from .udp import Address, UdpEndpoint


class QuicProbe:
    """One QUIC connection. Everything that comes is kept; nothing is answered by itself."""

    def __init__(
        self,
        address: Address,
        ca_pem: str,
        *,
        alpn: str = "mqtt",
        client: Certificate | None = None,
        ticket: SessionTicket | None = None,
        window: int = 1024 * 1024,
    ) -> None:
        configuration = QuicConfiguration(
            is_client=True,
            alpn_protocols=[alpn],
            server_name="localhost",
            cadata=ca_pem.encode(),
            session_ticket=ticket,
            max_stream_data=window,
        )
        if client is not None:
            configuration.load_cert_chain(client.cert_file, client.key_file)
        self.tickets: list[SessionTicket] = []
        self.quic = QuicConnection(configuration=configuration, session_ticket_handler=self.tickets.append)
        self.events: list[events.QuicEvent] = []
        self.data = bytearray()
        """What came on the MQTT stream."""
        self.fin = False
        self.datagrams: list[bytes] = []
        self._address = address
        self._splitter = Splitter()
        self.packets: list[bytes] = []
        """The MQTT packets that came, for as long as it was MQTT."""
        self._endpoint = UdpEndpoint(self._datagram, self._pump)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Open the socket and send the first packet (with a ticket: early data may follow)."""
        self._endpoint.open()
        self.quic.connect(self._address, asyncio.get_running_loop().time())
        self.transmit()

    async def handshake(self) -> None:
        """Start and wait until the handshake is complete or the connection refused."""
        self.start()
        await self.wait_until(lambda: self.handshaked or self.terminated)

    async def mqtt(self, connect: Connect | None = None) -> None:
        """Start, send a CONNECT and wait for its CONNACK."""
        await self.handshake()
        self.send((connect or Connect(client_id="probe")).encode())
        await self.wait_packet(PacketType.CONNACK)

    def send(self, data: bytes, *, fin: bool = False) -> None:
        """Send on the MQTT stream."""
        self.quic.send_stream_data(0, data, fin)
        self.transmit()

    def transmit(self) -> None:
        """Send what is to be sent."""
        for data, address in self.quic.datagrams_to_send(asyncio.get_running_loop().time()):
            self._endpoint.send(data, (address[0], address[1]))
        at = self.quic.get_timer()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if at is None else asyncio.get_running_loop().call_at(at, self._on_timer)

    async def wait_until(self, condition: Callable[[], object], timeout: float = PATIENCE) -> None:  # noqa: ASYNC109
        """Wait until something came; raises TimeoutError with what did come."""
        try:
            await wait_until(condition, timeout)
        except TimeoutError:
            raise TimeoutError(f"not seen within {timeout:g} s, but: {self.events[-20:]}") from None

    async def wait_packet(self, kind: PacketType, number: int = 1) -> bytes:
        """Wait for the number-th MQTT packet of a type."""
        await self.wait_until(lambda: len(self.of_type(kind)) >= number)
        return self.of_type(kind)[number - 1]

    def of_type(self, kind: PacketType) -> list[bytes]:
        """The MQTT packets of a type that came."""
        return [packet for packet in self.packets if packet[0] >> 4 == kind]

    def seen[E: events.QuicEvent](self, kind: type[E]) -> list[E]:
        """The QUIC events of a type."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def handshaked(self) -> bool:
        """Whether the handshake was completed."""
        return bool(self.seen(events.HandshakeCompleted))

    @property
    def terminated(self) -> events.ConnectionTerminated | None:
        """How the connection ended, if it did."""
        found = self.seen(events.ConnectionTerminated)
        return found[0] if found else None

    def close(self) -> None:
        """Release the socket and timer, with a CONNECTION_CLOSE."""
        if self._endpoint.is_open:
            self.quic.close()
            self.transmit()
        self.abandon()

    def abandon(self) -> None:
        """Release them without a word."""
        self._endpoint.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def rebind(self) -> None:
        """Go on from another local port."""
        self._endpoint.close()
        self._endpoint.open()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _datagram(self, data: bytes, address: Address) -> None:
        self.datagrams.append(data)
        self.quic.receive_datagram(data, address, asyncio.get_running_loop().time())

    def _on_timer(self) -> None:
        self._timer = None
        self.quic.handle_timer(asyncio.get_running_loop().time())
        self._pump()

    def _pump(self) -> None:
        while (event := self.quic.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, events.StreamDataReceived) and event.stream_id == 0:
                self.data += event.data
                self.fin |= event.end_stream
                with contextlib.suppress(MalformedError):
                    self.packets += self._splitter.feed(event.data)
        if self._endpoint.is_open:
            self.transmit()
