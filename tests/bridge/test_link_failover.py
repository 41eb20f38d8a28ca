"""QUIC does not get through, or not for long: a way round, the way back, and nothing lost on either."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
import gc
from pathlib import Path
import sys

import pytest

from custom_components.quic_bridge.bridge.config import Endpoint, FailoverConfig, OutboxConfig, QuicConfig
from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.status import BridgeStatus, EndpointStatus, LinkState, Side

from ..support.certs import Certificates
from ..support.faults import delay_connack, refuse_connect
from ..support.front_connection import FrontConnection
from ..support.processes import AT_ONCE, free_port, wait_until
from ..support.quic_front import Front
from .link_support import Numbers, Scene, make_scene

pytestmark = pytest.mark.usefixtures("socket_enabled")

SWIFT = QuicConfig(handshake_timeout=1.0, ping_interval=0.3, ping_timeout=0.7)
TIMES = FailoverConfig(patience=0.6, stable=0.8, probe_interval=0.05, probe_interval_cap=0.2, hold_down=0.4)


@pytest.fixture
async def scene(socket_enabled: None, certs: Certificates, tmp_path: Path) -> AsyncIterator[Scene]:
    """A bridge that may fall back to the TLS listener of the same broker."""
    async with make_scene(certs, tmp_path) as scene:
        scene.tune(SWIFT, connack_timeout=1.0)
        scene.failover = replace(TIMES, fallback=Endpoint(host=scene.remote.host, port=scene.remote.tls_port))
        yield scene


def endpoint(scene: Scene) -> EndpointStatus:
    found = scene.link.endpoint
    assert found is not None
    return found


def is_up(transport: str) -> Callable[[BridgeStatus], bool]:
    return lambda status: status.remote.state is LinkState.CONNECTED and status.remote.transport == transport


async def up(scene: Scene, transport: str) -> None:
    await scene.until(is_up(transport), f"connected by {transport}")


def transports(scene: Scene) -> list[str]:
    """What carried the sessions, one after the other."""
    found: list[str] = []
    for _, status in scene.history:
        link = status.remote
        if link.state is LinkState.CONNECTED and link.transport and found[-1:] != [link.transport]:
            found.append(link.transport)
    return found


def stays(scene: Scene) -> list[tuple[float, float]]:
    """The hold-downs with which the link was on TCP, and how long it was each time, in seconds."""
    found: list[tuple[float, float]] = []
    began: float | None = None
    hold_down = 0.0
    for time, status in scene.history:
        if not is_up("tcp")(status):
            if began is not None:
                found.append((hold_down, time - began))
            began = None
        elif began is None:
            assert status.remote.endpoint is not None
            began, hold_down = time, status.remote.endpoint.hold_down
    return found


# --- how UDP can be blocked -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Block:
    """Something that keeps QUIC from working, and its end."""

    name: str
    begin: Callable[[Scene], None]
    end: Callable[[Scene], None]
    codes: set[ErrorCode]


def _other_protocol(scene: Scene) -> None:
    scene.front.policy.alpn = ("h3",)
    for connection in scene.front.live:
        connection.close(0)


def _mqtt_again(scene: Scene) -> None:
    scene.front.policy.alpn = ("mqtt",)


BLOCKS = (
    Block(
        name="black-hole",
        begin=lambda scene: scene.front.freeze(),
        end=lambda scene: scene.front.thaw(),
        codes={ErrorCode.NO_ANSWER},
    ),
    Block(
        name="answers-do-not-come",
        begin=lambda scene: scene.front.freeze("outgoing"),
        end=lambda scene: scene.front.thaw(),
        codes={ErrorCode.NO_ANSWER},
    ),
    Block(
        name="refused",
        begin=lambda scene: scene.front.die(),
        end=lambda scene: scene.front._endpoint.open(*scene.front.address),
        codes={ErrorCode.REFUSED},
    ),
    Block(name="something-else-listens", begin=_other_protocol, end=_mqtt_again, codes={ErrorCode.NOT_MQTT_QUIC}),
)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
async def test_there_and_back_with_a_backlog(scene: Scene, block: Block) -> None:
    """Traffic both ways from QUIC to TLS and back; messages wait in the Outbox when the way changes."""
    scene.front.linger = True
    scene.outbox = OutboxConfig(path=scene.outbox_path, delay=0.05)
    scene.failover = replace(scene.failover, patience=1.5)  # time for a backlog, also on a busy machine
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing()
        block.begin(scene)
        await scene.until(lambda _: (scene.box.messages or 0) >= 40, "a backlog")
        assert transports(scene) == ["quic"]
        await up(scene, "tcp")
        diverted = endpoint(scene).diverted
        assert diverted is not None
        assert diverted.code in block.codes
        assert not endpoint(scene).preferred
        assert endpoint(scene).address == f"127.0.0.1:{scene.remote.tls_port}"
        assert scene.link.session_present
        await numbers.flowing(100)
        assert transports(scene) == ["quic", "tcp"]
        block.end(scene)
        await up(scene, "quic")
        assert endpoint(scene).preferred
        assert endpoint(scene).diverted is None
        assert scene.link.session_present
        await numbers.flowing(100)
        await numbers.settled()
    assert transports(scene) == ["quic", "tcp", "quic"]
    connects = [line for line in scene.remote.log.splitlines() if " as bridge (" in line]
    # The same version, session and keepalive whatever carries them.
    assert len(connects) >= 3
    assert all("(p5, c0, k30)" in line for line in connects)


async def test_the_way_back_is_in_good_order(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """QUIC is probed without a CONNECT, which would throw out our own session; then DISCONNECT and a new session."""
    caplog.set_level("INFO", "custom_components.quic_bridge")
    scene.front.freeze()
    await scene.bridge.start()
    await up(scene, "tcp")
    assert not scene.front.stats.connects
    await wait_until(lambda: endpoint(scene).probes >= 2, what="probes")
    error = endpoint(scene).probe_error
    assert error is not None
    assert error.code is ErrorCode.NO_ANSWER
    scene.front.thaw()
    await up(scene, "quic")
    assert scene.front.stats.handshakes >= 4
    assert len(scene.front.stats.connects) == 1
    assert scene.link.reconnects == 1
    assert "Received DISCONNECT from bridge" in scene.remote.log
    before_goodbye, _, _ = scene.remote.log.partition("Received DISCONNECT from bridge")
    assert "session taken over" not in before_goodbye  # mosquitto 2.1 says so afterwards, of a session that is resumed
    # Each transition is told once, at a level that is seen.
    told = [record.getMessage() for record in caplog.records if "reached" in record.getMessage()]
    assert len(told) == 2, told
    assert "MQTT over TLS/TCP" in told[0]
    assert "did not answer" in told[0]
    assert "its own address again" in told[1]


async def test_start_while_udp_is_blocked(scene: Scene) -> None:
    """There never was a session over QUIC."""
    scene.front.die()
    await scene.bridge.start()
    await up(scene, "tcp")
    assert endpoint(scene).since is not None
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing()
        await numbers.settled()


@pytest.mark.parametrize("fault", ["lost-soon", "no-connack"])
async def test_quic_that_flaps(scene: Scene, fault: str) -> None:
    """Handshakes are fine, sessions are not: it stays on TCP for a hold-down that doubles each time."""
    scene.failover = replace(scene.failover, hold_down=0.2, hold_down_cap=0.8)
    scene.tune(SWIFT, connack_timeout=0.3)

    def drop_soon(connection: FrontConnection) -> None:
        connection.call_later(0.1, connection.end_stream)

    if fault == "lost-soon":
        scene.front.policy.on_connect = drop_soon
    else:
        scene.front.add_rule(delay_connack(None))
    await scene.bridge.start()
    await up(scene, "tcp")
    async with Numbers(scene) as numbers:
        numbers.start()

        def doubled() -> bool:
            # A session over QUIC that lasted, as the machine stood still, lets it begin anew.
            hold_downs = [hold_down for hold_down, _ in stays(scene)]
            return any(hold_downs[start : start + 4] == [0.2, 0.4, 0.8, 0.8] for start in range(len(hold_downs)))

        await wait_until(doubled, what="hold-downs that double")
        assert all(stayed >= hold_down for hold_down, stayed in stays(scene))
        scene.front.policy.on_connect = None
        scene.front.clear_rules()
        await up(scene, "quic")
        await numbers.flowing()
        await numbers.settled()


async def test_nobody_answers(scene: Scene, certs: Certificates) -> None:
    """All endpoints refuse: attempts are spaced, all of them are tried, and memory does not grow."""
    scene.front.die()
    scene.backoff = replace(scene.backoff, base=0.01, cap=0.02)
    scene.failover = replace(
        scene.failover,
        further=(Endpoint(host="127.0.0.1", port=free_port()),),
        fallback=Endpoint(host="127.0.0.1", port=free_port()),
        patience=0.05,
    )
    tried: set[str] = set()
    waits: list[float] = []
    blocks = 0
    await scene.local_up()
    for attempts in (10, 25, 50):
        while scene.link.attempts < attempts:
            scene.history.clear()
            await asyncio.sleep(0.02)
            for _, status in scene.history:
                link = status.remote
                if link.state is LinkState.WAITING and link.next_attempt and link.error and link.endpoint:
                    tried.add(link.endpoint.address)
                    waits.append((link.next_attempt - link.error.at).total_seconds())
        scene.history.clear()
        gc.collect()
        # The first rounds fill caches.
        before, blocks = blocks, sys.getallocatedblocks()
        if attempts == 50:
            assert blocks - before < 5000
    assert len(tried) == 3
    # The growth of the waits is forgotten by none of the changes.
    assert min(waits[1:]) >= 0.01
    tasks = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("quic_bridge remote")]
    assert tasks == ["quic_bridge remote link"]


async def test_several_addresses(scene: Scene, certs: Certificates) -> None:
    """The next one in order, and back to the first when that is good again."""
    async with Front(scene.remote.address, certs.server.cert_file, certs.server.key_file) as second:
        scene.failover = replace(
            TIMES, further=(Endpoint(host="127.0.0.1", port=free_port()), Endpoint(host="127.0.0.1", port=second.port))
        )
        scene.front.linger = True
        await scene.running()
        async with Numbers(scene) as numbers:
            numbers.start()
            await numbers.flowing()
            scene.front.die()
            await second.wait_session()
            await numbers.flowing()
            assert endpoint(scene).address == f"127.0.0.1:{second.port}"
            diverted = endpoint(scene).diverted
            assert diverted is not None
            assert diverted.code is ErrorCode.REFUSED
            await scene.front.restart()
            await scene.until(lambda _: endpoint(scene).preferred and scene.link.state is LinkState.CONNECTED, "return")
            await numbers.flowing()
            await numbers.settled()
        await scene.bridge.stop()


async def test_a_broker_that_refuses_us_is_believed(scene: Scene) -> None:
    """Credentials are wrong whatever carries them: no way round."""
    scene.failover = replace(scene.failover, patience=0.0, attempts=1)
    scene.backoff = replace(scene.backoff, refused_base=0.02, refused_cap=0.05)
    rule = refuse_connect(0x86)
    scene.front.add_rule(rule)
    await scene.bridge.start()
    await scene.front.wait_session(4)
    assert " as bridge (" not in scene.remote.log
    scene.front.remove_rule(rule)
    await up(scene, "quic")


async def test_asked_to_reconnect(scene: Scene) -> None:
    """A person who asks for it gets QUIC at once if it works, and what worked if it does not."""
    scene.failover = replace(scene.failover, probe_interval=60, probe_interval_cap=60)
    scene.front.die()
    await scene.bridge.start()
    await up(scene, "tcp")
    sessions = scene.link.reconnects
    scene.bridge.reconnect(Side.REMOTE)
    await scene.until(lambda status: is_up("tcp")(status) and status.remote.reconnects > sessions, "back by TCP")
    assert transports(scene) == ["tcp"]
    await scene.front.restart()
    scene.bridge.reconnect(Side.REMOTE)
    await up(scene, "quic")


async def test_stop_in_the_middle_of_a_probe(scene: Scene) -> None:
    scene.tune(QuicConfig(handshake_timeout=30.0))
    scene.front.die()
    await scene.bridge.start()
    await up(scene, "tcp")
    await scene.front.start()
    scene.front.freeze()
    dropped = scene.front._endpoint.incoming.dropped
    await wait_until(lambda: scene.front._endpoint.incoming.dropped > dropped, what="a probe")
    began = asyncio.get_running_loop().time()
    await scene.bridge.stop()
    assert asyncio.get_running_loop().time() - began < AT_ONCE
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("quic_bridge")]
    assert "Received DISCONNECT from bridge" in scene.remote.log
