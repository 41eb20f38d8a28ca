"""Reconnecting with a session ticket, and with CONNECT in the first flight."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from custom_components.quic_bridge.bridge.config import BrokerConfig, QuicConfig, TlsConfig
from custom_components.quic_bridge.bridge.errors import BridgeError, ErrorCode
from custom_components.quic_bridge.bridge.status import LinkState
from custom_components.quic_bridge.bridge.transport import QuicResources, QuicTransport
from custom_components.quic_bridge.bridge.transport.quic_tickets import TicketStore

from ..support.certs import Certificates
from ..support.faults import refuse_connect
from ..support.packets import PacketType
from ..support.processes import wait_until
from ..support.quic_front import Front
from .link_support import Numbers, Scene, make_scene
from .transport_support import Peer, Receiver, quic_config, refusal

pytestmark = pytest.mark.usefixtures("socket_enabled")

HELLO = b"\0CONNECT, as it were"
EARLY = QuicConfig(handshake_timeout=5.0, early_data=True)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[TicketStore]:
    store = TicketStore(tmp_path / "tickets")
    yield store
    await store.close()


@pytest.fixture
def config(front: Front, certs: Certificates) -> BrokerConfig:
    front.policy.tickets = True
    return quic_config(front.address, certs.ca_pem)


async def visit(
    config: BrokerConfig, store: TicketStore, front: Front, peer: Peer, hello: bytes = HELLO
) -> QuicTransport:
    """Connect, see that bytes cross both ways, wait for a ticket and leave; its status stays."""
    known = len(peer.connections)
    transport = QuicTransport(config, QuicResources(store))
    receiver = Receiver()
    await transport.connect(receiver, hello)
    transport.write(b"more")
    far = await peer.connection(known + 1)
    assert await far.wait_data(len(hello) + 4) == hello + b"more"
    far.send(b"\0welcome")
    assert await receiver.wait_data(8) == b"\0welcome"
    if front.policy.tickets:
        await wait_until(lambda: store._tickets, what="a ticket")
    await transport.close()
    await wait_until(lambda: far.closed, what="the peer's end")
    return transport


async def test_the_second_connection_is_resumed(
    config: BrokerConfig, store: TicketStore, front: Front, peer: Peer
) -> None:
    first = (await visit(config, store, front, peer)).status
    assert (first.resumed, first.early_data) == (False, None)
    for _ in range(3):  # each gives a ticket for the next
        status = (await visit(config, store, front, peer)).status
        assert (status.resumed, status.early_data) == (True, None)
        assert front.connection.resumed
        assert not front.connection.early_data
        assert status.handshake_ms is not None
        assert status.certificate == first.certificate is not None, "as it was shown"
    # The time of the certificate check is that of the first.
    assert {ticket.trusted_until for _, ticket in store._tickets} == {store._tickets[0][1].trusted_until}


async def test_tickets_outlive_a_restart(config: BrokerConfig, store: TicketStore, front: Front, peer: Peer) -> None:
    await visit(config, store, front, peer)
    await store.close()
    other = TicketStore(store._path)
    assert (await visit(config, other, front, peer)).status.resumed
    await other.close()


async def test_without_a_store_no_ticket_is_asked_for(config: BrokerConfig, front: Front) -> None:
    for _ in range(2):
        transport = QuicTransport(config)
        await transport.connect(Receiver())
        await transport.close()
        assert transport.status.resumed is False
        assert not front._tickets


@pytest.mark.parametrize("early_data", [False, True])
async def test_a_ticket_that_is_refused_costs_a_full_handshake(
    config: BrokerConfig, store: TicketStore, front: Front, peer: Peer, early_data: bool
) -> None:
    """The broker restarted, and forgot its keys. What went early goes again, once, in order."""
    config = replace(config, quic=replace(EARLY, early_data=early_data))
    await visit(config, store, front, peer)
    await front.stop()
    await front.restart()
    status = (await visit(config, store, front, peer)).status
    assert (status.resumed, status.early_data) == (False, False if early_data else None)
    assert (await visit(config, store, front, peer)).status.resumed


async def test_a_broker_without_tickets(config: BrokerConfig, store: TicketStore, front: Front, peer: Peer) -> None:
    front.policy.tickets = False
    for _ in range(2):
        assert (await visit(config, store, front, peer)).status.resumed is False


async def test_other_authorities_are_asked_again(
    config: BrokerConfig, store: TicketStore, front: Front, peer: Peer, certs: Certificates
) -> None:
    """The broker would resume; but who is trusted has changed since, so its certificate is looked at."""
    await visit(config, store, front, peer)
    other = replace(config, tls=TlsConfig())
    transport = QuicTransport(other, QuicResources(store))
    assert (await refusal(transport)).code is ErrorCode.CERTIFICATE_UNTRUSTED
    # Nor does a ticket that was had without a check help one who checks.
    await visit(replace(config, tls=TlsConfig(verify=False)), store, front, peer)
    assert (await refusal(QuicTransport(other, QuicResources(store)))).code is ErrorCode.CERTIFICATE_UNTRUSTED
    assert (await visit(config, store, front, peer)).status.resumed


async def test_nobody_home_does_not_use_up_the_ticket(
    config: BrokerConfig, store: TicketStore, front: Front, peer: Peer
) -> None:
    """An outage has many attempts. When the broker is back, the ticket is still there, but not for early data."""
    config = replace(config, quic=replace(EARLY, handshake_timeout=0.2))
    await visit(config, store, front, peer)
    front.freeze()
    for _ in range(3):
        with pytest.raises(BridgeError) as error:
            await QuicTransport(config, QuicResources(store)).connect(Receiver(), HELLO)
        assert error.value.code is ErrorCode.NO_ANSWER
    front.thaw()
    status = (await visit(replace(config, quic=EARLY), store, front, peer)).status
    assert (status.resumed, status.early_data) == (True, None)


async def test_a_broker_that_stumbles_over_tickets(
    config: BrokerConfig, store: TicketStore, front: Front, peer: Peer
) -> None:
    await visit(config, store, front, peer)
    await visit(config, store, front, peer)
    front.policy.refuse_handshake = 0x150
    assert (await refusal(QuicTransport(config, QuicResources(store)))).code is ErrorCode.TLS_FAILED
    front.policy.refuse_handshake = None
    assert (await visit(config, store, front, peer)).status.resumed is False


# 0-RTT


async def test_early_data_is_off_by_default() -> None:
    assert not QuicConfig().early_data


async def test_connect_goes_with_the_first_flight(
    config: BrokerConfig, store: TicketStore, front: Front, peer: Peer
) -> None:
    config = replace(config, quic=EARLY)
    assert (await visit(config, store, front, peer)).status.early_data is None
    for _ in range(3):
        status = (await visit(config, store, front, peer)).status
        assert (status.resumed, status.early_data) == (True, True)
        assert front.connection.early_data


async def test_much_is_not_sent_early(config: BrokerConfig, store: TicketStore, front: Front, peer: Peer) -> None:
    config = replace(config, quic=EARLY)
    hello = b"\0" + bytes(5000)
    await visit(config, store, front, peer, hello)
    status = (await visit(config, store, front, peer, hello)).status
    assert (status.resumed, status.early_data) == (True, None)


# With MQTT


@pytest.fixture
async def scene(socket_enabled: None, certs: Certificates, tmp_path: Path) -> AsyncIterator[Scene]:
    async with make_scene(certs, tmp_path) as scene:
        scene.front.policy.tickets = True
        scene.tickets = tmp_path / "storage" / "entry.tickets"
        yield scene


@pytest.mark.parametrize("early_data", [False, True])
async def test_nothing_is_lost_and_nothing_but_connect_goes_early(scene: Scene, early_data: bool) -> None:
    """Reconnects in mid-stream, by tickets, with messages under way and waiting; one of them across a restart of ours.

    QoS 2 arrives once: what is repeated after the handshake is what MQTT repeats.
    """
    scene.tune(replace(EARLY, early_data=early_data))
    early: list[dict[PacketType, int]] = []
    scene.front.policy.on_handshake = lambda connection: early.append(dict(connection.stats.from_client))
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        for number in range(1, 4):
            await numbers.flowing()
            scene.front.connection.close(0)
            await wait_until(lambda wanted=number: scene.link.reconnects >= wanted, what="the reconnect")  # type: ignore[misc]
            await scene.running()
            assert scene.link.details.resumed
            assert scene.link.details.early_data is (True if early_data else None)
        await numbers.flowing()
        await scene.renew()
        await scene.running()
        assert scene.link.details.resumed, "the file brought no ticket"
        await numbers.flowing()
        await numbers.settled()
    assert early == [{}] + 4 * ([{PacketType.CONNECT: 1}] if early_data else [{}])
    assert len(scene.front.stats.connects) == 5


async def test_an_early_connect_is_refused_like_any_other(scene: Scene) -> None:
    """CONNACK with an error, and FIN, arrive together with the end of the handshake."""
    scene.tune(EARLY)
    await scene.running()
    scene.front.add_rule(refuse_connect(0x87))
    scene.front.connection.close(0)
    await scene.until(lambda status: status.remote.state is LinkState.REFUSED, "the refusal")
    assert scene.link.details.early_data
    assert scene.link.error is not None
    assert scene.link.error.code is ErrorCode.NOT_AUTHORIZED
