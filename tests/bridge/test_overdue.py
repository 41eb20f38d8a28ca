"""Brokers that answer PINGREQ and owe their word on a message, as aedes does with some PUBRELs."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from custom_components.quic_bridge.bridge import overdue
from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.status import DropReason

from ..support.packets import PacketType
from ..support.processes import wait_until
from ..support.scripted_broker import between_brokers
from .test_session import Wire, withhold_pingresp

PUBACK, PUBREC, PUBREL, PUBCOMP = PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP


@pytest.fixture
async def wire(socket_enabled: None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Wire]:
    """Two brokers that are asked each second; a word is overdue after half of one."""
    monkeypatch.setattr(overdue, "OVERDUE", 0.5)
    async with between_brokers(Wire) as wire:
        wire.local_config = replace(wire.local_config, keepalive=1)
        wire.remote_config = replace(wire.remote_config, keepalive=1)
        yield wire


async def test_an_acknowledgement_that_is_lost(wire: Wire) -> None:
    """Later ones come, so nothing else would tell; in the next connection the message is sent again."""
    local, remote = await wire.connect()
    for mid in (1, 2):
        local.publish("t/a", b"%d" % mid, mid=mid)
        await remote.receive_publish()
    remote.ack(PUBACK, 2)
    await local.expect(PUBACK, 2)
    remote = await wire.remote_broker.session(session_present=True)
    assert (await wire.error()).code is ErrorCode.PROTOCOL_ERROR
    again = await remote.receive_publish()
    assert (again.packet_id, again.dup) == (1, True)
    remote.ack(PUBACK, 1)
    await local.expect(PUBACK, 1)
    assert wire.bridge.status.local.reconnects == 0


async def test_a_release_that_is_lost(wire: Wire) -> None:
    """The target has the message and does not pass it on: it waits for the PUBREL that the source lost."""
    local, remote = await wire.connect()
    local.publish("t/a", b"1", qos=2, mid=1)
    await remote.receive_publish()
    remote.ack(PUBREC, 1)
    await local.expect(PUBREC, 1)
    local = await wire.local_broker.session(session_present=True)
    local.ack(PUBREL, 1)
    await remote.expect(PUBREL, 1)
    remote.ack(PUBCOMP, 1)
    await local.expect(PUBCOMP, 1)
    assert wire.link.reconnects == 0


async def test_an_acknowledgement_that_never_comes(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few connections are ended for a message, then it is given up and counted."""
    monkeypatch.setattr("custom_components.quic_bridge.bridge.sender.GIVEN_UP", 2)
    local, remote = await wire.connect()
    local.publish("t/a", b"1", mid=1)
    await remote.receive_publish()
    remote = await wire.remote_broker.session(session_present=True)
    await remote.receive_publish()
    await local.expect(PUBACK, 1)
    assert wire.bridge.status.outbound.dropped == {DropReason.REJECTED: 1}
    await local.barrier(remote)
    assert wire.link.reconnects == 1


async def test_a_release_after_which_the_target_is_silent(wire: Wire) -> None:
    """RabbitMQ takes QoS 2 as QoS 1. At a PUBREL from before a restart of ours it falls silent, each time anew."""
    await wire.bridge.start()
    local = await wire.local_broker.session(session_present=True)
    local.ack(PUBREL, 7)
    connection = await wire.remote_broker.accept()
    connection.send(b"\x20\x02\x00\x01")  # MQTT 5 is not spoken here
    for _ in range(3):
        remote = await wire.remote_broker.session(session_present=True)
        withhold_pingresp(remote)
        await remote.expect(PUBREL, 7)
        with pytest.raises(EOFError):
            await remote.receive()
    await local.expect(PUBCOMP, 7)
    remote = await wire.remote_broker.session(session_present=True)
    assert not remote.v5
    await remote.barrier(local)
    await local.barrier(remote)


async def test_a_slow_target_is_waited_for(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each acknowledgement comes in its time, and none of them is overdue, however many are under way."""
    monkeypatch.setattr(overdue, "OVERDUE", 2.5)
    local, remote = await wire.connect()
    for mid in range(1, 5):
        local.publish("t/a", b"%d" % mid, mid=mid)
        await remote.receive_publish()
    for mid in range(1, 5):
        pings = remote.pings
        await wait_until(lambda: remote.pings > pings, what="a PINGREQ")  # noqa: B023
        remote.ack(PUBACK, mid)
        await local.expect(PUBACK, mid)
    assert wire.link.reconnects == 0
