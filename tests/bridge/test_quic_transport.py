"""QuicTransport against a real QUIC server: data, back-pressure, and how we end it."""

import asyncio
from functools import partial
import random

import pytest

from custom_components.quic_bridge.bridge.config import TransportKind
from custom_components.quic_bridge.bridge.errors import BridgeError, ErrorCode
from custom_components.quic_bridge.bridge.transport import (
    QuicTransport,
    aioquic_internals,
    make_transport,
    quic,
    quic_driver,
)
from custom_components.quic_bridge.bridge.transport.aioquic_internals import ClientConnection

from ..support.certs import Certificates
from ..support.processes import AT_ONCE, free_port, wait_until
from ..support.quic_front import Front
from .quic_transport_support import Pair, connect
from .transport_support import MAX_READ, Peer, Receiver, open_files, payload, quic_config, refusal

pytestmark = pytest.mark.usefixtures("socket_enabled")

WINDOW = 256 * 1024


# Data


async def test_bytes_cross_both_ways_and_the_status_tells_of_it(pair: Pair) -> None:
    sent, answer = payload(100_000), payload(70_000, seed=5)
    pair.transport.write(sent)
    far = await pair.peer.connection()
    await wait_until(lambda: len(far.data) == len(sent))
    far.send(answer)
    assert await pair.receiver.wait_data(len(answer)) == answer
    assert bytes(far.data) == sent
    status = pair.transport.status
    assert status.address == f"127.0.0.1:{pair.front.port}"
    assert (status.version, status.cipher) == ("QUIC v1", "AES_256_GCM_SHA384")
    assert status.handshake_ms is not None
    assert 0 < status.handshake_ms < 5000
    assert status.rtt_ms is not None
    assert 0 < status.rtt_ms < 5000
    assert status.packets_sent is not None
    assert status.packets_sent > len(sent) // 1200
    assert (status.bytes_sent, status.bytes_received) == (len(sent), len(answer))
    await pair.transport.close()
    assert pair.transport.status.bytes_sent == len(sent)
    assert pair.transport.kind is TransportKind.QUIC


async def test_default_settings_make_a_quic_transport(certs: Certificates, front: Front) -> None:
    transport = make_transport(quic_config(front.address, certs.ca_pem))
    assert isinstance(transport, QuicTransport)
    assert transport.backlog == 0
    assert transport.status.address is None
    transport.abort()


async def test_writes_of_one_turn_leave_together(pair: Pair) -> None:
    await pair.peer_connection()
    await pair.settled()
    before = pair.transport.status.packets_sent or 0
    for number in range(100):
        pair.transport.write(b"%010d" % number)
    assert pair.transport.backlog == 1000
    assert pair.transport.status.packets_sent == before
    await asyncio.sleep(0)  # what is sent later may be repeats, on a busy machine
    await asyncio.sleep(0)
    assert 1 <= (pair.transport.status.packets_sent or 0) - before <= 2
    await (await pair.peer.connection()).wait_data(1001)


async def test_an_exchange_costs_one_packet(pair: Pair) -> None:
    """Acknowledgements travel with the next data, instead of in packets of their own."""
    pair.peer.echo = True
    await pair.peer_connection()
    await pair.receiver.wait_data(1)
    loop = asyncio.get_running_loop()
    costs: list[int] = []
    # While the machine does something else they do not wait; some of so many exchanges are not interrupted.
    while min(costs, default=20) > 12 and len(costs) < 100:
        before = pair.transport.status.packets_sent or 0
        for _ in range(10):
            answered = loop.create_future()
            pair.receiver.on_data = partial(answered.set_result, None)
            pair.transport.write(b"x" * 100)
            await answered
        costs.append((pair.transport.status.packets_sent or 0) - before)
    assert min(costs) <= 12


async def test_a_stream_of_packets_is_acknowledged_without_delay(
    front: Front, certs: Certificates, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker sends as fast as it is acknowledged; only a lone packet may wait for company."""
    monkeypatch.setattr(aioquic_internals, "ACK_DELAY", 20.0)
    pair = await connect(front, certs, peer)
    far = await pair.peer_connection()
    far.send(payload(1_000_000))
    await pair.receiver.wait_data(1_000_000)
    pair.transport.abort()


async def test_a_peer_that_speaks_first_is_heard(certs: Certificates, front: Front, peer: Peer) -> None:
    front.policy.on_handshake = lambda connection: connection.quic.send_ping(7)
    peer.greeting = b"\0hello"
    pair = await connect(front, certs, peer)
    await pair.peer_connection()
    assert await pair.receiver.wait_data(6) == b"\0hello"
    pair.transport.abort()


async def test_pieces_are_small_and_a_wake_takes_few_datagrams(pair: Pair) -> None:
    far = await pair.peer_connection()
    data = payload(2_000_000)
    far.send(data)
    assert await pair.receiver.wait_data(len(data)) == data
    assert max(pair.receiver.sizes) <= quic_driver.RECEIVE_BUDGET * 1200 < MAX_READ


async def test_a_bad_line_changes_no_byte(pair: Pair) -> None:
    far = await pair.peer_connection()
    await pair.settled()
    for way in (pair.front.incoming, pair.front.outgoing):
        way.loss, way.duplicate, way.reorder, way.delay = 0.03, 0.03, 0.05, 0.002
    up, down = payload(150_000), payload(150_000, seed=99)
    pair.transport.write(up)
    far.send(down)
    assert await pair.receiver.wait_data(len(down)) == down
    await wait_until(lambda: len(far.data) == len(up) + 1)
    assert bytes(far.data[1:]) == up
    assert max(pair.receiver.sizes) <= MAX_READ
    status = pair.transport.status
    assert status.packets_lost
    assert status.packets_sent is not None
    assert status.packets_lost < status.packets_sent / 3


async def test_streams_of_the_server_are_ignored_with_one_warning(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    far = await pair.peer_connection()
    first = pair.quic.open_stream(payload(400_000))
    pair.quic.open_stream(b"more")
    await wait_until(lambda: "ignored" in caplog.text)
    # Far more than a window, which the other streams' bytes must not have used up.
    data = payload(600_000)
    far.send(data)
    assert await pair.receiver.wait_data(len(data)) == data
    warnings = [record for record in caplog.records if record.name == quic_driver.__name__]
    assert len(warnings) == 1
    await wait_until(
        lambda: pair.quic.quic._streams.get(first) is None or pair.quic.quic._streams[first].sender.is_finished
    )
    assert not pair.receiver.lost


async def test_streams_that_do_not_stop_do_not_use_up_the_connection(pair: Pair) -> None:
    far = await pair.peer_connection()
    await pair.settled()
    for _ in range(3):
        stream_id = pair.quic.open_stream(payload(200_000))
        stream = pair.quic.quic._streams[stream_id]
        stream.sender.reset = lambda error_code: None  # type: ignore[method-assign]
        await pair.sent(stream_id, 200_000)
    data = payload(300_000)
    far.send(data)
    assert await pair.receiver.wait_data(len(data)) == data


async def test_keys_are_updated(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = pair.transport._driver
    assert driver is not None
    far = await pair.peer_connection()
    await pair.settled()
    monkeypatch.setattr(quic_driver, "KEY_UPDATE_PACKETS", 30)
    driver._next_key_update = 0
    phases = set()
    for number in range(1, 9):
        data = payload(20_000, seed=number)
        pair.transport.write(data)
        await far.wait_data(20_000 * number + 1)
        phases.add(pair.quic.quic._cryptos[next(reversed(pair.quic.quic._cryptos))].recv.key_phase)
        phases.add(driver.connection.key_phase)
    assert phases == {0, 1}
    far.send(b"\0fine")
    assert await pair.receiver.wait_data(5) == b"\0fine"


# Back-pressure


async def test_a_session_that_pauses_stops_the_peer(pair: Pair) -> None:
    far = await pair.peer_connection()
    pair.receiver.pause_after = 1
    data = payload(3_000_000)
    far.send(data)
    await wait_until(lambda: pair.receiver.data)
    got = len(pair.receiver.data)
    # The front's end knows what it could send: a window beyond what was taken, and not a byte more.
    stream = pair.quic.quic._streams[0]
    await wait_until(lambda: stream.sender.highest_offset >= WINDOW)
    pair.transport.pause_reading()
    await asyncio.sleep(0.3)
    assert len(pair.receiver.data) == got
    assert stream.sender.highest_offset <= WINDOW + got
    pair.transport.resume_reading()
    pair.transport.resume_reading()
    assert len(pair.receiver.data) == got, "delivered in a later turn"
    assert await pair.receiver.wait_data(len(data)) == data
    assert max(pair.receiver.sizes) <= MAX_READ


async def test_a_peer_that_stops_pauses_the_session(pair: Pair) -> None:
    await pair.peer_connection()
    await pair.settled()
    pair.quic.stop_reading()
    written, backlog = 1, -1
    while pair.receiver.writable or backlog != pair.transport.backlog:
        backlog = pair.transport.backlog
        while pair.receiver.writable:
            pair.transport.write(payload(10_000))
            written += 10_000
        await asyncio.sleep(0.1)
    assert WINDOW // 4 < backlog <= WINDOW + 10_000
    pair.transport.write(b"late")  # kept all the same
    written += 4
    pair.quic.resume_reading()
    await wait_until(lambda: pair.receiver.writable)
    far = await pair.peer.connection()
    await far.wait_data(written)
    await pair.settled()
    assert pair.receiver.pauses == len(pair.receiver.resumed_at)
    assert max(pair.receiver.resumed_at) < WINDOW // 4


async def test_a_burst_in_one_turn_pauses_the_session(pair: Pair) -> None:
    for number in range(30):
        assert pair.receiver.writable == (number * 10_000 <= WINDOW)
        pair.transport.write(payload(10_000))
    await wait_until(lambda: pair.receiver.writable)
    await (await pair.peer.connection()).wait_data(300_000)


# We end it


async def test_close_delivers_the_last_bytes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic, "CLOSE_TIMEOUT", 2 * AT_ONCE)
    data = payload(180_000)
    pair.transport.write(data)
    started = asyncio.get_running_loop().time()
    await pair.transport.close()
    assert asyncio.get_running_loop().time() - started < AT_ONCE
    far = await pair.peer.connection()
    await wait_until(lambda: len(far.data) == len(data) and pair.front.stats.closes)
    assert [(close.error_code, close.frame_type) for close in pair.front.stats.closes] == [(0, None)]
    assert not pair.receiver.lost
    await pair.transport.close()
    pair.transport.abort()


async def test_close_does_not_wait_for_ever(pair: Pair) -> None:
    await pair.peer_connection()
    pair.quic.stop_reading()
    pair.transport.write(payload(600_000))
    started = asyncio.get_running_loop().time()
    await asyncio.gather(pair.transport.close(), pair.transport.close())
    assert 0.9 < asyncio.get_running_loop().time() - started < AT_ONCE
    await pair.front.wait_until(lambda: pair.front.stats.closes)
    assert not pair.receiver.lost


async def test_close_ends_early_when_the_broker_goes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic, "CLOSE_TIMEOUT", 2 * AT_ONCE)
    await pair.peer_connection()
    pair.quic.stop_reading()
    pair.transport.write(payload(600_000))
    asyncio.get_running_loop().call_later(0.1, pair.quic.close)
    started = asyncio.get_running_loop().time()
    await pair.transport.close()
    assert asyncio.get_running_loop().time() - started < AT_ONCE
    assert not pair.receiver.lost


async def test_nothing_is_delivered_while_closing(pair: Pair) -> None:
    far = await pair.peer_connection()
    await pair.settled()
    pair.quic.stop_reading()
    pair.transport.write(payload(600_000))
    closing = asyncio.ensure_future(pair.transport.close())
    await asyncio.sleep(0)
    far.send(payload(50_000))
    sender = pair.quic.quic._streams[0].sender
    await wait_until(lambda: sender.highest_offset == 50_000 and pair.quic.quic.unacknowledged == 0)
    assert not pair.receiver.data
    pair.quic.resume_reading()
    await closing


async def test_cancelled_close_releases_all_the_same(pair: Pair) -> None:
    await pair.peer_connection()
    pair.quic.stop_reading()
    pair.transport.write(payload(600_000))
    closing = asyncio.ensure_future(pair.transport.close())
    await asyncio.sleep(0.05)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert pair.transport._driver is None
    await pair.front.wait_until(lambda: pair.front.stats.closes)


async def test_abort_is_immediate_and_told(pair: Pair) -> None:
    await pair.peer_connection()
    before = open_files()
    pair.transport.abort()
    assert len(open_files()) == len(before) - 1
    pair.transport.abort()
    pair.transport.write(b"x")
    pair.transport.pause_reading()
    pair.transport.resume_reading()
    await pair.front.wait_until(lambda: pair.front.stats.closes)
    assert pair.front.stats.closes[0].error_code == 0
    assert not pair.receiver.lost


async def test_a_transport_connects_once(pair: Pair) -> None:
    with pytest.raises(RuntimeError):
        await pair.transport.connect(Receiver())
    assert not pair.receiver.lost


@pytest.mark.parametrize("how", ["abort", "close"])
async def test_ending_in_the_middle_of_connect(certs: Certificates, front: Front, how: str) -> None:
    front.freeze()
    transport = QuicTransport(quic_config(front.address, certs.ca_pem))
    connecting = asyncio.ensure_future(transport.connect(Receiver()))
    await wait_until(lambda: transport._dialler._attempts)
    if how == "abort":
        transport.abort()
    else:
        await transport.close()
    with pytest.raises(BridgeError, match="closed on our side"):
        await connecting


async def test_cancel_at_any_instant_leaves_nothing(certs: Certificates, front: Front) -> None:
    """100 connections given up at random moments: name, handshake, just connected."""
    random.seed(7)
    await refusal(QuicTransport(quic_config(("127.0.0.1", free_port()), certs.ca_pem)))  # executor threads are up
    before = open_files()
    outcomes = set()
    for number in range(100):
        transport = QuicTransport(quic_config(front.address, certs.ca_pem))
        receiver = Receiver()
        connecting = asyncio.ensure_future(transport.connect(receiver))
        await asyncio.sleep(random.choice((0, 0, 0.001, 0.003, 0.006, 0.012)) * random.random())
        if number % 3:
            connecting.cancel()
        else:
            transport.abort()
        outcome = (await asyncio.gather(connecting, return_exceptions=True))[0]
        outcomes.add(type(outcome))
        transport.abort()
        assert transport._driver is None
        assert not transport._dialler._attempts
        assert not receiver.lost
    assert asyncio.CancelledError in outcomes
    assert BridgeError in outcomes
    assert open_files() == before


async def test_a_hundred_connections_leave_nothing(certs: Certificates, front: Front, peer: Peer) -> None:
    pair = await connect(front, certs, peer)
    await pair.transport.close()
    await front.wait_until(lambda: not front.live)
    before = open_files()
    for _ in range(100):
        pair = await connect(front, certs, peer)
        await pair.transport.close()
    await front.wait_until(lambda: not front.live)
    assert open_files() == before


# Defects


@pytest.mark.parametrize("where", ["receive_datagram", "datagrams_to_send", "handle_timer", "next_event"])
async def test_a_defect_in_aioquic_leaves_no_zombie(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    await pair.peer_connection()
    await pair.settled()
    before = open_files()

    def defect(*_: object, **__: object) -> None:
        raise AssertionError("no such packet")

    monkeypatch.setattr(ClientConnection, where, defect)
    (await pair.peer.connection()).send(b"\0")
    if where == "handle_timer":
        pair.front.freeze()
    pair.transport.write(b"\0")
    error = await pair.receiver.wait_lost()
    assert error.code is ErrorCode.INTERNAL
    assert "no such packet" in error.text
    assert "Traceback" in caplog.text
    assert len(open_files()) == len(before) - 1
    monkeypatch.undo()


async def test_a_defect_while_aborting_releases_all_the_same(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def defect(*_: object, **__: object) -> None:
        raise AssertionError("no such packet")

    before = open_files()
    monkeypatch.setattr(ClientConnection, "datagrams_to_send", defect)
    pair.transport.abort()
    assert len(open_files()) == len(before) - 1
    assert not pair.receiver.lost
    assert "Traceback" in caplog.text
    monkeypatch.undo()


async def test_a_certificate_that_was_not_checked_does_not_count(
    certs: Certificates, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should a later aioquic not call our check, nobody is trusted."""
    monkeypatch.delattr(ClientConnection, "_initialize")
    error = await refusal(QuicTransport(quic_config(front.address, certs.ca_pem)))
    assert error.code is ErrorCode.TLS_FAILED
    assert not front.stats.handshakes
