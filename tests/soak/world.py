"""The stage: two brokers, QUIC in front of one of them, the bridge as a process, and who publishes and listens."""

import asyncio
from collections.abc import Coroutine
import contextlib
from dataclasses import replace
import math
from pathlib import Path
from random import Random
from typing import Self, override

from ..support.bridge_process import BridgeProcess, BridgeReport, BridgeSettings
from ..support.certs import Certificates
from ..support.client import Client
from ..support.mosquitto import Mosquitto, MosquittoOptions
from ..support.processes import wait_until
from ..support.quic_front import Front
from ..support.udp_relay import UdpRelay
from .broker_log import BrokerLog
from .ledger import Stream, payload
from .traffic import Publisher, Subscriber

UP, DOWN = "up", "down"
_TOPICS = 3
_OWN_STREAM = f"{UP}/+/{_TOPICS - 1}"
"""Of these the QUIC stream is one of their own (but for QoS 2)."""
_READY_TIMEOUT = 15.0


class World(contextlib.AsyncExitStack):
    """Everything that takes part; all of it is gone when the context ends."""

    local: Mosquitto
    remote: Mosquitto
    front: Front
    relay: UdpRelay
    """A NAT in front of the front: another way to it, on which addresses change and no ICMP passes."""
    bridge: BridgeProcess

    def __init__(self, folder: Path, seed: str, rate: float) -> None:
        """Prepare; `rate` is messages a second in all."""
        super().__init__()
        self._folder = folder
        self._seed = seed
        self._rate = rate
        self.streams: dict[str, Stream] = {}
        self.publishers: list[Publisher] = []
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
        self._began = asyncio.get_running_loop().time()

    def now(self) -> float:
        """Seconds since the beginning."""
        return asyncio.get_running_loop().time() - self._began

    @override
    async def __aenter__(self) -> Self:
        try:
            await self._set_up()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def _set_up(self) -> None:
        certificates = Certificates(self._folder)
        # All queues without a bound: what a broker drops by its own rules is not the bridge's doing.
        options = MosquittoOptions(persistence=True, max_queued_messages=0)
        self.local = Mosquitto(self._folder / "local", options, name="local")
        self.remote = Mosquitto(self._folder / "remote", replace(options), name="remote")
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
        group = await self.enter_async_context(asyncio.TaskGroup())
        for way, source, target in ((UP, self.local, self.remote), (DOWN, self.remote, self.local)):
            streams = [Stream(f"{way}/{qos}/{topic}", qos) for qos in (0, 1, 2) for topic in range(_TOPICS)]
            probe = Stream(f"{way}/probe", 0)
            known = {stream.topic: stream for stream in (*streams, probe)}
            self.streams |= known
            self.probes.append((source, probe))
            subscriber = Subscriber(target, f"{way}/#", known)
            self.subscribers.append(subscriber)
            self._run(group, subscriber.run())
            rate = self._rate / (2 * len(streams))
            for stream in streams:
                random = Random(f"{self._seed} {stream.topic}")
                self.publishers.append(Publisher(source, stream, rate, random, self.now))
        for publisher in self.publishers:
            self._run(group, publisher.run())
        settings = BridgeSettings(
            local=self.local.address,
            remote=self.front.address,
            ca_file=str(certificates.ca_file),
            routes=(("to_remote", _OWN_STREAM), ("to_remote", f"{UP}/#"), ("to_local", f"{DOWN}/#")),
            own_streams=(_OWN_STREAM,),
        )
        self.bridge = BridgeProcess(self._folder, settings)
        self.push_async_callback(self.bridge.stop)
        await wait_until(lambda: all(item.ready for item in self.subscribers), _READY_TIMEOUT, "subscribers")

    def _run(self, group: asyncio.TaskGroup, work: Coroutine[None, None, None]) -> None:
        task = group.create_task(work)
        self.callback(task.cancel)

    async def rest(self, seconds: float) -> None:
        """Let time pass, until the round ends."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.mending.wait()

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
                lambda: (report := self.report) is not None and report.state == "running", _READY_TIMEOUT, "running"
            )
        except TimeoutError:
            raise TimeoutError(f"the bridge is not connected after {_READY_TIMEOUT:g} s: {self.report}") from None

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

    async def probe(self) -> None:
        """Wait until messages cross both ways: connected is too early, the bridge may still subscribe."""
        for broker, stream in self.probes:
            before = stream.arrived
            async with asyncio.timeout(_READY_TIMEOUT), Client(broker.host, broker.port) as client:
                while stream.arrived == before:
                    numbers = stream.publish(1, self.now())
                    await client.publish(stream.topic, payload(numbers[0], 8))
                    stream.settle(numbers, acknowledged=True)
                    await asyncio.sleep(0.05)
                    self.arrivals()
