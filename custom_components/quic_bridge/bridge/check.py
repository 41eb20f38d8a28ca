"""Single visits to a broker: to see whether it can be reached, or lets us in, and to have it forget us."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, replace
import secrets
from typing import Final, override

from .config import BrokerConfig, TlsConfig
from .errors import BridgeError, ErrorCode
from .limits import Limits
from .paho_client import MQTT_3_1_1, MQTT_5
from .presence import retained
from .session import AckReceiver, MqttSession, PublishReceiver
from .status import CertificateStatus, TransportStatus
from .transport import make_transport
from .transport.base import TransportReceiver
from .versions import UNANSWERED

_BY_CLIENT_ID: Final = frozenset({ErrorCode.NOT_AUTHORIZED, ErrorCode.CLIENT_ID_REFUSED})
"""What a broker may say to one client identifier and not to another."""


class _Nobody(PublishReceiver, AckReceiver):
    """Neither sends nor wants messages."""

    @override
    def source_attached(self, session: MqttSession) -> None:
        pass

    @override
    def source_lost(self) -> None:
        pass

    @override
    def source_publish(self, first: int, header: int, packet: bytes) -> None:
        pass

    @override
    def source_oversized(self, first: int, header: int, head: bytes, size: int) -> None:
        pass

    @override
    def source_release(self, mid: int) -> None:
        pass

    @override
    def target_attached(self, session: MqttSession) -> None:
        pass

    @override
    def target_lost(self, error: BridgeError | None) -> None:
        pass

    @override
    def target_ack(self, packet_type: int, mid: int, reason: int) -> None:
        pass

    @override
    def target_writable(self) -> None:
        pass

    @override
    def target_congested(self) -> None:
        pass

    @override
    def target_mids(self) -> Collection[int]:
        return ()

    @override
    def source_overdue(self, now: float) -> bool:
        return False

    @override
    def target_overdue(self, now: float) -> bool:
        return False


class _Deaf(TransportReceiver):
    """Takes bytes that nobody asked for."""

    @override
    def data_received(self, data: bytes) -> None:
        pass

    @override
    def pause_writing(self) -> None:
        pass

    @override
    def resume_writing(self) -> None:
        pass

    @override
    def connection_lost(self, error: BridgeError) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was seen of a broker that let us in. Times in seconds."""

    protocol: str
    """`5` or `3.1.1`."""
    details: TransportStatus
    login: float
    """From looking up the name to CONNACK."""
    ping: float
    """From PINGREQ to PINGRESP."""
    limits: Limits


async def check_settings(config: BrokerConfig) -> None:
    """Find out whether a bridge with these settings would be let in. Raises BridgeError with the precise cause.

    Some brokers go by the client identifier, as EMQX does with the user ID type `clientid`, or in access rules. What
    they refuse to a visitor they may grant to the bridge, so then it is tried under its own identifier, with the
    session that it has. A bridge that runs under it is thrown out only if it is let in with the new settings as well.
    """
    try:
        await check_broker(config)
    except BridgeError as error:
        if error.code not in _BY_CLIENT_ID:
            raise
        await (await _enter(config, clean=False)).close()


async def check_broker(config: BrokerConfig) -> Check:
    """Connect, log in and log out again.

    Uses a client identifier of its own and a session that the broker forgets, so that a bridge which runs already
    is not thrown out. Raises BridgeError with the precise cause.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    session = await _enter(replace(config, client_id=f"{config.client_id[:50]}-check-{secrets.token_hex(3)}"))
    login = loop.time() - began
    try:
        ping = await session.ping()
    finally:
        await session.close()
    return Check(
        protocol="5" if session.v5 else "3.1.1",
        details=session.transport.status,
        login=login,
        ping=ping,
        limits=session.limits,
    )


async def forget_session(config: BrokerConfig, status_topic: str | None = None) -> None:
    """Let the broker forget the bridge's session, and the queue it keeps for us: the bridge will not come back.

    Its `status_topic`, if it has one, is not retained any more either. Only for a bridge that does not run, as it would
    be thrown out. Raises BridgeError.
    """
    session = await _enter(config)
    if status_topic is not None and session.retains:
        session.write(retained(status_topic, "", v5=session.v5))
    await session.close()


async def reach_broker(config: BrokerConfig) -> TransportStatus:
    """Complete the handshake of the transport and close it again, without a word of MQTT; return what was seen.

    So the session of a bridge that runs with the same client identifier is left alone. Raises BridgeError.
    """
    transport = make_transport(config)
    await transport.connect(_Deaf())
    await transport.close()
    return transport.status


async def show_certificate(config: BrokerConfig) -> CertificateStatus:
    """Return what the broker's certificate says, whether or not it is trusted.

    The broker learns nothing but that somebody looked. Raises BridgeError.
    """
    tls = TlsConfig(server_name=config.tls.server_name if config.tls else None, verify=False)
    transport = make_transport(replace(config, tls=tls))
    try:
        await transport.connect(_Deaf())
        await transport.close()
    except BridgeError:
        # Most likely it wants our certificate, too; its own has been seen by then.
        if transport.status.certificate is None:
            raise
    if transport.status.certificate is None:
        raise BridgeError(ErrorCode.TLS_FAILED, "The broker's certificate cannot be read")
    return transport.status.certificate


async def _enter(config: BrokerConfig, *, clean: bool = True) -> MqttSession:
    """Connect with a clean session or the one that is there, with MQTT 5 or else 3.1.1."""
    session = _session(config, MQTT_5, clean=clean)
    try:
        await session.open()
    except BridgeError as error:
        # A broker that does not speak MQTT 5 says so, or just closes the connection, or waits for we know not what.
        unanswered = session.asked and error.code in UNANSWERED
        if not unanswered and error.code is not ErrorCode.PROTOCOL_VERSION:
            raise
        session = _session(config, MQTT_3_1_1, clean=clean)
        await session.open()
    return session


def _session(config: BrokerConfig, protocol: int, *, clean: bool) -> MqttSession:
    nobody = _Nobody()
    return MqttSession(config, make_transport(config), protocol=protocol, publishes=nobody, acks=nobody, clean=clean)
