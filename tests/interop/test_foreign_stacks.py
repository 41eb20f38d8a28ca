"""What the bridge and a QUIC stack that is not its own do together: each scenario with each stack, two real brokers.

What differs between the stacks is told in docs/interop.md.
"""

from dataclasses import replace

import pytest

from custom_components.quic_bridge.bridge import data_streams
from custom_components.quic_bridge.bridge.config import QuicConfig
from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.routes import Direction
from custom_components.quic_bridge.bridge.status import LinkState, LinkStatus
from custom_components.quic_bridge.bridge.transport import quic_driver
from custom_components.quic_bridge.bridge.transport.aioquic_internals import ClientConnection

from ..bridge.link_support import QUICK, Numbers, now
from ..support.certs import Certificate
from ..support.host_network import HostNetwork
from ..support.processes import wait_until
from ..support.udp_relay import UdpRelay
from .conftest import ForeignScene
from .foreign_front import FrontOptions, Stack

MANY = 1000
MEGABYTE = 1024 * 1024


async def test_handshake_and_farewell(scene: ForeignScene) -> None:
    await scene.up()
    connected = await scene.front.event("connected")
    assert connected["alpn"] == "mqtt"
    assert not connected["resumed"]
    assert not connected["client_certificate"]
    await scene.bridge.stop()
    closed = await scene.front.event("closed")
    assert closed["by_peer"]
    assert closed["code"] == 0
    assert "Received DISCONNECT from bridge" in scene.remote.log
    assert len(scene.front.events("connected")) == 1


async def test_a_thousand_messages_of_each_qos_both_ways(scene: ForeignScene) -> None:
    await scene.up()
    home, away = scene.clients()
    async with home, away:
        await home.subscribe("down/#", qos=2)
        await away.subscribe("up/#", qos=2)
        payloads = [b"%d" % number for number in range(MANY)]
        for qos in (0, 1, 2):
            for source, sink, prefix in ((home, away, "up"), (away, home, "down")):
                before = len(sink.messages)
                await source.burst(f"{prefix}/{qos}", payloads, qos)
                await sink.wait_for(before + MANY, timeout=20.0)
                arrived = sink.messages[before:]
                assert [message.payload for message in arrived] == payloads
                assert {message.qos for message in arrived} == {qos}
    assert scene.link.reconnects == 0


async def test_a_large_message_each_way(scene: ForeignScene) -> None:
    """Four times what either side's window for a stream holds."""
    await scene.up()
    payload = bytes(range(256)) * (MEGABYTE // 256)
    home, away = scene.clients()
    async with home, away:
        await home.subscribe("down/#", qos=1)
        await away.subscribe("up/#", qos=1)
        await home.publish("up/large", payload, 1)
        await away.publish("down/large", payload, 1)
        [up] = await away.wait_for(1)
        [down] = await home.wait_for(1)
    assert up.payload == down.payload == payload
    assert scene.link.reconnects == 0


async def test_a_bad_line(scene: ForeignScene) -> None:
    """Loss and disorder both ways: acknowledgements, losses and repeats of one stack as the other understands them."""
    async with UdpRelay(scene.front.address) as relay:
        scene.remote_config = replace(scene.remote_config, host=relay.address[0], port=relay.address[1])
        for way in (relay.to_server, relay.to_client):
            way.loss, way.delay, way.jitter = 0.05, 0.005, 0.01
        await scene.up()
        async with Numbers(scene) as numbers:
            numbers.start()
            await numbers.flowing(300)
            await numbers.settled()
        assert scene.link.reconnects == 0
        await scene.bridge.stop()


async def test_another_port_by_a_nat(scene: ForeignScene) -> None:
    """The server validates the new path and goes on there: no message is lost, and there is no second handshake.

    It can learn of the new path by our next packet only, which may be a PING.
    """
    moving(scene)
    async with UdpRelay(scene.front.address) as relay:
        scene.remote_config = replace(scene.remote_config, host=relay.address[0], port=relay.address[1])
        await scene.up()
        async with Numbers(scene) as numbers:
            numbers.start()
            for number in range(1, 4):
                await numbers.flowing()
                relay.rebind()
                moved = await scene.front.event("moved", number)
                assert moved["peer"] == f"127.0.0.1:{relay.outer_ports[-1]}"
            await numbers.flowing()
            await numbers.settled()
        assert scene.link.reconnects <= stalls(scene, 3)
        await scene.bridge.stop()


def moving(scene: ForeignScene) -> None:
    """Look at the network often, and give a new path time on a busy machine; notice a stalled stream soon."""
    quic = QuicConfig(handshake_timeout=5.0, ping_interval=0.3, ping_timeout=3.0)
    scene.tune(quic, keepalive=1, ping_timeout=1.0)


def stalls(scene: ForeignScene, moves: int) -> int:
    """Return how often the stream may have stalled after so many moves.

    quiche 0.18 sends only the two oldest packets again that were lost on the old path, so the stream can stand still on
    a connection that lives. That is the MQTT PINGREQ's to find, and a new connection's to mend.
    """
    return moves if scene.front.stack is Stack.QUICHE else 0


async def test_our_network_changes(scene: ForeignScene, host_network: HostNetwork) -> None:
    """The bridge goes on from another address and under another connection identifier, which the server follows.

    quic-go 0.50 forbids that to its clients (disable_active_migration, RFC 9000 section 18.2): a new one at once, then.
    """
    moving(scene)
    await scene.up()
    follows = scene.front.stack is not Stack.QUIC_GO
    async with Numbers(scene) as numbers:
        numbers.start()
        for number in range(1, 3):
            await numbers.flowing()
            host_network.change(f"127.0.0.{20 + number}")
            if follows:
                seen = await scene.front.event("moved", number)
            else:
                seen = await scene.front.event("connected", number + 1)
            assert seen["peer"].startswith(f"127.0.0.{20 + number}:")
        await numbers.flowing()
        await numbers.settled()
    if follows:
        assert scene.link.reconnects <= stalls(scene, 2)
    else:
        assert scene.link.reconnects == 2


async def test_a_route_with_a_stream_of_its_own(scene: ForeignScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """These servers take a second stream and never look at it, as brokers without data streams do."""
    monkeypatch.setattr(data_streams, "ACK_TIMEOUT", 0.5)
    scene.routes = tuple(replace(route, own_stream=route.direction is Direction.TO_REMOTE) for route in scene.routes)
    await scene.up()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing(100)
        await numbers.settled()
    assert scene.link.reconnects == 0


async def test_killed_and_restarted(scene: ForeignScene) -> None:
    scene.tune(QUICK)
    await scene.up()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing()
        since = now()
        await scene.front.kill()
        _, link = await scene.noticed(since)
        assert link.error is not None
        assert link.error.code in {ErrorCode.REFUSED, ErrorCode.PING_TIMEOUT}
        await scene.front.start()
        await scene.running()
        await numbers.flowing()
        await numbers.settled()


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        ("close 0", 0, "closed the QUIC connection with code 0 (no error)"),
        ("close 1", 1, "closed the QUIC connection with code 1 (control stream down)"),
        ("fin", None, "ended the MQTT stream (FIN)"),
        ("reset 7", 7, "ended the MQTT stream (RESET_STREAM with code 7 (0x7))"),
    ],
)
async def test_ends_by_the_server(scene: ForeignScene, command: str, code: int | None, text: str) -> None:
    """Each end is noticed at once, told with its code, and nothing is lost."""
    await scene.up()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing()
        since = now()
        scene.front.command(command)
        took, link = await scene.noticed(since)
        assert took < 1.0
        assert link.error is not None
        assert link.error.code is ErrorCode.CLOSED_BY_BROKER
        assert link.error.reason_code == code
        assert text in link.error.text
        await scene.running()
        await numbers.flowing()
        await numbers.settled()
    assert scene.link.reconnects == 1


async def refused(scene: ForeignScene) -> LinkStatus:
    """Start everything; returns how the remote side says that it was refused."""
    since = now()
    await scene.front.start()
    await scene.bridge.start()
    _, link = await scene.noticed(since)
    assert not [status for _, status in scene.history if status.remote.state is LinkState.CONNECTED]
    assert link.error is not None
    return link


async def test_another_protocol(scene: ForeignScene) -> None:
    """A QUIC server for something else, as a web server with HTTP/3."""
    scene.front.options = FrontOptions(alpn="h3")
    link = await refused(scene)
    assert link.error is not None
    assert link.error.code is ErrorCode.NOT_MQTT_QUIC
    assert "no_application_protocol" in link.error.text


async def test_a_certificate_that_we_refuse(scene: ForeignScene) -> None:
    scene.front.certificate = scene.certs.untrusted_server
    link = await refused(scene)
    assert link.error is not None
    assert link.error.code is ErrorCode.CERTIFICATE_UNTRUSTED


def show(scene: ForeignScene, certificate: Certificate) -> None:
    """Let the bridge present a client certificate."""
    tls = scene.remote_config.tls
    assert tls is not None
    tls = replace(tls, certificate=certificate.pem, private_key=certificate.key_pem)
    scene.remote_config = replace(scene.remote_config, tls=tls)


async def test_a_client_certificate(scene: ForeignScene) -> None:
    """Asked for and shown."""
    scene.front.options = FrontOptions(client_ca_file=scene.certs.ca_file)
    show(scene, scene.certs.client)
    await scene.up()
    assert (await scene.front.event("connected"))["client_certificate"]


@pytest.mark.parametrize(
    ("shown", "code"),
    [(False, ErrorCode.CLIENT_CERTIFICATE_REQUIRED), (True, ErrorCode.CLIENT_CERTIFICATE_REFUSED)],
)
async def test_a_client_certificate_that_does_not_do(scene: ForeignScene, shown: bool, code: ErrorCode) -> None:
    """None, or one of another authority. The server says so only after our side of the handshake is done."""
    scene.front.options = FrontOptions(client_ca_file=scene.certs.ca_file)
    if shown:
        show(scene, scene.certs.untrusted_client)
    link = await refused(scene)
    assert link.error is not None
    assert link.error.code is code


async def test_retry(scene: ForeignScene) -> None:
    """The server first wants its token back from our address."""
    scene.front.options = FrontOptions(retry=True)
    async with UdpRelay(scene.front.address) as relay:
        kinds: list[int] = []

        def look(datagram: bytes) -> bool:
            kinds.append(datagram[0] & 0xF0)
            return False

        relay.to_client.drop = look
        scene.remote_config = replace(scene.remote_config, host=relay.address[0], port=relay.address[1])
        await scene.up()
        assert kinds[0] == 0xF0  # long header, type Retry
        await scene.bridge.stop()


@pytest.mark.parametrize("early_data", [False, True])
async def test_resumption(scene: ForeignScene, early_data: bool) -> None:
    """Reconnects in mid-stream by session tickets, one of them across a restart of ours; CONNECT goes early or not."""
    scene.front.options = FrontOptions(early_data=early_data)
    scene.tickets = scene.front.log_file.parent / "tickets"
    scene.tune(QuicConfig(handshake_timeout=5.0, early_data=early_data))
    await scene.up()
    assert not (await scene.front.event("connected"))["resumed"]
    async with Numbers(scene) as numbers:
        numbers.start()
        for number in range(2, 5):
            await numbers.flowing()
            if number < 4:
                scene.front.command("close 0")
            else:
                await scene.renew()
                await scene.running()
            connected = await scene.front.event("connected", number)
            assert connected["resumed"]
            assert connected["early_data"] is early_data
            await scene.running()
            assert scene.link.details.resumed
            assert scene.link.details.early_data is (True if early_data else None)
        await numbers.flowing()
        await numbers.settled()
    assert len(scene.front.events("connected")) == 4


@pytest.mark.parametrize("early_data", [False, True])
async def test_a_ticket_of_a_server_that_restarted(scene: ForeignScene, early_data: bool) -> None:
    """It has other keys now: a full handshake, and what went early goes again. The next one is resumed."""
    scene.front.options = FrontOptions(early_data=early_data)
    scene.tickets = scene.front.log_file.parent / "tickets"
    scene.tune(QuicConfig(handshake_timeout=5.0, early_data=early_data))
    await scene.up()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing()
        await scene.front.restart()
        assert not (await scene.front.event("connected", 2))["resumed"]
        await scene.running()
        assert scene.link.details.early_data is (False if early_data else None)
        await numbers.flowing()
        scene.front.command("close 0")
        assert (await scene.front.event("connected", 3))["resumed"]
        await numbers.flowing()
        await numbers.settled()


async def test_key_updates_by_us(scene: ForeignScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server follows: with the old keys it could not read us, nor we what it sends."""
    updates: list[None] = []
    aioquics_own = ClientConnection.request_key_update

    def request_key_update(connection: ClientConnection) -> None:
        updates.append(None)
        aioquics_own(connection)

    monkeypatch.setattr(ClientConnection, "request_key_update", request_key_update)
    monkeypatch.setattr(quic_driver, "KEY_UPDATE_PACKETS", 200)
    await scene.up()
    async with Numbers(scene) as numbers:
        numbers.start()
        await wait_until(lambda: len(updates) >= 3, 20.0, "three key updates")
        await numbers.flowing(100)
        await numbers.settled()
    assert scene.link.reconnects == 0
    if scene.front.stack is Stack.QUIC_GO:
        assert (await scene.front.event("key_updated", 3))["by_peer"]
