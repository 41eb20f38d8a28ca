"""Single visits to a broker: to see whether it can be reached, or lets us in, and to have it forget us."""

from collections.abc import Collection
from dataclasses import replace
import secrets
from typing import override

from .config import BrokerConfig
from .errors import BridgeError, ErrorCode
from .paho_client import MQTT_3_1_1, MQTT_5
from .presence import retained
from .session import AckReceiver, MqttSession, PublishReceiver
from .transport import make_transport
from .transport.base import TransportReceiver


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


async def check_broker(config: BrokerConfig) -> None:
    """Connect, log in and log out again.

    Uses a client identifier of its own and a session that the broker forgets, so that a bridge which runs already
    is not thrown out. Raises BridgeError with the precise cause.
    """
    await _visit(replace(config, client_id=f"{config.client_id[:50]}-check-{secrets.token_hex(3)}"))


async def forget_session(config: BrokerConfig, status_topic: str | None = None) -> None:
    """Let the broker forget the bridge's session, and the queue it keeps for us: the bridge will not come back.

    Its `status_topic`, if it has one, is not retained any more either. Only for a bridge that does not run, as it would
    be thrown out. Raises BridgeError.
    """
    await _visit(config, status_topic)


async def reach_broker(config: BrokerConfig) -> None:
    """Complete the handshake of the transport and close it again, without a word of MQTT.

    So the session of a bridge that runs with the same client identifier is left alone. Raises BridgeError.
    """
    transport = make_transport(config)
    await transport.connect(_Deaf())
    await transport.close()


async def _visit(config: BrokerConfig, cleared: str | None = None) -> None:
    """Connect with a clean session, with MQTT 5 or else 3.1.1, take a retained message away, and disconnect."""
    for protocol in (MQTT_5, MQTT_3_1_1):
        nobody = _Nobody()
        session = MqttSession(
            config, make_transport(config), protocol=protocol, publishes=nobody, acks=nobody, clean=True
        )
        try:
            await session.open()
        except BridgeError as error:
            # A broker that does not speak MQTT 5 says so, or just closes the connection.
            if protocol == MQTT_5 and (
                error.code is ErrorCode.PROTOCOL_VERSION or (session.asked and error.code is ErrorCode.CLOSED_BY_BROKER)
            ):
                continue
            raise
        if cleared is not None and session.retains:
            session.write(retained(cleared, "", v5=session.v5))
        await session.close()
        return
