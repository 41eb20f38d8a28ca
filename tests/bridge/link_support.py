"""A bridge between two real brokers whose remote side fails as told, and numbered messages to find every loss."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Self

from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import (
    BackoffConfig,
    BridgeConfig,
    BrokerConfig,
    FailoverConfig,
    OutboxConfig,
    PresenceConfig,
    QuicConfig,
    TlsConfig,
    TransportKind,
)
from custom_components.quic_bridge.bridge.routes import Direction, Route
from custom_components.quic_bridge.bridge.status import (
    BridgeState,
    BridgeStatus,
    LinkError,
    LinkState,
    LinkStatus,
    OutboxStatus,
)

from ..soak.broker_log import BrokerFaults, BrokerLog
from ..support.certs import Certificate, Certificates
from ..support.client import Client
from ..support.mosquitto import Mosquitto, MosquittoOptions
from ..support.processes import PATIENCE, wait_until
from ..support.quic_front import Front

QUICK = QuicConfig(handshake_timeout=5.0, ping_interval=0.3, ping_timeout=0.7)
"""A silent peer is noticed within a second."""

ROUTES = (
    Route(id="up", direction=Direction.TO_REMOTE, topic_filter="up/#"),
    Route(id="down", direction=Direction.TO_LOCAL, topic_filter="down/#"),
)


class BridgeScene:
    """The bridge and its brokers, whatever it is that carries QUIC to the remote one."""

    def __init__(
        self, local: Mosquitto, remote: Mosquitto, quic: tuple[str, int], certs: Certificates, folder: Path
    ) -> None:
        """Prepare; `quic` is where the remote broker is reached over QUIC."""
        self.local = local
        self.remote = remote
        self.local_config = BrokerConfig(host=local.host, port=local.port, client_id="bridge")
        self.remote_config = BrokerConfig(
            host=quic[0],
            port=quic[1],
            client_id="bridge",
            transport=TransportKind.QUIC,
            tls=TlsConfig(ca=certs.ca_pem),
            window=20,
            receive_maximum=20,
        )
        self.routes: tuple[Route, ...] = ROUTES
        self.backoff = BackoffConfig(base=0.05, cap=0.2, refused_base=0.4, refused_cap=0.8)
        self.failover = FailoverConfig()
        self.outbox: OutboxConfig | None = None
        self.presence: PresenceConfig | None = None
        self.outbox_path = folder / "outbox.db"
        self.tickets: Path | None = None
        self.settings: Callable[[], BrokerConfig] = lambda: self.local_config
        """What the bridge asks for the local broker."""
        self.listener_error: Exception | None = None
        """Raised by whoever listens to the bridge's status."""
        self.history: list[tuple[float, BridgeStatus]] = []
        """Every status that was pushed, with the loop's time."""
        self._bridge: Bridge | None = None

    # --- the bridge ---------------------------------------------------------------------------------------------------

    @property
    def bridge(self) -> Bridge:
        """The bridge, made when it is needed first: settings may be changed until then."""
        if self._bridge is None:
            config = BridgeConfig(
                remote=self.remote_config,
                routes=self.routes,
                backoff=self.backoff,
                failover=self.failover,
                outbox=self.outbox,
                tickets=self.tickets,
                presence=self.presence,
            )
            self._bridge = Bridge(config, lambda: self.settings(), self._on_status)  # noqa: PLW0108 - may be changed
        return self._bridge

    def tune(self, quic: QuicConfig = QUICK, **changes: float | str | None) -> None:
        """Change settings of the remote."""
        self.remote_config = replace(self.remote_config, quic=quic, **changes)  # type: ignore[arg-type]

    async def renew(self) -> None:
        """Stop the bridge; the next use makes another, as after a restart of Home Assistant."""
        await self.bridge.stop()
        self._bridge = None

    def _on_status(self, status: BridgeStatus) -> None:
        self.history.append((asyncio.get_running_loop().time(), status))
        if self.listener_error is not None:
            raise self.listener_error

    @property
    def link(self) -> LinkStatus:
        """The remote side now."""
        return self.bridge.status.remote

    @property
    def box(self) -> OutboxStatus:
        """Figures of the Outbox."""
        outbox = self.bridge.status.outbox
        assert outbox is not None
        return outbox

    async def until(self, condition: Callable[[BridgeStatus], object], what: str, timeout: float = PATIENCE) -> None:  # noqa: ASYNC109
        """Wait for a status."""
        await wait_until(lambda: condition(self.bridge.status), timeout, what)

    async def running(self) -> None:
        """Start the bridge if it is not, and wait until both sides are up."""
        await self.bridge.start()
        await self.until(lambda status: status.state is BridgeState.RUNNING, "running")

    async def local_up(self) -> None:
        """Start the bridge and wait for the local side alone."""
        await self.bridge.start()
        await self.until(lambda status: status.local.state is LinkState.CONNECTED, "local side")

    # --- what is looked at --------------------------------------------------------------------------------------------

    async def noticed(self, since: datetime, timeout: float = PATIENCE) -> tuple[float, LinkStatus]:  # noqa: ASYNC109
        """Wait until the remote's loss is known; returns how long that took and the link's status at that moment."""

        def first() -> LinkStatus | None:
            for _, status in self.history:
                error = status.remote.error
                if error is not None and error.at >= since:
                    return status.remote
            return None

        await wait_until(first, timeout, "an error of the remote")
        link = first()
        assert link is not None
        assert link.error is not None
        return (link.error.at - since).total_seconds(), link

    def errors(self) -> list[LinkError]:
        """All errors of the remote, in order, each once."""
        found: list[LinkError] = []
        for _, status in self.history:
            error = status.remote.error
            if error is not None and (not found or found[-1] != error):
                found.append(error)
        return found

    def states(self) -> list[LinkState]:
        """The states the remote went through."""
        states = [status.remote.state for _, status in self.history]
        return states[:1] + [after for before, after in pairwise(states) if after is not before]

    def clients(self) -> tuple[Client, Client]:
        """A client at home and one away, not connected yet."""
        return Client(self.local.host, self.local.port), Client(self.remote.host, self.remote.port)


class Scene(BridgeScene):
    """... with our own front, which can fail in every way."""

    def __init__(self, local: Mosquitto, remote: Mosquitto, front: Front, certs: Certificates, folder: Path) -> None:
        super().__init__(local, remote, front.address, certs, folder)
        self.front = front


def now() -> datetime:
    """The time as the status has it."""
    return datetime.now(UTC)


@asynccontextmanager
async def make_brokers(folder: Path, tls: Certificate | None = None) -> AsyncIterator[tuple[Mosquitto, Mosquitto]]:
    """Two brokers without a bound or a disk. They are killed at the end, which is five times as fast as stopping.

    With a certificate the remote one listens on TLS, too.
    """
    options = MosquittoOptions(max_queued_messages=0)
    local = Mosquitto(folder / "local", options, name="local")
    remote = Mosquitto(folder / "remote", replace(options, tls=tls), name="remote")
    try:
        await asyncio.gather(local.start(), remote.start())
        yield local, remote
    finally:
        for broker in (local, remote):
            if broker.running:
                await broker.kill()


@asynccontextmanager
async def make_scene(certs: Certificates, folder: Path) -> AsyncIterator[Scene]:
    """Two brokers, the front and a bridge that is not started yet."""
    async with (
        make_brokers(folder, certs.server) as (local, remote),
        Front(remote.address, certs.server.cert_file, certs.server.key_file) as front,
    ):
        scene = Scene(local, remote, front, certs, folder)
        try:
            yield scene
        finally:
            await scene.bridge.stop()


class Numbers:
    """Numbered messages of QoS 1 and 2, both ways, until they are told to end; then all must have arrived."""

    STEP = 10
    AHEAD = 200
    """Messages that have not arrived yet, at which the publishers pause."""

    def __init__(self, scene: BridgeScene) -> None:
        self.home, self.away = scene.clients()
        self._logs = [BrokerLog(broker.log_file) for broker in (scene.local, scene.remote)]
        self.sent: Counter[str] = Counter()
        self._ending = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for client, topic_filter in ((self.home, "down/#"), (self.away, "up/#")):
            await client.connect()
            await client.subscribe(topic_filter, qos=2)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.home.disconnect()
        await self.away.disconnect()

    def start(self, *, down: bool = True) -> None:
        """Begin to publish."""
        pairs = [(self.home, "up"), (self.away, "down")] if down else [(self.home, "up")]
        self._tasks = [asyncio.create_task(self._publish(client, topic)) for client, topic in pairs]

    async def _publish(self, client: Client, prefix: str) -> None:
        sink = self.sink(f"{prefix}/")
        while not self._ending:
            sent = sum(number for topic, number in self.sent.items() if topic.startswith(prefix))
            if sent - len(sink.messages) < self.AHEAD:
                await self.step(client, prefix)
            await asyncio.sleep(0.005)

    async def step(self, client: Client, prefix: str, number: int = STEP) -> None:
        """Publish some of each QoS."""
        for qos in (1, 2):
            topic = f"{prefix}/{qos}"
            start = self.sent[topic]
            self.sent[topic] += number
            await client.burst(topic, [b"%d" % item for item in range(start, start + number)], qos)

    async def flowing(self, number: int = 20) -> None:
        """Wait until so many have arrived, from now on, each way that is in use."""
        for client in (self.home, self.away)[2 - len(self._tasks) :]:
            arrived = len(client.messages)
            await client.wait_for(arrived + number)

    async def settled(self, timeout: float = PATIENCE) -> None:  # noqa: ASYNC109
        """End the publishing and check: nothing lost, order kept, QoS 2 exactly once.

        mosquitto may itself send what waited in a session behind what came later, or QoS 2 once more after PUBREL (see
        broker_log.py). Where its log says so, so many messages of that topic may be late or twice, as in the soak; the
        bridge adds none.
        """
        self._ending = True
        await asyncio.gather(*self._tasks)
        await wait_until(lambda: not self.missing(), timeout, "the last message")
        faults = sum((log.faults() for log in self._logs), BrokerFaults())
        for topic, number in self.sent.items():
            arrived = [int(message.payload) for message in self.sink(topic).messages if message.topic == topic]
            first = list(dict.fromkeys(arrived))
            assert sorted(first) == list(range(number)), f"unknown messages on {topic}"
            late = sum(item < highest for item, highest in zip(first, accumulate(first, max), strict=True))
            assert late <= faults.overtaken[topic], f"order on {topic}"
            if topic.endswith("/2"):
                assert len(arrived) <= number + faults.repeated[topic], f"copies on {topic}"

    def missing(self) -> dict[str, int]:
        """How many have not arrived."""
        missing = {}
        for topic, number in self.sent.items():
            arrived = {message.payload for message in self.sink(topic).messages if message.topic == topic}
            if len(arrived) < number:
                missing[topic] = number - len(arrived)
        return missing

    def sink(self, topic: str) -> Client:
        """Where messages of that topic arrive."""
        return self.away if topic.startswith("up/") else self.home


# --- states, to begin a test from -------------------------------------------------------------------------------------


async def idle(scene: Scene, _numbers: Numbers) -> None:
    """Connected, without traffic."""
    await scene.running()


async def busy(scene: Scene, numbers: Numbers) -> None:
    """Messages cross both ways."""
    await scene.running()
    numbers.start()
    await numbers.flowing()


async def draining(scene: Scene, numbers: Numbers) -> None:
    """What waited in the Outbox is on its way."""
    scene.outbox = OutboxConfig(path=scene.outbox_path, delay=0.05)
    await scene.running()
    await scene.front.stop()
    await scene.until(lambda status: status.remote.state is LinkState.WAITING, "remote away")
    await numbers.step(numbers.home, "up", 50)
    await wait_until(lambda: (scene.box.messages or 0) >= 100, what="100 messages on disk")
    await scene.front.start()
    await numbers.away.wait_for(20)
    assert len(numbers.away.messages) < 100
