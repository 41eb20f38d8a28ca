"""From a broker's configuration to a QUIC connection: TLS material, addresses, tickets, handshakes."""

import asyncio
from dataclasses import dataclass, replace
import logging
import socket
from typing import Final, override

from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import SessionTicket

from ..certificates import describe
from ..config import BrokerConfig, TlsConfig
from ..errors import BridgeError, ErrorCode
from ..status import CertificateStatus, TransportStatus
from ..tls import CertificateVerifier, ClientIdentity, server_name
from .addresses import Address, in_executor, no_answer, race, resolve
from .aioquic_internals import CertificateCheck, ClientConnection
from .quic_driver import DriverOwner, QuicDriver
from .quic_resources import QuicResources
from .quic_tickets import Ticket, broker_key

ALPN: Final = "mqtt"
CONGESTION_CONTROLS: Final = frozenset({"reno", "cubic"})
"""What aioquic offers."""
MAX_EARLY_DATA: Final = 4096
"""Most bytes that are sent before the broker's answer."""

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Material:
    """What is made once for all addresses, in the executor."""

    name: str
    identity: ClientIdentity | None
    verify: CertificateCheck | None
    key: str
    """The broker's, in the ticket store."""
    client_certificate: CertificateStatus | None


class Attempt(DriverOwner):
    """One address that is dialled. Once connected it keeps what comes until `hand_over`."""

    def __init__(
        self,
        connection: ClientConnection,
        address: Address,
        config: BrokerConfig,
        ticket: Ticket | None,
        ours: CertificateStatus | None,
    ) -> None:
        """Prepare; `run` dials. `ours` is the client certificate of the connection."""
        self._ticket = ticket
        self.driver = QuicDriver(connection, address, config.quic, self)
        self._client_certificate = ours
        self._certificate: CertificateStatus | None = None
        self.handshake_ms: float | None = None
        self.early_data: bool | None = None
        """Whether the broker took early data; None: there was none."""
        self.held = bytearray()
        """What the broker has sent."""
        self.end: BridgeError | None = None
        """Why it is over already; what came before, an early CONNACK above all, counts all the same."""
        self._handshake: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, deadline: float, early: bytes) -> None:
        """Do the handshake; `deadline` is in the loop's time. Raises BridgeError, having released everything."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        address = self.driver.address
        done = False
        try:
            self.driver.start(early)
            async with asyncio.timeout_at(deadline):
                await self._handshake
            # The end may have come between the handshake and this turn of the loop.
            done = self.end is None or bool(self.held)
        except TimeoutError:
            raise no_answer(address, loop.time() - started, self._silence()) from None
        finally:
            if not done:  # also when the deadline or a cancellation came in the same turn as the handshake's end
                self.driver.stop()
        if self.end is not None and not done:
            if self.end.code is ErrorCode.IDLE_TIMEOUT:
                raise no_answer(address, loop.time() - started, self._silence())
            raise self.end
        self.handshake_ms = (loop.time() - started) * 1000
        if early:
            self.early_data = self.driver.early_data_accepted
        _LOGGER.debug(
            "QUIC to %s: handshake done in %.0f ms%s",
            address,
            self.handshake_ms,
            ", resumed" if self.driver.connection.resumed else "",
        )

    def _silence(self) -> str:
        if self.driver.answered:
            return " after it had begun the handshake"
        return " over QUIC; is there a QUIC listener, and does the network let UDP through?"

    @property
    def status(self) -> TransportStatus:
        """Figures of the connection, but for what was handed on of what came."""
        driver = self.driver
        connection = driver.connection
        rtt, moved = connection.rtt, driver.migration_seconds
        sent, received = driver.datagram_bytes
        return TransportStatus(
            address=str(driver.address),
            version=connection.version_name,
            cipher=connection.cipher_name,
            certificate=self._certificate,
            client_certificate=self._client_certificate,
            handshake_ms=self.handshake_ms,
            resumed=None if self.handshake_ms is None else connection.resumed,
            early_data=self.early_data,
            rtt_ms=None if rtt is None else rtt * 1000,
            packets_sent=connection.packets_sent,
            packets_lost=connection.packets_lost,
            bytes_sent=driver.bytes_sent,
            datagram_bytes_sent=sent,
            datagram_bytes_received=received,
            migrations=driver.migrations,
            migration_ms=None if moved is None else moved * 1000,
        )

    # The driver's side

    @override
    def handshake_completed(self) -> None:
        certificate = self.driver.connection.certificate
        if certificate is None and self._ticket is not None:
            certificate = self._ticket.certificate
        if certificate is not None:
            self._certificate = describe(certificate)
        if not self._handshake.done():
            self._handshake.set_result(None)

    @override
    def stream_received(self, data: bytes) -> None:
        self.held += data

    @override
    def pause_writing(self) -> None:
        pass

    @override
    def resume_writing(self) -> None:
        pass

    @override
    def ended(self, error: BridgeError) -> None:
        self.end = error
        self.handshake_completed()


class Dialler:
    """Makes one connection to one broker."""

    def __init__(self, config: BrokerConfig, resources: QuicResources) -> None:
        """Prepare; nothing happens before `connect`."""
        self._config = config
        self._tickets = resources.tickets
        self._logs = resources.logs
        self._attempts: list[Attempt] = []
        self.last_status = TransportStatus()
        """Figures of the latest attempt that failed."""

    async def connect(self, hello: bytes) -> Attempt:
        """Find the broker's addresses and do the handshake with the first that answers, within `handshake_timeout`.

        `hello` goes along as early data where that is allowed. Raises BridgeError with the precise cause.
        """
        config = self._config
        deadline = asyncio.get_running_loop().time() + config.quic.handshake_timeout
        material, stored = await in_executor(deadline, self._load)
        if self._tickets is not None and stored is not None:
            self._tickets.loaded(stored)
        addresses = await resolve(config.host, config.port, socket.SOCK_DGRAM, deadline)
        _, attempt = await race(
            addresses,
            [],
            lambda address: self._dial(address, deadline, material, hello),
            lambda attempt: attempt.driver.stop(),
        )
        self._attempts.remove(attempt)
        return attempt

    def abort(self) -> None:
        """Stop all attempts at once; `connect` is to be cancelled, too."""
        while self._attempts:
            self._attempts.pop().driver.stop()

    def _load(self) -> tuple[_Material, list[tuple[str, Ticket]] | None]:
        """Parse all TLS material and read the tickets; blocking."""
        config = self._config
        tls, name = config.tls or TlsConfig(), server_name(config)
        identity = ClientIdentity.load(tls)
        if identity is not None:
            identity.require_quic()
        verify = CertificateVerifier(tls, name).verify if tls.verify or tls.pins else None
        ours = None if identity is None else describe(identity.certificate)
        if self._tickets is None:
            return _Material(name, identity, verify, "", ours), None
        return _Material(name, identity, verify, broker_key(config), ours), self._tickets.read()

    async def _dial(self, address: Address, deadline: float, material: _Material, hello: bytes) -> Attempt:
        ticket = self._tickets.take(material.key) if self._tickets is not None else None
        # In one attempt only: the broker would take a second CONNECT for another client of the same name.
        may_be_early = self._config.quic.early_data and not self._attempts and len(hello) <= MAX_EARLY_DATA
        if ticket is not None and not may_be_early:
            ticket = ticket.without_early_data()
        early = hello if ticket is not None and ticket.session.max_early_data_size is not None else b""

        def keep(session: SessionTicket) -> None:
            self._keep(material.key, connection, ticket, session)

        connection = ClientConnection(
            configuration=self._configuration(material, ticket),
            verify=material.verify,
            on_ticket=keep if self._tickets is not None else None,
        )
        attempt = Attempt(connection, address, self._config, ticket, material.client_certificate)
        self._attempts.append(attempt)
        try:
            await attempt.run(deadline, early)
        except BridgeError:
            self.last_status = attempt.status
            if attempt in self._attempts:
                self._attempts.remove(attempt)
            if self._tickets is not None and ticket is not None:
                if attempt.driver.answered:
                    self._tickets.forget(material.key)  # it may be the tickets' fault
                else:
                    # Nobody has seen it, for all we know; but what was sent early may have arrived.
                    self._tickets.give(material.key, ticket.without_early_data() if early else ticket)
            raise
        return attempt

    def _keep(self, key: str, connection: ClientConnection, used: Ticket | None, session: SessionTicket) -> None:
        """Keep a ticket that the broker gave in a connection."""
        if self._tickets is None:
            return
        certificate = connection.certificate
        if certificate is not None:
            self._tickets.give(key, Ticket.checked_now(session, certificate))
        elif used is not None:
            self._tickets.give(key, replace(used, session=session))

    def _configuration(self, material: _Material, ticket: Ticket | None) -> QuicConfiguration:
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
            server_name=material.name,
            session_ticket=None if ticket is None else ticket.session,
            supported_versions=[QuicProtocolVersion.VERSION_1],
        )
        if material.identity is not None:
            configuration.certificate = material.identity.certificate
            configuration.certificate_chain = material.identity.chain
            configuration.private_key = material.identity.private_key
        if self._logs is not None:
            self._logs.attach(configuration)
        return configuration
