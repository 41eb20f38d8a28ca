"""One QUIC connection over several sockets: the local address changes, the socket fails, a NAT forgets us."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
import errno

import pytest

from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.transport import quic_driver
from custom_components.quic_bridge.bridge.transport.quic_driver import QuicDriver

from ..support.certs import Certificates
from ..support.host_network import HostNetwork
from ..support.processes import AT_ONCE, wait_until
from ..support.quic_front import Front
from ..support.udp_relay import UdpRelay
from .quic_transport_support import Pair, connect
from .transport_support import QUICK, Peer, open_files, payload

pytestmark = pytest.mark.usefixtures("socket_enabled")

PATIENT = replace(QUICK, ping_interval=0.2, ping_timeout=3.0)
"""Looks at the network often, and gives a new path time on a busy machine."""
FIRST, SECOND, THIRD = "127.0.0.11", "127.0.0.12", "127.0.0.13"


@pytest.fixture
def network(socket_enabled: None, monkeypatch: pytest.MonkeyPatch) -> HostNetwork:
    return HostNetwork(monkeypatch)


@pytest.fixture
async def moving(network: HostNetwork, front: Front, certs: Certificates, peer: Peer) -> AsyncIterator[Pair]:
    """A connection whose handshake the broker has confirmed, from the first address."""
    pair = await connect(front, certs, peer, PATIENT)
    await ready(pair)
    yield pair
    pair.transport.abort()


async def ready(pair: Pair) -> None:
    """Wait until there is a connection identifier to move to."""
    await pair.peer_connection()
    await wait_until(lambda: driver(pair).connection.can_move, what="a spare connection identifier")


def driver(pair: Pair) -> QuicDriver:
    """Return what drives the connection."""
    found = pair.transport._driver
    assert found is not None
    return found


def source(pair: Pair) -> str:
    """Return where the broker sees us."""
    address = pair.quic.peer_address
    assert address is not None
    return address[0]


async def echo(pair: Pair, start: int = 0, size: int = 4000) -> None:
    """See that bytes cross both ways, each once."""
    far = await pair.peer.connection()
    here, there = len(pair.receiver.data), len(far.data)
    data = payload(size, start)
    pair.transport.write(data)
    assert (await far.wait_data(there + size))[there:] == data
    far.send(data)
    assert (await pair.receiver.wait_data(here + size))[here:] == data


async def test_the_kernel_would_send_from_another_address(moving: Pair, network: HostNetwork) -> None:
    """The old address still works, and nothing is sent: the look at the routes, once each ping interval, sees it."""
    network.error = None
    cid = moving.quic.quic.host_cid
    network.change(SECOND)
    await wait_until(lambda: moving.transport.status.migrations == 1, what="the move")
    assert source(moving) == SECOND
    assert moving.quic.quic.host_cid != cid, "a connection identifier was used from two addresses"
    status = moving.transport.status
    assert status.migration_ms is not None
    assert 0 < status.migration_ms < 3000
    await echo(moving)
    assert moving.front.stats.handshakes == 1
    assert not moving.receiver.lost


@pytest.mark.parametrize(
    "error", [errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EINVAL, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EPERM]
)
async def test_a_socket_that_fails_is_replaced(moving: Pair, network: HostNetwork, error: int) -> None:
    network.error = error
    network.change(SECOND)
    await echo(moving)  # what was to be sent from the old socket goes from the new one
    assert moving.transport.status.migrations == 1
    assert source(moving) == SECOND


async def test_bytes_under_way_both_ways_arrive_once_over_many_moves(moving: Pair, network: HostNetwork) -> None:
    far = await moving.peer.connection()
    up, down = payload(300_000), payload(300_000)
    here, there = len(moving.receiver.data), len(far.data)
    for number in range(10):
        piece = slice(number * 30_000, (number + 1) * 30_000)
        moving.transport.write(up[piece])
        far.send(down[piece])
        network.change((SECOND, FIRST)[number % 2])
        await wait_until(lambda wanted=number + 1: moving.transport.status.migrations >= wanted, what="the move")  # type: ignore[misc]
        await wait_until(lambda: driver(moving).connection.can_move, what="a spare connection identifier")
    assert (await far.wait_data(there + len(up)))[there:] == up
    assert (await moving.receiver.wait_data(here + len(down)))[here:] == down
    assert len(moving.front.connections) == 1


async def test_no_network_for_a_moment(moving: Pair, network: HostNetwork) -> None:
    """Nothing can be sent, and no other socket be opened, until there is an address again."""
    network.change(None)
    moving.transport.write(b"from the tunnel")
    await wait_until(lambda: network.refused >= 2, what="datagrams that could not be sent")
    network.change(THIRD)
    far = await moving.peer.connection()
    await far.wait_data(1 + len(b"from the tunnel"))
    assert source(moving) == THIRD
    assert moving.transport.status.migrations == 1


async def test_no_network_for_long(network: HostNetwork, front: Front, certs: Certificates, peer: Peer) -> None:
    pair = await connect(front, certs, peer, QUICK)
    await ready(pair)
    network.change(None)
    error = await pair.receiver.wait_lost()
    assert error.code is ErrorCode.PING_TIMEOUT
    assert "Network is unreachable" in error.text
    assert pair.transport.status.migrations == 0


async def test_the_new_path_leads_nowhere(network: HostNetwork, front: Front, certs: Certificates, peer: Peer) -> None:
    """Moved, but nobody answers there: that is no migration, and the connection ends in time."""
    pair = await connect(front, certs, peer, QUICK)
    await ready(pair)
    front.freeze()
    network.change(SECOND)
    started = asyncio.get_running_loop().time()
    assert (await pair.receiver.wait_lost()).code is ErrorCode.PING_TIMEOUT
    assert asyncio.get_running_loop().time() - started < AT_ONCE
    assert pair.transport.status.migrations == 0


async def test_a_firewall_that_forgot_us(front: Front, certs: Certificates, peer: Peer) -> None:
    """Our address is the same, but the flow is dropped on the way: a new port gets through before we give up."""
    async with UdpRelay(front.address) as relay:
        front_address = front.host, front.port
        front.host, front.port = relay.address
        pair = await connect(front, certs, peer, replace(QUICK, ping_timeout=2.0))
        front.host, front.port = front_address
        await ready(pair)
        relay.cut_off()
        await wait_until(lambda: pair.transport.status.migrations == 1, what="the move")
        await echo(pair)
        await pair.transport.close()
    assert len(front.connections) == 1


async def test_what_comes_to_the_old_socket_is_taken(moving: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers to the old address that are on their way when we move are not lost, and prove nothing of the new path."""
    monkeypatch.setattr(quic_driver, "OLD_PATH_PTOS", 1000)
    far = await moving.peer.connection()
    moving.front.outgoing.delay = 0.1
    far.send(b"\0to the old address")
    await wait_until(lambda: moving.front._endpoint.outgoing._queue, what="a datagram on its way")
    here = driver(moving)
    old = here._socket
    assert old is not None
    received = old.bytes_received
    assert here.move("this is a test")
    await wait_until(lambda: old.bytes_received > received, what="its arrival")
    await moving.receiver.wait_data(19)
    assert moving.transport.status.migrations == 0


async def test_the_old_socket_is_closed_soon(moving: Pair, network: HostNetwork) -> None:
    old = driver(moving)._socket
    assert old is not None
    network.change(SECOND)
    await wait_until(lambda: old.closed, what="the end of the old socket")
    await echo(moving)
    status = moving.transport.status
    assert (status.datagram_bytes_sent or 0) > old.bytes_sent > 1200
    assert (status.datagram_bytes_received or 0) > old.bytes_received > 1200


async def test_an_end_in_the_middle_of_a_move_leaves_nothing_open(
    network: HostNetwork, front: Front, certs: Certificates, peer: Peer
) -> None:
    pair = await connect(front, certs, peer, PATIENT)
    await ready(pair)
    here = driver(pair)
    before = open_files()
    assert here.move("this is a test")
    assert not here.move("again, though nothing has changed"), "one unanswered move after the other"
    network.change(SECOND)
    assert here.move("but now it has")
    pair.transport.abort()
    assert len(open_files() - before) == 0
    await wait_until(lambda: not front.live, what="the broker's end")


@pytest.mark.parametrize(
    ("error", "code"), [(errno.ENETUNREACH, ErrorCode.UNREACHABLE), (None, ErrorCode.PING_TIMEOUT)]
)
async def test_a_broker_that_does_not_want_it(
    network: HostNetwork, front: Front, certs: Certificates, peer: Peer, error: int | None, code: ErrorCode
) -> None:
    """With disable_active_migration (RFC 9000 section 18.2) the connection ends, and another is made.

    It ends at once if the kernel says that the old address is gone.
    """
    front.policy.migration = False
    network.error = error
    pair = await connect(front, certs, peer, QUICK)
    await pair.peer_connection()
    await pair.settled()
    network.change(SECOND)
    assert (await pair.receiver.wait_lost()).code is code
    assert SECOND not in network.opened


async def test_a_long_run_changes_its_identifiers(
    front: Front, certs: Certificates, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with every change of address only (RFC 9000 section 5.1); there is always one left for that."""
    monkeypatch.setattr(quic_driver, "CID_LIFETIME", 0.05)
    pair = await connect(front, certs, peer, replace(PATIENT, ping_interval=0.05))
    await ready(pair)
    seen = set()
    for number in range(5):
        await wait_until(lambda: pair.quic.quic.host_cid not in seen, what="another connection identifier")
        seen.add(pair.quic.quic.host_cid)
        await echo(pair, number)
    assert driver(pair).connection.can_move
    assert pair.transport.status.migrations == 0
    await pair.transport.close()
