"""Bad networks: what a session survives, and how fast it is back where it does not."""

from collections.abc import AsyncIterator
from dataclasses import replace
import errno
from functools import partial
from pathlib import Path

import pytest

from custom_components.quic_bridge.bridge.config import QuicConfig
from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.status import LinkState

from ..support.certs import Certificates
from ..support.host_network import HostNetwork
from ..support.processes import AT_ONCE, wait_until
from ..support.quic_front import Way
from ..support.udp import Impairment
from ..support.udp_relay import UdpRelay
from .link_support import QUICK, Numbers, Scene, make_scene, now

pytestmark = pytest.mark.usefixtures("socket_enabled")


@pytest.fixture
async def scene(socket_enabled: None, certs: Certificates, tmp_path: Path) -> AsyncIterator[Scene]:
    async with make_scene(certs, tmp_path) as scene:
        yield scene


@pytest.fixture
def host_network(socket_enabled: None, monkeypatch: pytest.MonkeyPatch) -> HostNetwork:
    return HostNetwork(monkeypatch)


def impair(scene: Scene, settings: Impairment) -> None:
    """Make both directions of the network bad."""
    for way in (scene.front.incoming, scene.front.outgoing):
        vars(way).update(vars(settings))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(Impairment(loss=0.1), id="loss"),
        pytest.param(Impairment(duplicate=0.5), id="duplicates"),
        pytest.param(Impairment(delay=0.01, jitter=0.02), id="jitter"),
        pytest.param(Impairment(reorder=0.3, reorder_by=0.02), id="reordering"),
        pytest.param(Impairment(rate=40_000), id="slow"),
        pytest.param(Impairment(mtu=1200), id="smallest-mtu"),
        pytest.param(Impairment(loss=0.05, duplicate=0.1, delay=0.005, jitter=0.02, reorder=0.1), id="all-at-once"),
    ],
)
async def test_a_bad_network_costs_time_and_nothing_else(scene: Scene, settings: Impairment) -> None:
    """Loss, copies and disorder of datagrams are QUIC's to repair: the session stays, every message arrives once."""
    await scene.running()
    async with Numbers(scene) as numbers:
        impair(scene, settings)
        numbers.start()
        await numbers.flowing(100)
        await numbers.settled()
        assert scene.link.reconnects == 0
        assert scene.errors() == []
        for topic, number in numbers.sent.items():
            arrived = numbers.sink(topic).messages
            assert sum(message.topic == topic for message in arrived) == number, "QoS 1 was repeated without a reason"


async def test_a_link_that_was_hardly_usable_comes_back_when_it_is(scene: Scene) -> None:
    """Long round trips and 40 % loss; the link may come and go meanwhile, and is up soon after."""
    scene.tune(QuicConfig(handshake_timeout=1.0, ping_interval=0.5, ping_timeout=1.0), connack_timeout=1.5)
    impair(scene, Impairment(loss=0.4, delay=0.1, jitter=0.05))
    await scene.local_up()
    async with Numbers(scene) as numbers:
        numbers.start(down=False)
        await wait_until(lambda: scene.link.attempts >= 2 or numbers.away.messages, what="some progress")
        impair(scene, Impairment())
        began = now()
        await scene.running()
        # One timeout and one wait.
        assert (now() - began).total_seconds() < 1.5 + scene.backoff.cap + AT_ONCE
        await numbers.settled()


@pytest.mark.parametrize("way", ["outgoing", "both"])
async def test_the_path_dies_with_messages_on_it(scene: Scene, way: Way) -> None:
    """What is published between the death of the path and its discovery is not lost either."""
    quic = replace(QUICK, ping_timeout=2.5)  # time to publish meanwhile, also on a busy machine
    scene.tune(quic)
    await scene.running()
    async with Numbers(scene) as numbers:
        scene.front.freeze(way)
        before = now()
        await numbers.step(numbers.home, "up")
        await numbers.step(numbers.away, "down")
        assert scene.link.state is LinkState.CONNECTED
        elapsed, link = await scene.noticed(before)
        assert link.error is not None
        assert link.error.code is ErrorCode.PING_TIMEOUT
        assert elapsed < quic.ping_interval + quic.ping_timeout + AT_ONCE
        scene.front.thaw()
        await scene.running()
        await numbers.settled()


async def test_the_broker_does_not_hear_us_and_repeats_itself(scene: Scene) -> None:
    """Its repeats buy some time, as an acknowledgement may be behind much else on a slow line, but not for ever."""
    scene.tune(QUICK)
    await scene.running()
    async with Numbers(scene) as numbers:
        scene.front.freeze("incoming")
        before = now()
        await numbers.step(numbers.away, "down")
        elapsed, link = await scene.noticed(before)
        assert link.error is not None
        assert link.error.code is ErrorCode.PING_TIMEOUT
        assert elapsed < QUICK.ping_interval + 2 * QUICK.ping_timeout + AT_ONCE
        scene.front.thaw()
        await scene.running()
        await numbers.settled()


async def test_a_silence_shorter_than_the_deadline_is_survived(scene: Scene) -> None:
    scene.tune(QuicConfig(handshake_timeout=5.0, ping_interval=0.3, ping_timeout=10.0))
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing()
        scene.front.freeze()
        dropped = scene.front._endpoint.incoming.dropped
        await wait_until(lambda: scene.front._endpoint.incoming.dropped >= dropped + 3, what="probes into the silence")
        scene.front.thaw()
        await numbers.flowing()
        await numbers.settled()
    assert scene.link.reconnects == 0
    assert scene.errors() == []


def _comes_from(scene: Scene, port: int) -> bool:
    address = scene.front.connection.peer_address
    return address is not None and address[1] == port


async def test_a_changed_address_is_survived(scene: Scene) -> None:
    """A NAT gives us another port in the middle of traffic: the connection goes on, without a message lost."""
    async with UdpRelay(scene.front.address) as relay:
        scene.remote_config = replace(scene.remote_config, host=relay.address[0], port=relay.address[1])
        await scene.running()
        async with Numbers(scene) as numbers:
            numbers.start()
            for _ in range(3):
                await numbers.flowing()
                relay.rebind()
                [port] = relay.outer_ports
                await wait_until(partial(_comes_from, scene, port), what="the new address")
            await numbers.flowing()
            await numbers.settled()
        assert scene.link.reconnects == 0
        assert len(scene.front.stats.connects) == 1
        await scene.bridge.stop()


@pytest.mark.parametrize("error", [pytest.param(errno.ENETUNREACH, id="told"), pytest.param(None, id="silent")])
async def test_our_network_changes(scene: Scene, host_network: HostNetwork, error: int | None) -> None:
    """From one Wi-Fi to another in the middle of traffic: the connection moves along, no message is lost or doubled."""
    host_network.error = error
    scene.tune(QuicConfig(handshake_timeout=5.0, ping_interval=0.3, ping_timeout=5.0))
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        for number in range(1, 5):
            await numbers.flowing()
            host_network.change(f"127.0.0.{20 + number}")
            await wait_until(partial(_has_moved, scene, number), what="the move")
        await numbers.flowing()
        await numbers.settled()
        for topic, sent in numbers.sent.items():
            arrived = numbers.sink(topic).messages
            assert sum(message.topic == topic for message in arrived) == sent, "QoS 1 was repeated without a reason"
    assert scene.link.reconnects == 0
    assert len(scene.front.stats.connects) == 1
    assert scene.errors() == []


def _has_moved(scene: Scene, number: int) -> bool:
    return scene.link.details.migrations >= number


async def test_a_stream_that_the_broker_opens_is_ignored(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Some brokers answer on streams of their own. We do not take part, say so once, and go on."""
    scene.front.policy.server_stream = b"\x30\x09\x00\x06down/1\x00"
    await scene.running()
    scene.front.connection.open_stream(b"more")
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing()
        await numbers.settled()
        assert all(message.payload for message in numbers.home.messages)
    assert scene.link.reconnects == 0
    warnings = [record for record in caplog.records if "opened QUIC stream" in record.getMessage()]
    assert len(warnings) == 1


def _is_session(scene: Scene, number: int) -> bool:
    return scene.link.state is LinkState.CONNECTED and scene.link.reconnects == number


async def test_a_flapping_link_is_not_hammered(scene: Scene) -> None:
    """A broker that throws us out as soon as we are in gets longer and longer pauses; a stable session ends that."""
    scene.backoff = replace(scene.backoff, base=0.02, cap=1.0, stable=0.4)
    await scene.bridge.start()
    for number in range(6):
        connection = await scene.front.wait_session(number + 1)
        await wait_until(partial(_is_session, scene, number), what="session")
        connection.end_stream()
        await wait_until(lambda: scene.link.state is not LinkState.CONNECTED, what="loss")
    waits = [
        (status.remote.next_attempt - status.remote.error.at).total_seconds()
        for _, status in scene.history
        if status.remote.state is LinkState.WAITING
        and status.remote.next_attempt is not None
        and status.remote.error is not None
    ]
    assert waits[0] <= 0.02
    assert all(wait >= 0.02 for wait in waits[1:])
    await scene.running()
    # After a session that lasted, the first wait again.
    connected = scene.link.connected_at
    assert connected is not None
    await wait_until(lambda: (now() - connected).total_seconds() > 0.45, what="a stable session")
    scene.front.connection.end_stream()
    await scene.until(lambda status: status.remote.state is LinkState.WAITING, "loss")
    error, next_attempt = scene.link.error, scene.link.next_attempt
    assert error is not None
    assert next_attempt is not None
    assert (next_attempt - error.at).total_seconds() <= 0.02
