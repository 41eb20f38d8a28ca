"""A message that a broker answers by hanging up must not keep the bridge from everything else."""

from pathlib import Path

import pytest

from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import BackoffConfig, BridgeConfig, BrokerConfig
from custom_components.quic_bridge.bridge.routes import Direction, Route
from custom_components.quic_bridge.bridge.status import DropReason

from ..support.client import Client
from ..support.mosquitto import Mosquitto
from ..support.packets import PacketType, Property, Publish, binary, decode_ack, packet
from ..support.processes import wait_until
from ..support.scripted_broker import ScriptedBroker

POISON = {
    # What a broker less strict than mosquitto takes from any client and gives to us.
    "control character in the topic": packet(0x32, binary("t/\x01"), b"\0\x02", b"\0", b"poison"),
    "206 levels": packet(0x32, binary("t" + "/a" * 205), b"\0\x02", b"\0", b"poison"),
    "a property twice": packet(0x32, binary("t/a"), b"\0\x02", b"\x04\x01\x01\x01\x01", b"poison"),
    "user property not UTF-8": Publish(
        topic="t/a", payload=b"poison", qos=1, packet_id=2, properties={Property.USER_PROPERTY: [("ab", "c")]}
    )
    .encode()
    .replace(b"ab", b"\xff\xfe"),
    "control character in a property": Publish(
        topic="t/a", payload=b"poison", qos=1, packet_id=2, properties={Property.CONTENT_TYPE: "\x01"}
    ).encode(),
}


@pytest.mark.parametrize("name", POISON)
async def test_poison_does_not_wedge_the_bridge(local_broker: Mosquitto, tmp_path: Path, name: str) -> None:
    async with ScriptedBroker() as remote, Client(local_broker.host, local_broker.port) as client:
        await client.subscribe("t/#", qos=2)
        local = BrokerConfig(host=local_broker.host, port=local_broker.port, client_id="bridge")
        config = BridgeConfig(
            remote=BrokerConfig(host="127.0.0.1", port=remote.port, client_id="bridge"),
            routes=(Route(id="all", direction=Direction.BOTH, topic_filter="t/#"),),
            backoff=BackoffConfig(base=0.02, cap=0.05),
        )
        bridge = Bridge(config, lambda: local, lambda _: None)
        await bridge.start()
        try:
            session = await remote.session()
            await wait_until(lambda: bridge.status.state == "running")
            session.publish("t/a", b"1", mid=1)
            session.send(POISON[name])
            session.publish("t/a", b"3", mid=3)
            session.publish("t/a", b"4", qos=2, mid=4)
            # What is plainly malformed is settled at once, the rest when the broker has hung up often enough.
            assert {decode_ack(await session.receive())[0] for _ in range(3)} == {1, 2, 3}
            await session.expect(PacketType.PUBREC, 4)
            session.ack(PacketType.PUBREL, 4)
            await wait_until(lambda: b"4" in client.payloads, what="what came after the poison")
            assert list(dict.fromkeys(client.payloads)) == [b"1", b"3", b"4"]
            assert bridge.status.inbound.dropped == {DropReason.REJECTED: 1}
            assert bridge.status.local.reconnects < 10
        finally:
            await bridge.stop()
