"""The stage: two brokers, QUIC in front of one of them, the bridge as a process, and who publishes and listens."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
import contextlib
from dataclasses import replace
from functools import partial
import math
from pathlib import Path
from random import Random
from typing import override

from ..support.bridge_process import BridgeProcess, BridgeReport, BridgeSettings
from ..support.certs import Certificates
from ..support.client import Client
from ..support.faults import refuse_connect
from ..support.front_policy import Rule
from ..support.mosquitto import Mosquitto, MosquittoOptions
from ..support.processes import wait_until
from ..support.quic_front import Front
from ..support.set_up import SetUp
from ..support.udp_relay import UdpRelay
from ..support.version_gate import BRIDGE_BIT, VersionGate
from .broker_log import BrokerLog
from .disk import Disk
from .ledger import Mirror, Stream, payload
from .routes import COMING, DOWN, GROUPS, TARGETS, UP, Group, Routes
from .traffic import Publisher, Subscriber

READY_TIMEOUT = 30.0
_PROBE = 0.05


class World(SetUp):
    """Everything that takes part; all of it is gone when the context ends."""

    local: Mosquitto
    remote: Mosquitto
    front: Front
    relay: UdpRelay
    """A NAT in front of the front: another way to it, on which addresses change and no ICMP passes."""
    gate: VersionGate
    """Another way to the local broker, on which it speaks no more than MQTT 3.1.1."""
    bridge: BridgeProcess
    disk: Disk

    def __init__(self, folder: Path, seed: str, rate: float) -> None:
        """Prepare; `rate` is messages a second in all."""
        super().__init__()
        self.folder = folder
        self._seed = seed
        self._rate = rate
        self.streams: dict[str, Stream] = {}
        """By the topic at the publisher's broker."""
        self.mirrors: list[Mirror] = []
        self.routes = Routes()
        self.publishers: dict[str, list[Publisher]] = {}
        """By the group of topics."""
        self.subscribers: list[Subscriber] = []
        self.probes: list[tuple[Mosquitto, Stream]] = []
        self.logs: list[BrokerLog] = []
        self.whole_connections = asyncio.Lock()
        """Held by faults that must not meet: the bridge must not go while its CONNECT waits in a frozen local broker,
        which would then write to a dead connection (see broker_log.py)."""
        self.complaints: list[str] = []
        """What is wrong with the bridge's process."""
        self.mending = asyncio.Event()
        """Set when the round ends: every fault is to end now."""
        self._limit: Rule | None = None
        self._began = asyncio.get_running_loop().time()

    def now(self) -> float:
        """Seconds since the beginning."""
        return asyncio.get_running_loop().time() - self._began

    @override
    async def _set_up(self) -> None:
        certificates = Certificates(self.folder)
        # All queues without a bound: what a broker drops by its own rules is not the bridge's doing.
        options = MosquittoOptions(persistence=True, max_queued_messages=0)
        self.local = Mosquitto(self.folder / "local", options, name="local")
        self.remote = Mosquitto(self.folder / "remote", replace(options), name="remote")
        self.remote.options.tls = certificates.server
        for broker in (self.local, self.remote):
            await self.enter_async_context(broker)
            self.logs.append(BrokerLog(broker.log_file))
        server = certificates.server
        self.front = Front(self.remote.address, server.cert_file, server.key_file)
        self.front.linger = True
        self.front.policy.tickets = True
        await self.enter_async_context(self.front)
        self.relay = UdpRelay(self.front.address)
        await self.enter_async_context(self.relay)
        self.gate = VersionGate(self.local.address, 4, 4 | BRIDGE_BIT)
        await self.enter_async_context(self.gate)
        self.disk = Disk(self.folder / "disk")
        self.enter_context(self.disk)
        await self._set_up_traffic()
        settings = BridgeSettings(
            local=self.local.address,
            remote=self.front.address,
            ca_file=str(certificates.ca_file),
            routes=self.routes.as_settings(),
        )
        self.bridge = BridgeProcess(self.folder, settings)
        self.push_async_callback(self.bridge.stop)
        await wait_until(lambda: all(item.ready for item in self.subscribers), READY_TIMEOUT, "subscribers")

    async def _set_up_traffic(self) -> None:
        arrivals: dict[str, dict[str, Stream | Mirror]] = {"to_remote": {}, "to_local": {}}
        rate = self._rate / sum(len(item.all_topics) for item in GROUPS.values())
        for item in GROUPS.values():
            source = self.local if item.direction == UP else self.remote
            for topic, qos in item.all_topics:
                stream = self.streams[topic] = Stream(
                    topic, qos, may_fall=item.may_fall, may_come_twice=item.may_come_twice
                )
                arrivals[item.direction] |= dict.fromkeys(item.arrives_as(topic), stream)
                random = Random(f"{self._seed} {topic}")
                publisher = Publisher(source, stream, rate, random, self.now)
                self.publishers.setdefault(item.name, []).append(publisher)
                if item.name.startswith("both/"):
                    # Its own broker's subscriber gets it, too: once. (With QoS 1 a broker may repeat what it wants.)
                    mirror = Mirror(topic)
                    arrivals["to_local" if item.direction == UP else "to_remote"][topic] = mirror
                    if qos != 1:
                        self.mirrors.append(mirror)
        group = await self.enter_async_context(asyncio.TaskGroup())
        for direction, source, target in ((UP, self.local, self.remote), (DOWN, self.remote, self.local)):
            way = "up" if direction == UP else "down"
            probe = self.streams[f"{way}/probe"] = Stream(f"{way}/probe", 0)
            arrivals[direction][probe.topic] = probe
            self.probes.append((source, probe))
            targets = [f"{name}/{way}/#" for name in TARGETS]
            subscriber = Subscriber(
                target, [f"{way}/#", f"coming/{way}/#", f"cross/{way}/#", "both/#", *targets], arrivals[direction]
            )
            self.subscribers.append(subscriber)
            self._run(group, subscriber.run())
        for publishers in self.publishers.values():
            for publisher in publishers:
                self._run(group, publisher.run())

    def _run(self, group: asyncio.TaskGroup, work: Coroutine[None, None, None]) -> None:
        task = group.create_task(work)
        self.callback(task.cancel)

    @property
    def grouped_streams(self) -> Iterator[tuple[Group, Stream]]:
        """All streams but the probes."""
        return ((group, self.streams[topic]) for group in GROUPS.values() for topic, _ in group.all_topics)

    def names(self, topic: str) -> Sequence[str]:
        """All names of a topic, at both brokers."""
        group = GROUPS.get(topic.rsplit("/", 2)[0])
        return [topic] if group is None else list({topic, *group.arrives_as(topic)})

    def resume(self, *, both_ways: bool) -> None:
        """Publish; or all but what is bridged both ways."""
        for name, publishers in self.publishers.items():
            if both_ways or not name.startswith("both/"):
                for publisher in publishers:
                    publisher.resume()

    async def pause(self) -> None:
        """Publish no more; returns when it is known of every message whether its broker has it."""
        await asyncio.gather(*(item.pause() for publishers in self.publishers.values() for item in publishers))

    async def rest(self, seconds: float) -> None:
        """Let time pass, until the round ends."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.mending.wait()

    def limit_remote(self, *, to_3_1_1: bool) -> None:
        """Let the front refuse MQTT 5, or not."""
        if to_3_1_1 and self._limit is None:
            self._limit = refuse_connect(0x84, version=5)
            self.front.add_rule(self._limit)
        elif not to_3_1_1 and self._limit is not None:
            self.front.remove_rule(self._limit)
            self._limit = None

    def forget_addresses(self) -> None:
        """Close the relay's ports of connections that are over; for when the bridge does not run."""
        port = self.relay.address[1]
        self.relay.stop()
        self.relay.start(port)

    async def stop_bridge(self) -> float:
        """Stop the bridge in good order and look at what it leaves behind; returns the seconds that it took."""
        if not self.bridge.running:
            return 0.0
        await self.bridge.stop()
        self.bridge.read()
        left = self.bridge.left
        if left is None:
            self.complaints.append("the bridge did not stop in good order, or not within 5 s")
            return math.inf
        if left.tasks or left.timers or left.fds:
            self.complaints.append(f"left behind by the bridge's stop: {left}")
        return left.seconds

    @property
    def report(self) -> BridgeReport | None:
        """What the bridge said last."""
        self.bridge.read()
        return self.bridge.report

    async def wait_running(self) -> None:
        """Wait until the bridge is connected to both brokers; raises TimeoutError with what it says instead."""
        try:
            await wait_until(
                lambda: (report := self.report) is not None and report.state == "running", READY_TIMEOUT, "running"
            )
        except TimeoutError:
            raise TimeoutError(f"the bridge is not connected after {READY_TIMEOUT:g} s: {self.report}") from None

    def forget_logs(self) -> None:
        """Empty all logs: of days nobody needs every line."""
        self.bridge.forget_log()
        for log in self.logs:
            log.forget()

    def arrivals(self) -> int:
        """How many different messages have arrived in all."""
        for subscriber in self.subscribers:
            subscriber.take()
        return sum(stream.arrived for stream in self.streams.values())

    async def follow_routes(self) -> None:
        """Have the bridge follow the routes as they are now, or from its next start. Raises TimeoutError."""
        await self.bridge.change_routes(self.routes.as_settings(), 2 * READY_TIMEOUT)

    async def probe(self) -> None:
        """Wait until messages cross both ways: connected is too early, the bridge may still subscribe."""
        for broker, stream in self.probes:
            await self._publish_until(broker, stream, partial(_has_more, stream, stream.arrived))

    async def probe_routes(self) -> None:
        """Wait until messages cross on the routes that were away, which nobody may have used since."""
        for name in COMING:
            broker = self.local if GROUPS[name].direction == UP else self.remote
            for topic, qos in GROUPS[name].all_topics:
                stream = self.streams[topic]
                if qos:
                    await self._publish_until(broker, stream, partial(_is_certain, stream))

    async def _publish_until(self, broker: Mosquitto, stream: Stream, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(READY_TIMEOUT), Client(broker.host, broker.port) as client:
                while not condition():
                    numbers = stream.publish(1, self.now())
                    await client.publish(stream.topic, payload(numbers[0], 8), stream.qos)
                    stream.settle(numbers, acknowledged=True)
                    await asyncio.sleep(_PROBE)
                    self.arrivals()
        except TimeoutError:
            raise TimeoutError(f"nothing of {stream.topic} crosses, the bridge says {self.report}") from None


def _has_more(stream: Stream, arrived: int) -> bool:
    return stream.arrived > arrived


def _is_certain(stream: Stream) -> bool:
    return stream.certain
