"""Messages that take longer than any deadline: a line that is slow is not a line that is dead."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from custom_components.quic_bridge.bridge import session as session_module
from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import QuicConfig, TransportKind
from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.routes import Direction, Route
from custom_components.quic_bridge.bridge.status import BridgeState, LinkState, LinkStatus, Side

from ..support.certs import Certificates
from ..support.client import Client
from ..support.faults import enforce_keepalive
from ..support.processes import AT_ONCE, wait_until
from ..support.slow_relay import SlowRelay
from .link_support import ROUTES, Scene, make_scene

pytestmark = pytest.mark.usefixtures("socket_enabled")

FAST = 1e9
RATE = 150_000.0
"""Bytes a second."""
LARGE = bytes(675_000)
"""Takes 4.5 s: longer than the keepalive and the ping timeout together."""
KEEPALIVE, PING_TIMEOUT = 2, 2.0
"""Seconds. A machine that stands still for one is not a line that is dead."""


class Slow:
    """A bridge with short deadlines, and a slow line to one of its brokers."""

    def __init__(self, scene: Scene, side: str, relay: SlowRelay | None, near: Client, far: Client) -> None:
        self.scene = scene
        self.near = near
        """A client at the other broker."""
        self.far = far
        """A client at the broker behind the line."""
        self.there, self.back = ("down", "up") if side == "local" else ("up", "down")
        """Prefixes of topics: over the line from the bridge to the broker, and the other way."""
        self._local = side == "local"
        self._relay = relay

    def line(self, *, up: float = FAST, down: float = FAST) -> None:
        """Let the line carry so many bytes a second to the broker and from it."""
        if self._relay is not None:
            self._relay.up, self._relay.down = up, down
        else:
            front = self.scene.front
            front.incoming.rate, front.outgoing.rate = (None if rate == FAST else rate for rate in (up, down))

    def stall(self) -> None:
        """Let nothing through any more."""
        if self._relay is not None:
            self._relay.flowing.clear()
        else:
            self.scene.front.freeze()

    def mend(self) -> None:
        """Make it a good line."""
        if self._relay is not None:
            self._relay.flowing.set()
        self.scene.front.thaw()
        self.line()

    @property
    def bridge(self) -> Bridge:
        """The bridge."""
        return self.scene.bridge

    @property
    def link(self) -> LinkStatus:
        """The side with the line."""
        return self.bridge.status.local if self._local else self.bridge.status.remote

    def reconnects(self) -> int:
        """Of both sides."""
        return self.bridge.status.local.reconnects + self.bridge.status.remote.reconnects

    async def publish(self, *, back: bool = False) -> None:
        """Publish a large message between two small ones, for the broker behind the line or from there."""
        source, topic = (self.far, f"{self.back}/a") if back else (self.near, f"{self.there}/a")
        for payload in (b"first", LARGE, b"last"):
            await source.publish(topic, payload, 1)

    async def arrived(self, *, back: bool = False, interrupted: bool = False) -> None:
        """Wait for these: each once, or where a connection was lost meanwhile at least once (QoS 1), in order."""
        sink = self.near if back else self.far
        await sink.wait_for(lambda messages: messages and messages[-1].payload == b"last")
        payloads = list(dict.fromkeys(sink.payloads)) if interrupted else sink.payloads
        # Their lengths: a difference of so many zeros would bury the name of the test.
        assert list(map(len, payloads)) == list(map(len, (b"first", LARGE, b"last")))


@pytest.fixture(params=["quic", "tls", "local"])
async def slow(
    request: pytest.FixtureRequest, socket_enabled: None, certs: Certificates, tmp_path: Path
) -> AsyncIterator[Slow]:
    """The parameter: a line to the remote broker over QUIC, to it over TLS, or to the local one."""
    side = request.param
    async with AsyncExitStack() as stack:
        scene = await stack.enter_async_context(make_scene(certs, tmp_path))
        scene.tune(QuicConfig(handshake_timeout=5.0), keepalive=KEEPALIVE, ping_timeout=PING_TIMEOUT)
        scene.local_config = replace(scene.local_config, keepalive=KEEPALIVE, ping_timeout=PING_TIMEOUT)
        relay: SlowRelay | None = None
        if side != "quic":
            target = scene.local.address if side == "local" else (scene.remote.host, scene.remote.tls_port)
            relay = await stack.enter_async_context(SlowRelay(target))
            if side == "local":
                scene.local_config = replace(scene.local_config, port=relay.port)
            else:
                scene.remote_config = replace(scene.remote_config, transport=TransportKind.TCP, port=relay.port)
        stack.push_async_callback(scene.renew)
        home, away = scene.clients()
        for client, topic_filter in ((home, "down/#"), (away, "up/#")):
            await stack.enter_async_context(client)
            await client.subscribe(topic_filter, qos=1)
        await scene.running()
        yield Slow(scene, side, relay, *((away, home) if side == "local" else (home, away)))


async def test_a_message_that_takes_longer_than_the_deadlines(slow: Slow) -> None:
    """Our PINGREQ is behind it for seconds; what the other host acknowledges meanwhile is sign of life enough."""
    slow.line(up=RATE)
    began = asyncio.get_running_loop().time()
    await slow.publish()
    await slow.arrived()
    assert asyncio.get_running_loop().time() - began > 4, "the line was not slow"
    assert slow.reconnects() == 0
    assert slow.bridge.status.state is BridgeState.RUNNING


async def test_the_same_from_the_broker(slow: Slow) -> None:
    """The PINGRESP is behind it; the bytes that come are sign of life enough."""
    slow.line(down=RATE)
    began = asyncio.get_running_loop().time()
    await slow.publish(back=True)
    await slow.arrived(back=True)
    assert asyncio.get_running_loop().time() - began > 4, "the line was not slow"
    assert slow.reconnects() == 0


async def test_a_line_that_dies_under_a_large_message(slow: Slow) -> None:
    """What has been acknowledged buys no time any more: found as soon as on any line, and then all arrives."""
    slow.line(up=RATE)
    await slow.publish()
    await slow.far.wait_for(1)
    await asyncio.sleep(0.5)  # into the large one
    before = asyncio.get_running_loop().time()
    slow.stall()
    await wait_until(lambda: slow.link.error, what="the loss")
    assert asyncio.get_running_loop().time() - before < KEEPALIVE + PING_TIMEOUT + AT_ONCE
    assert slow.link.error is not None
    assert slow.link.error.code is ErrorCode.PING_TIMEOUT
    slow.mend()
    await slow.arrived(interrupted=True)


async def test_a_stop_in_the_middle_of_a_large_message(slow: Slow) -> None:
    """The farewell waits for it a second and no more; half a message is none, and the next start sends it whole."""
    slow.line(up=RATE)
    await slow.publish()
    await slow.far.wait_for(1)
    await asyncio.sleep(0.5)  # into the large one
    before = asyncio.get_running_loop().time()
    await slow.scene.renew()
    assert asyncio.get_running_loop().time() - before < AT_ONCE
    slow.mend()
    await slow.scene.running()
    await slow.arrived(interrupted=True)


# --- answers behind large messages ------------------------------------------------------------------------------------

MORE = Route(id="more", direction=Direction.BOTH, topic_filter="more/#")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let SUBACK have less time than a large message takes."""
    monkeypatch.setattr(session_module, "_SUBACK_TIMEOUT", 2.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("slow", ["quic", "local"], indirect=True)
async def test_a_subscription_behind_a_large_message(slow: Slow) -> None:
    slow.line(up=RATE)
    await slow.publish()
    await slow.far.wait_for(1)
    await slow.bridge.apply_routes((*ROUTES, MORE))
    await slow.arrived()
    assert slow.reconnects() == 0
    await slow.near.subscribe("more/#")
    await slow.far.publish("more/a", b"subscribed", 1)
    await slow.near.wait_for(1)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("slow", ["quic", "tls"], indirect=True)
async def test_a_suback_behind_a_large_message(slow: Slow) -> None:
    """A resumed session delivers first of all what waited in it."""
    await slow.scene.renew()
    slow.line(down=RATE)
    await slow.publish(back=True)
    await slow.bridge.start()
    await slow.arrived(back=True)
    await slow.scene.running()
    assert slow.reconnects() == 0


# --- the other broker meanwhile ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("slow", ["quic"], indirect=True)
async def test_what_we_do_not_read_is_not_silence(slow: Slow) -> None:
    """While the remote takes no more, the local broker is not read: its PINGRESPs wait, and its SUBACK does not."""
    slow.scene.tune(QuicConfig(handshake_timeout=5.0), keepalive=60)
    await slow.scene.renew()
    await slow.scene.running()
    slow.scene.front.connection.stop_reading()
    await slow.publish()
    log = slow.scene.local.log_file

    def pings() -> int:
        return log.read_text().count("Received PINGREQ from bridge")

    before = pings()
    await wait_until(lambda: pings() >= before + 3, what="PINGREQs")
    assert slow.reconnects() == 0
    slow.bridge.reconnect(Side.LOCAL)
    await slow.scene.until(lambda status: status.local.reconnects == 1, "reconnect")
    await slow.scene.until(lambda status: status.local.state is LinkState.CONNECTED, "the local side")
    slow.scene.front.connection.resume_reading()
    await slow.arrived(interrupted=True)
    assert slow.reconnects() == 1


# --- brokers that count whole packets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", ["quic"], indirect=True)
@pytest.mark.parametrize("disconnect", [0x8D, None], ids=["says-so", "hangs-up"])
async def test_a_broker_that_hears_nothing_while_a_message_is_under_way(
    slow: Slow, disconnect: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """EMQX gives up after one and a half times the Keep Alive; then it is told a longer one, and the message passes."""
    front = slow.scene.front
    front.policy.stream_window = 2 * len(LARGE)
    front.add_rule(enforce_keepalive(disconnect=disconnect))
    slow.bridge.reconnect()
    await slow.scene.until(lambda status: status.remote.reconnects == 1, "reconnect")
    await slow.scene.running()
    slow.line(up=RATE)
    await slow.publish()
    await slow.arrived(interrupted=True)
    assert slow.bridge.status.remote.reconnects == 2
    assert slow.bridge.status.outbound.dropped == {}
    told = [connect.keepalive for connect in front.stats.connects[1:]]
    assert told[0] == KEEPALIVE
    assert told[1] > KEEPALIVE
    [line] = [record.getMessage() for record in caplog.records if "keep alive of" in record.getMessage()]
    assert f"{told[1]} s" in line
