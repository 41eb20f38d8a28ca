"""Publishers and the subscribers at the other end, all of which come back when their broker does."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from random import Random

from ..support.client import Client, ClientError
from ..support.mosquitto import Mosquitto
from .ledger import Mirror, Stream, payload

_BURST_TIMEOUT = 20.0
_AGAIN = 0.1
_MOST = 100
_SIZES = ((300, 0.979), (40_000, 0.02), (1024 * 1024, 0.001))
"""Largest payload, and how often one is up to that."""


class Publisher:
    """Publishes the messages of one stream in bursts, each when the one before is acknowledged."""

    def __init__(
        self, broker: Mosquitto, stream: Stream, rate: float, random: Random, clock: Callable[[], float]
    ) -> None:
        self.stream = stream
        self._client = Client(broker.host, broker.port)
        self._rate = rate
        self._random = random
        self._clock = clock
        self._allowed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def resume(self) -> None:
        """Publish from now on."""
        self._allowed.set()

    async def pause(self) -> None:
        """Publish no more; returns when it is known of every message whether the broker has it."""
        self._allowed.clear()
        await self._idle.wait()

    async def run(self) -> None:
        """Publish while it is allowed, until cancelled."""
        try:
            while True:
                await self._allowed.wait()
                self._idle.clear()
                # Mostly a few, now and then many.
                size = min(_MOST, 1 + int(self._random.expovariate(1 / 4)) ** 2 // 4)
                try:
                    await self._burst(size)
                finally:
                    self._idle.set()
                await asyncio.sleep(self._random.expovariate(self._rate / size))
        finally:
            self._client.abort()
            await self._client.wait_closed()

    async def _burst(self, size: int) -> None:
        client, stream = self._client, self.stream
        while not client.connected:
            try:
                await client.connect()
            except ClientError, OSError, TimeoutError:
                await self._hang_up()
        numbers = stream.publish(size, self._clock())
        largest = self._random.choices([size for size, _ in _SIZES], [share for _, share in _SIZES], k=size)
        sizes = [self._random.randint(8, most) for most in largest]
        acknowledged = False
        try:
            await client.burst(
                stream.topic,
                (payload(*item) for item in zip(numbers, sizes, strict=True)),
                stream.qos,
                timeout=_BURST_TIMEOUT,
            )
            acknowledged = True
        except ClientError, OSError, TimeoutError:
            await self._hang_up()
        finally:
            stream.settle(numbers, acknowledged=acknowledged)

    async def _hang_up(self) -> None:
        self._client.abort()
        await self._client.wait_closed()
        await asyncio.sleep(_AGAIN)


class Subscriber:
    """Takes everything that arrives at a broker, in a session that outlives the broker's restarts."""

    def __init__(self, broker: Mosquitto, topic_filters: Sequence[str], streams: Mapping[str, Stream | Mirror]) -> None:
        self._client = Client(broker.host, broker.port, client_id="subscriber", clean=False)
        self._topic_filters = topic_filters
        self._streams = streams
        self.unknown: list[str] = []
        """Topics that nobody published."""
        self.last_arrival = 0.0
        self._subscribed = False

    async def run(self) -> None:
        """Stay connected, until cancelled."""
        client = self._client
        try:
            while True:
                try:
                    await client.connect()
                    if not self._subscribed:
                        await client.subscribe(*self._topic_filters, qos=2)
                        self._subscribed = True
                    elif client.connack is not None and not client.connack.session_present:
                        raise RuntimeError(f"the broker lost the session of the subscriber to {self._topic_filters}")
                    while client.connected:
                        self.take()
                        await asyncio.sleep(0.02)
                except ClientError, OSError, TimeoutError:
                    client.abort()
                await client.wait_closed()
                self.take()
                await asyncio.sleep(0.02)
        finally:
            client.abort()
            await client.wait_closed()

    @property
    def ready(self) -> bool:
        """Whether it is connected and subscribed."""
        return self._subscribed and self._client.connected

    def take(self) -> None:
        """Enter into the books what came."""
        for message in self._client.messages:
            stream = self._streams.get(message.topic)
            if stream is None:
                self.unknown.append(message.topic)
            else:
                stream.arrive(message.payload)
            self.last_arrival = message.time
        self._client.messages.clear()
