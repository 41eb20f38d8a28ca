"""The remote session ends, in every way that a broker or a network can end it, from every state of the link."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from aioquic.quic.packet import QuicErrorCode
import pytest

from custom_components.quic_bridge.bridge.config import QuicConfig
from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.status import LinkState

from ..support.certs import Certificates
from ..support.faults import delay_connack, swallow
from ..support.front_policy import Direction
from ..support.packets import PacketType
from ..support.processes import AT_ONCE, wait_until
from .link_support import QUICK, Numbers, Scene, busy, draining, idle, make_scene, now

pytestmark = pytest.mark.usefixtures("socket_enabled")


@pytest.fixture
async def scene(socket_enabled: None, certs: Certificates, tmp_path: Path) -> AsyncIterator[Scene]:
    async with make_scene(certs, tmp_path) as scene:
        yield scene


# --- the faults -------------------------------------------------------------------------------------------------------


async def _nothing(_scene: Scene) -> None:
    pass


async def _start_front(scene: Scene) -> None:
    await scene.front.start()


async def _die(scene: Scene) -> None:
    scene.front.die()


async def _die_and_forget(scene: Scene) -> None:
    scene.front.die()
    scene.front.answer_unknown = True
    await scene.front.start()


async def _freeze(scene: Scene) -> None:
    scene.front.freeze()


async def _freeze_one_way(scene: Scene) -> None:
    scene.front.freeze("outgoing")


async def _thaw(scene: Scene) -> None:
    scene.front.thaw()


async def _kill_broker(scene: Scene) -> None:
    # The sessions of a broker that keeps nothing on disk would go with it, so only its connection is cut.
    scene.front.connection.resume_writing()
    for side in list(scene.front.broker_sides):
        side.abort()


def _end(
    *,
    disconnect: int | None = None,
    data: bytes = b"",
    fin: bool = True,
    stop_sending: int | None = None,
    reset: int | None = None,
    forever: bool = False,
) -> Callable[[Scene], Awaitable[None]]:
    async def apply(scene: Scene) -> None:
        connection = scene.front.connection
        connection.resume_writing()
        connection.end_stream(disconnect=disconnect, data=data, fin=fin, stop_sending=stop_sending, reset=reset)
        if forever:
            connection.never_close()

    return apply


def _kick(code: int) -> Callable[[Scene], Awaitable[None]]:
    async def apply(scene: Scene) -> None:
        scene.front.connection.resume_writing()
        scene.front.connection.kick(code)

    return apply


def _close(code: int, frame_type: int | None = None) -> Callable[[Scene], Awaitable[None]]:
    async def apply(scene: Scene) -> None:
        scene.front.connection.close(code, frame_type=frame_type)

    return apply


def _send(data: bytes) -> Callable[[Scene], Awaitable[None]]:
    async def apply(scene: Scene) -> None:
        scene.front.connection.resume_writing()
        scene.front.connection.send(data)

    return apply


USUAL = QuicConfig(handshake_timeout=5.0)
PATIENT = QuicConfig(handshake_timeout=5.0, ping_interval=0.3, ping_timeout=10.0)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A way to lose the session, and what must be seen of it."""

    name: str
    apply: Callable[[Scene], Awaitable[None]]
    code: ErrorCode
    says: str
    reason: int | None = None
    mend: Callable[[Scene], Awaitable[None]] = _nothing
    quic: QuicConfig = USUAL
    """With the usual timers a silence is noticed after 20 s: what is noticed sooner was understood."""
    heard: bool = True
    """The broker hears that we gave up."""
    slow: bool = False
    """The next attempt has to wait longer than after other losses."""


BROKER = ErrorCode.CLOSED_BY_BROKER
FAULTS = (
    Fault(name="fin", apply=_end(), code=BROKER, says="FIN"),
    Fault(name="fin-and-never-closed", apply=_end(forever=True), code=BROKER, says="FIN"),
    Fault(name="reset", apply=_end(reset=7), code=BROKER, says="RESET_STREAM", reason=7),
    Fault(name="stop-sending", apply=_end(fin=False, stop_sending=9), code=BROKER, says="STOP_SENDING", reason=9),
    Fault(
        name="disconnect-shutting-down",
        apply=_end(disconnect=0x8B),
        code=ErrorCode.SHUTTING_DOWN,
        says="server shutting down",
        reason=0x8B,
    ),
    Fault(
        name="disconnect-keepalive",
        apply=_end(disconnect=0x8D, forever=True),
        code=ErrorCode.KEEPALIVE_TIMEOUT,
        says="keep alive timeout",
        reason=0x8D,
    ),
    Fault(name="kick", apply=_kick(0x98), code=ErrorCode.KICKED, says="administrative action", reason=0x98, slow=True),
    Fault(
        name="take-over",
        apply=_kick(0x8E),
        code=ErrorCode.SESSION_TAKEN_OVER,
        says="same client identifier",
        reason=0x8E,
        slow=True,
    ),
    Fault(
        name="take-over-disconnect-lost",
        apply=_end(fin=False, stop_sending=0x8E),
        code=ErrorCode.SESSION_TAKEN_OVER,
        says="same client identifier",
        reason=0x8E,
        slow=True,
    ),
    Fault(name="close-0", apply=_close(0), code=BROKER, says="code 0 (no error)", reason=0),
    Fault(name="close-1", apply=_close(1), code=BROKER, says="code 1 (control stream down)", reason=1),
    Fault(
        name="close-transport",
        apply=_close(QuicErrorCode.INTERNAL_ERROR, 0),
        code=BROKER,
        says="INTERNAL_ERROR",
        reason=1,
    ),
    Fault(name="broker-connection-cut", apply=_kill_broker, code=BROKER, says="FIN"),
    Fault(name="garbage", apply=_send(b"\xf1\xff\xff\xff\xff\xff"), code=ErrorCode.MALFORMED_PACKET, says="four bytes"),
    Fault(name="packet-of-a-client", apply=_send(b"\xc0\x00"), code=ErrorCode.MALFORMED_PACKET, says="type 12"),
    Fault(
        name="truncated-then-fin",
        apply=_end(data=b"\x30\x7f\x00\x06down/1"),
        code=BROKER,
        says="FIN",
    ),
    Fault(
        name="killed",
        apply=_die,
        code=ErrorCode.REFUSED,
        says="Nothing listens",
        mend=_start_front,
        # The host's ICMP answers count, long before the PING's deadline.
        quic=PATIENT,
    ),
    Fault(
        name="restarted-unknown-resets",
        apply=_die_and_forget,
        code=ErrorCode.PING_TIMEOUT,
        says="restarted",
        quic=PATIENT,
    ),
    Fault(
        name="silent",
        apply=_freeze,
        code=ErrorCode.PING_TIMEOUT,
        says="did not answer a PING",
        mend=_thaw,
        quic=QUICK,
        heard=False,
    ),
    Fault(
        name="silent-one-way",
        apply=_freeze_one_way,
        code=ErrorCode.PING_TIMEOUT,
        says="did not answer a PING",
        mend=_thaw,
        quic=QUICK,
        heard=False,
    ),
)


# --- the states -------------------------------------------------------------------------------------------------------


async def _waiting_for_connack(scene: Scene, _numbers: Numbers) -> None:
    scene.front.add_rule(delay_connack(None, times=1))
    await scene.local_up()
    connection = await scene.front.wait_session(1)
    await wait_until(lambda: connection.stats.from_broker[PacketType.CONNACK], what="CONNACK of the broker")
    assert scene.link.state is LinkState.CONNECTING


async def _subscribing(scene: Scene, _numbers: Numbers) -> None:
    scene.front.add_rule(swallow(Direction.TO_CLIENT, PacketType.SUBACK, times=1))
    await scene.local_up()
    connection = await scene.front.wait_session(1)
    await wait_until(lambda: connection.stats.from_broker[PacketType.SUBACK], what="SUBACK of the broker")
    assert scene.link.state is LinkState.CONNECTING


async def _draining(scene: Scene, numbers: Numbers) -> None:
    await draining(scene, numbers)
    numbers.start()


STATES = {
    "connack": _waiting_for_connack,
    "subscribing": _subscribing,
    "idle": idle,
    "busy": busy,
    "draining": _draining,
}
# One of each kind: draining is being busy, with a file in addition.
DRAINING = {"fin", "take-over", "close-0", "garbage", "broker-connection-cut", "killed", "silent"}
CASES = [
    pytest.param(state, fault, id=f"{state}-{fault.name}")
    for state in STATES
    for fault in FAULTS
    if state != "draining" or fault.name in DRAINING
]


@pytest.mark.parametrize(("state", "fault"), CASES)
async def test_every_loss_from_every_state(scene: Scene, state: str, fault: Fault) -> None:
    """Noticed in time, named rightly, shown with the next attempt; back by itself, without a message lost."""
    scene.tune(fault.quic)
    async with AsyncExitStack() as stack:
        numbers = await stack.enter_async_context(Numbers(scene))
        await STATES[state](scene, numbers)
        connection = scene.front.connection
        sessions, before = len(scene.front.stats.connects), now()
        await fault.apply(scene)
        elapsed, link = await scene.noticed(before)
        await fault.mend(scene)

        error = link.error
        assert error is not None
        assert (error.code, error.reason_code) == (fault.code, fault.reason)
        assert fault.says in error.text
        assert elapsed < AT_ONCE
        assert link.state is LinkState.WAITING
        assert link.next_attempt is not None
        wait = (link.next_attempt - error.at).total_seconds()
        if fault.slow:
            assert scene.backoff.refused_base / 2 <= wait <= scene.backoff.refused_cap
        else:
            assert 0 < wait <= scene.backoff.cap
        assert link.connected_at is None
        if fault.heard:
            # We close the connection ourselves, whatever the broker still wants with it.
            await wait_until(lambda: connection.closed, what="end of the QUIC connection")

        if state in {"subscribing", "idle"}:
            numbers.start()
        await scene.running()
        assert len(scene.front.stats.connects) == sessions + 1, "more attempts than needed"
        assert scene.link.protocol == "5"
        if state == "connack":  # what is published before the first SUBSCRIBE is not ours
            numbers.start()
        await numbers.flowing()
        await numbers.settled()
        assert scene.bridge.status.outbound.dropped == {}
        assert scene.bridge.status.inbound.dropped == {}
