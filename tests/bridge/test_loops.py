"""Several bridges between real brokers: one publish is one copy everywhere, and nothing goes round."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import BridgeConfig, BrokerConfig
from custom_components.quic_bridge.bridge.guard import GuardMode, LoopGuard
from custom_components.quic_bridge.bridge.routes import Direction, Route
from custom_components.quic_bridge.bridge.status import BridgeState, DropReason

from ..support.client import Client
from ..support.mosquitto import Mosquitto
from ..support.processes import wait_until

EVERYTHING = (Route(id="all", direction=Direction.BOTH, topic_filter="#"),)
RING = ((0, 1), (1, 2), (2, 0))
"""Each broker's bridge has the next broker as its remote."""
MIXED = ((0, 1), (2, 1), (0, 2))
CHAIN = ((0, 1), (1, 2), (2, 3))


class World:
    """Brokers, bridges between them, and a client at each broker that hears everything."""

    def __init__(self, clients: Sequence[Client], bridges: Sequence[Bridge]) -> None:
        self.clients = clients
        self.bridges = bridges

    async def copies(self, origin: int, qos: int = 1) -> list[int]:
        """Publish a message at one broker; returns how many copies the client at each has had when all is quiet."""
        payload = b"from %d with %d" % (origin, qos)
        await self.clients[origin].publish("topic", payload, qos, retain=qos == 1)
        await self.quiet()
        return [client.payloads.count(payload) for client in self.clients]

    async def quiet(self) -> None:
        """Wait until nothing crosses any more: every bridge had time to pass on what was there, and did not.

        Markers that take the way the messages took cannot tell, as they would be stopped where those are.
        """
        still, before = 0, None
        while still < 5:
            now = (
                [len(client.messages) for client in self.clients],
                [
                    (
                        status.outbound.forwarded,
                        status.inbound.forwarded,
                        status.outbound.waiting,
                        status.inbound.waiting,
                    )
                    for status in (bridge.status for bridge in self.bridges)
                ],
            )
            still = still + 1 if now == before else 0
            before = now
            # A round trip through every broker's queue, with all bridges' work in between.
            await asyncio.gather(*(client.ping() for client in self.clients))
            await asyncio.sleep(0.02)

    def looped(self) -> int:
        """How many messages the bridges stopped."""
        counts: Counter[DropReason] = Counter()
        for status in (bridge.status for bridge in self.bridges):
            counts.update(status.outbound.dropped)
            counts.update(status.inbound.dropped)
        assert set(counts) <= {DropReason.LOOP}
        return counts[DropReason.LOOP]


@asynccontextmanager
async def world(
    folder: Path, number: int, pairs: Sequence[tuple[int, int]], guard: LoopGuard | None = None
) -> AsyncIterator[World]:
    """So many brokers, and bridges that are up: in each pair the local broker's number and the remote's."""
    async with AsyncExitStack() as stack:
        brokers = [Mosquitto(folder / str(index), name=f"broker{index}") for index in range(number)]
        for broker in brokers:
            await stack.enter_async_context(broker)

        def config(index: int, client_id: str) -> BrokerConfig:
            return BrokerConfig(host=brokers[index].host, port=brokers[index].port, client_id=client_id)

        bridges = []
        for local, remote in pairs:
            name = f"bridge {local}-{remote}"
            bridge = Bridge(
                BridgeConfig(remote=config(remote, name), routes=EVERYTHING, guard=guard or LoopGuard()),
                lambda local=local, name=name: config(local, name),  # type: ignore[misc] # bound in the loop
                lambda _: None,
            )
            stack.push_async_callback(bridge.stop)
            bridges.append(bridge)
            await bridge.start()
        clients = [await stack.enter_async_context(Client(*broker.address)) for broker in brokers]
        for client in clients:
            await client.subscribe("#", qos=2)
        await wait_until(lambda: all(bridge.status.state is BridgeState.RUNNING for bridge in bridges), what="running")
        yield World(clients, bridges)


async def test_a_ring_of_three(socket_enabled: None, tmp_path: Path) -> None:
    async with world(tmp_path, 3, RING) as ring:
        for qos in (0, 1, 2):
            for origin in range(3):
                assert await ring.copies(origin, qos) == [1, 1, 1]
        assert ring.looped() == 18  # each copy that is not at home tried to go on, once


async def test_a_ring_in_which_the_bridges_point_anywhere(socket_enabled: None, tmp_path: Path) -> None:
    """One copy more at a broker that can be reached up and then down, too; it ends there."""
    async with world(tmp_path, 3, MIXED) as ring:
        assert [await ring.copies(origin) for origin in range(3)] == [[1, 1, 2], [1, 1, 1], [2, 1, 1]]


async def test_two_homes_that_meet_in_the_cloud(socket_enabled: None, tmp_path: Path) -> None:
    async with world(tmp_path, 3, ((0, 1), (2, 1))) as homes:
        assert [await homes.copies(origin) for origin in range(3)] == [[1, 1, 1]] * 3
        assert homes.looped() == 0
    async with world(tmp_path / "strict", 3, ((0, 1), (2, 1)), LoopGuard(mode=GuardMode.ONE_BRIDGE)) as homes:
        assert [await homes.copies(origin) for origin in range(3)] == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]


async def test_a_chain(socket_enabled: None, tmp_path: Path) -> None:
    async with world(tmp_path, 4, CHAIN, LoopGuard(mode=GuardMode.COUNT, limit=3)) as chain:
        assert [await chain.copies(origin) for origin in (0, 3)] == [[1, 1, 1, 1]] * 2
        assert chain.looped() == 0
    async with world(tmp_path / "short", 4, CHAIN, LoopGuard(mode=GuardMode.COUNT, limit=2)) as chain:
        assert [await chain.copies(origin) for origin in (0, 3)] == [[1, 1, 1, 0], [0, 1, 1, 1]]
