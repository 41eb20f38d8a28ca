"""QuicTransport losing its broker: everything that a broker or the network can do, noticed in time and named."""

import asyncio
from dataclasses import replace
import random

from aioquic.quic.packet import QuicErrorCode
import pytest

from custom_components.quic_bridge.bridge.errors import BridgeError, ErrorCode
from custom_components.quic_bridge.bridge.transport import QuicTransport

from ..support.certs import Certificates
from ..support.processes import AT_ONCE, PATIENCE, wait_until
from ..support.quic_front import Front
from ..support.udp_relay import UdpRelay
from .quic_transport_support import Pair, connect
from .transport_support import MAX_READ, QUICK, Peer, Receiver, payload, quic_config, refusal

pytestmark = pytest.mark.usefixtures("socket_enabled")


# The broker ends it


async def test_data_that_comes_with_a_fin_is_delivered_first(pair: Pair) -> None:
    await pair.peer_connection()
    await pair.settled()
    started = asyncio.get_running_loop().time()
    pair.quic.end_stream(data=b"\xe0\x02\x8b\0")
    error = await pair.receiver.wait_lost()
    assert asyncio.get_running_loop().time() - started < AT_ONCE
    assert bytes(pair.receiver.data) == b"\xe0\x02\x8b\0"
    assert error.code is ErrorCode.CLOSED_BY_BROKER
    assert "FIN" in error.text
    # We close the connection ourselves, since EMQX may never do it.
    await pair.front.wait_until(lambda: pair.front.stats.closes)
    assert (pair.front.stats.closes[0].error_code, pair.front.stats.closes[0].frame_type) == (0, None)
    pair.transport.write(b"into the void")
    assert pair.transport.backlog == 0


async def test_reset_and_stop_sending_end_it(front: Front, certs: Certificates, peer: Peer) -> None:
    for name, arguments in (("RESET_STREAM", {"reset": 5}), ("STOP_SENDING", {"stop_sending": 0x98, "fin": False})):
        pair = await connect(front, certs, peer)
        pair.transport.write(b"\0")
        await pair.settled()
        pair.quic.end_stream(**arguments)  # type: ignore[arg-type]
        error = await pair.receiver.wait_lost()
        assert error.code is ErrorCode.CLOSED_BY_BROKER
        assert name in error.text
        assert error.reason_code == arguments.get("reset", 0x98)


@pytest.mark.parametrize(
    ("code", "frame_type", "expected", "text"),
    [
        (0, None, ErrorCode.CLOSED_BY_BROKER, "code 0 (no error), it said: 'bye'"),
        (1, None, ErrorCode.CLOSED_BY_BROKER, "control stream down"),
        (2, None, ErrorCode.CLOSED_BY_BROKER, "overloaded"),
        (0x77, None, ErrorCode.CLOSED_BY_BROKER, "code 119"),
        (QuicErrorCode.INTERNAL_ERROR, 0, ErrorCode.CLOSED_BY_BROKER, "INTERNAL_ERROR, 0x1"),
        (QuicErrorCode.PROTOCOL_VIOLATION, 8, ErrorCode.PROTOCOL_ERROR, "PROTOCOL_VIOLATION, 0xa"),
        (0x7777, 8, ErrorCode.PROTOCOL_ERROR, "error 0x7777"),
    ],
)
async def test_connection_close_of_the_broker(
    pair: Pair, code: int, frame_type: int | None, expected: ErrorCode, text: str
) -> None:
    driver = pair.transport._driver
    assert driver is not None
    pair.quic.close(code, "bye", frame_type=frame_type)
    error = await pair.receiver.wait_lost()
    assert driver.connection.closed_by_peer, "seen only after draining"
    assert (error.code, error.reason_code) == (expected, code)
    assert text in error.text


async def test_a_close_between_handshake_and_connect_is_not_lost(certs: Certificates, front: Front) -> None:
    front.policy.on_handshake = lambda connection: connection.close(0)
    error = await refusal(QuicTransport(quic_config(front.address, certs.ca_pem)))
    assert error.code is ErrorCode.CLOSED_BY_BROKER


async def test_a_close_in_the_same_burst_as_the_handshake_is_not_lost(
    certs: Certificates, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[bytes, tuple[str, int]]] = []
    send = front._endpoint.send
    monkeypatch.setattr(front._endpoint, "send", lambda data, address: held.append((data, address)))
    transport = QuicTransport(quic_config(front.address, certs.ca_pem))
    receiver = Receiver()
    connecting = asyncio.ensure_future(transport.connect(receiver))
    await wait_until(lambda: held)
    front.connection.close(0)
    for data, address in held:
        send(data, address)
    with pytest.raises(BridgeError) as error:
        await connecting
    assert error.value.code is ErrorCode.CLOSED_BY_BROKER
    assert not receiver.lost


async def test_what_waited_while_paused_is_delivered_before_the_end(pair: Pair) -> None:
    far = await pair.peer_connection()
    pair.receiver.pause_after = 1
    data = payload(100_000)
    far.send(data)
    await wait_until(lambda: pair.quic.quic.unacknowledged == 0 and pair.receiver.data)
    pair.quic.end_stream(data=b"last")
    error = await pair.receiver.wait_lost()
    assert bytes(pair.receiver.data) == data + b"last"
    assert error.code is ErrorCode.CLOSED_BY_BROKER
    assert max(pair.receiver.sizes) <= MAX_READ


async def test_abort_while_the_rest_is_being_delivered(pair: Pair) -> None:
    far = await pair.peer_connection()
    pair.receiver.pause_after = 1
    far.send(payload(100_000))
    await wait_until(lambda: pair.quic.quic.unacknowledged == 0 and pair.receiver.data)
    got = len(pair.receiver.data)
    pair.receiver.on_data = pair.transport.abort
    pair.quic.close(0)
    await wait_until(lambda: len(pair.receiver.data) > got)
    await asyncio.sleep(0.05)
    assert len(pair.receiver.data) == got + MAX_READ
    assert not pair.receiver.lost


async def test_a_broken_packet_of_the_broker_ends_it(pair: Pair) -> None:
    await pair.peer_connection()
    await pair.settled()
    # Its stream grows beyond what it was allowed.
    pair.quic.quic._streams[0].max_stream_data_remote = 1 << 40
    pair.quic.quic._remote_max_data = 1 << 40
    pair.receiver.pause_after = 1
    (await pair.peer.connection()).send(payload(600_000))
    error = await pair.receiver.wait_lost()
    assert (error.code, error.reason_code) == (ErrorCode.PROTOCOL_ERROR, QuicErrorCode.FLOW_CONTROL_ERROR)
    await pair.front.wait_until(lambda: pair.front.stats.closes)
    assert pair.front.stats.closes[0].error_code == QuicErrorCode.FLOW_CONTROL_ERROR


# Silence


async def test_pings_keep_a_quiet_connection(front: Front, certs: Certificates, peer: Peer) -> None:
    """Each puts off the end that the idle timeout would bring."""
    quic = replace(QUICK, idle_timeout=5.0, ping_interval=60.0, ping_timeout=60.0)
    pair = await connect(front, certs, peer, quic)
    assert pair.transport._driver is not None
    connection = pair.transport._driver.connection
    end = connection._close_at
    assert end is not None
    # The handshake's last packets put it off, too, but not by so much.
    await wait_until(lambda: (connection._close_at or 0.0) >= end + 2.0, what="a PING and its answer")
    assert not pair.receiver.lost
    await pair.transport.close()


async def test_a_black_hole_is_noticed_by_the_ping(quick: Pair) -> None:
    await quick.peer_connection()
    await quick.settled()
    quick.front.freeze()
    started = asyncio.get_running_loop().time()
    error = await quick.receiver.wait_lost()
    assert error.code is ErrorCode.PING_TIMEOUT
    assert 0.25 < asyncio.get_running_loop().time() - started < AT_ONCE


async def test_our_own_packets_are_no_sign_of_life(quick: Pair) -> None:
    await quick.peer_connection()
    quick.front.freeze("outgoing")
    async with asyncio.timeout(PATIENCE):
        while not quick.receiver.lost:
            quick.transport.write(b"x")
            await asyncio.sleep(0.03)
    assert quick.receiver.lost[0].code is ErrorCode.PING_TIMEOUT


async def test_a_long_ping_deadline_leaves_it_to_the_idle_timeout(
    front: Front, certs: Certificates, peer: Peer
) -> None:
    pair = await connect(front, certs, peer, replace(QUICK, idle_timeout=1.5, ping_timeout=60.0))
    front.freeze()
    error = await pair.receiver.wait_lost()
    assert error.code is ErrorCode.IDLE_TIMEOUT


@pytest.mark.parametrize("size", [1, 5000])
async def test_a_dead_process_is_noticed_at_the_first_write(pair: Pair, size: int) -> None:
    """Of several datagrams the second already meets the refusal of the first, when it is sent."""
    await pair.peer_connection()
    await pair.settled()
    pair.front.die()
    started = asyncio.get_running_loop().time()
    pair.transport.write(payload(size))
    error = await pair.receiver.wait_lost()
    assert error.code is ErrorCode.REFUSED
    assert 0.2 <= asyncio.get_running_loop().time() - started < AT_ONCE


async def test_a_dead_process_is_noticed_at_the_next_ping(quick: Pair) -> None:
    quick.front.die()
    started = asyncio.get_running_loop().time()
    assert (await quick.receiver.wait_lost()).code in {ErrorCode.REFUSED, ErrorCode.PING_TIMEOUT}
    assert asyncio.get_running_loop().time() - started < AT_ONCE


async def test_a_few_icmp_errors_do_not_kill(
    front: Front, certs: Certificates, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way there is gone for a moment: datagrams are refused, then it is back, under another outer port."""
    async with UdpRelay(front.address) as relay:
        transport = QuicTransport(quic_config(relay.address, certs.ca_pem))
        receiver = Receiver()
        await transport.connect(receiver)
        transport.write(b"\0")
        await wait_until(lambda: not transport.backlog)
        port = relay.address[1]
        driver = transport._driver
        assert driver is not None
        errors: list[OSError] = []
        judge = driver._liveness.network_error

        def note(error: OSError) -> bool:
            errors.append(error)
            if len(errors) == 1:
                relay.start(port)
            return judge(error)

        monkeypatch.setattr(driver._liveness, "network_error", note)
        for _ in range(3):
            errors.clear()
            relay.stop()
            transport.write(b"one")
            await wait_until(lambda: errors and not transport.backlog)
            await asyncio.sleep(0.15)
        assert not receiver.lost
        far = await peer.connection()
        far.send(b"\0two")
        assert await receiver.wait_data(4) == b"\0two"
        await transport.close()


async def test_a_changed_outer_port_is_survived(front: Front, certs: Certificates, peer: Peer) -> None:
    async with UdpRelay(front.address) as relay:
        transport = QuicTransport(quic_config(relay.address, certs.ca_pem))
        receiver = Receiver()
        await transport.connect(receiver)
        transport.write(b"\0")
        far = await peer.connection()
        for number in range(5):
            relay.rebind()
            transport.write(b"%d" % number)
            await far.wait_data(number + 2)
            far.send(b"\0" if number == 0 else b"%d" % number)
            await receiver.wait_data(number + 1)
        await transport.close()


async def test_a_restarted_process_with_unknown_resets(pair: Pair) -> None:
    """Seen with EMQX after kill -9: each packet is answered by a reset whose token nobody ever told us."""
    await pair.peer_connection()
    await pair.settled()
    pair.front.die()
    pair.front.answer_unknown = True
    await pair.front.restart()
    started = asyncio.get_running_loop().time()
    pair.transport.write(b"anyone?")
    error = await pair.receiver.wait_lost()
    assert error.code is ErrorCode.PING_TIMEOUT
    assert "resets of another run" in error.text
    assert asyncio.get_running_loop().time() - started < AT_ONCE


async def test_forged_resets_do_not_kill(front: Front, certs: Certificates, peer: Peer) -> None:
    quick = await connect(front, certs, peer, replace(QUICK, ping_timeout=2.0))
    await quick.peer_connection()
    await quick.settled()
    address = quick.quic.peer_address
    assert address is not None
    forged = b"\x41" + bytes(17) + b"sixteen of them!"
    before = quick.transport.status.packets_sent or 0
    for _ in range(20):
        quick.front._endpoint.send(forged, address)
        quick.front._endpoint.send(b"\x41", address)
        quick.front._endpoint.send(b"\xc1" + bytes(40), address)
        await asyncio.sleep(0.05)
    assert not quick.receiver.lost
    assert (quick.transport.status.packets_sent or 0) - before < 20, "one PING for three of them, at most"
    quick.front.freeze("both")
    async with asyncio.timeout(PATIENCE):
        while not quick.receiver.lost:
            # ... and are no sign of life either.
            quick.front._endpoint._send(forged, address)
            await asyncio.sleep(0.05)
    assert quick.receiver.lost[0].code is ErrorCode.PING_TIMEOUT


async def test_a_stateless_reset_ends_it_at_once(pair: Pair) -> None:
    await pair.peer_connection()
    await pair.settled()
    address = pair.quic.peer_address
    assert address is not None
    token = pair.quic.quic._host_cids[0].stateless_reset_token
    pair.front._endpoint.send(b"\x41" + random.randbytes(20) + token, address)
    error = await pair.receiver.wait_lost()
    assert error.code is ErrorCode.CLOSED_BY_BROKER
    assert "stateless reset" in error.text
