"""What the source has retained already: when it crosses, and under which name."""

from collections.abc import AsyncIterator

import pytest

from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import BackoffConfig, BridgeConfig, BrokerConfig
from custom_components.quic_bridge.bridge.routes import Direction, RetainedAtConnect, Route
from custom_components.quic_bridge.bridge.status import BridgeState

from ..support.client import Client
from ..support.mosquitto import Mosquitto
from ..support.processes import wait_until


def route(topic_filter: str, target: str = "", retained: str = "once", **more: object) -> Route:
    """Make a route to the remote."""
    return Route(
        id=f"{topic_filter} {target}",
        direction=Direction.TO_REMOTE,
        topic_filter=topic_filter,
        target=target,
        retained=RetainedAtConnect(retained),
        **more,  # type: ignore[arg-type]
    )


LAST = route("last")


class Scene:
    """A bridge whose routes change, and what it brings to a client at the remote broker."""

    def __init__(self, local: Mosquitto, remote: Mosquitto, home: Client, away: Client) -> None:
        self._local = BrokerConfig(host=local.host, port=local.port, client_id="bridge")
        self._remote = BrokerConfig(host=remote.host, port=remote.port, client_id="bridge")
        self._home = home
        self._away = away
        self._rounds = 0
        self.bridge = self._make_bridge()

    def _make_bridge(self, *routes: Route) -> Bridge:
        return Bridge(
            BridgeConfig(remote=self._remote, routes=(*routes, LAST), backoff=BackoffConfig(base=0.01, cap=0.05)),
            lambda: self._local,
            lambda _: None,
        )

    async def start(self, *routes: Route) -> list[str]:
        """Start a bridge anew, as after a restart of the process; returns the topics that cross."""
        await self.bridge.stop()
        self.bridge = self._make_bridge(*routes)
        await self.bridge.start()
        return await self.crossed()

    async def change(self, *routes: Route) -> list[str]:
        """Change the routes of the bridge as it runs."""
        await self.bridge.apply_routes((*routes, LAST))
        return await self.crossed()

    async def reconnect(self) -> list[str]:
        """Connect both sides anew."""
        sessions = self.bridge.status.local.reconnects
        self.bridge.reconnect()
        await wait_until(lambda: self.bridge.status.local.reconnects > sessions, what="reconnected")
        return await self.crossed()

    async def crossed(self) -> list[str]:
        """Return the topics that have crossed since the last time."""
        await wait_until(lambda: self.bridge.status.state is BridgeState.RUNNING, what="running")
        self._rounds += 1
        last = b"%d" % self._rounds
        await self._home.publish("last", last, 1)
        messages = await self._away.wait_for(lambda messages: any(message.payload == last for message in messages))
        topics = sorted(message.topic for message in messages if message.topic != "last")
        self._away.messages.clear()
        return topics


@pytest.fixture
async def scene(local_broker: Mosquitto, remote_broker: Mosquitto) -> AsyncIterator[Scene]:
    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        await away.subscribe("#", qos=1)
        for topic in ("once/a", "once/b", "always/a", "never/a"):
            await home.publish(topic, b"on", 1, retain=True)
        scene = Scene(local_broker, remote_broker, home, away)
        try:
            yield scene
        finally:
            await scene.bridge.stop()


async def test_at_each_start_once_or_never(scene: Scene) -> None:
    routes = route("once/#"), route("always/#", retained="always"), route("never/#", retained="never")
    assert await scene.start(*routes) == ["always/a", "once/a", "once/b"]
    assert await scene.reconnect() == ["always/a"]
    assert await scene.start(*routes) == ["always/a"]
    # A change of something else brings nothing.
    assert await scene.change(*routes, route("other")) == []


async def test_a_changed_route_is_a_new_one(scene: Scene) -> None:
    """Discovery announcements and states would else be missing under their new names until they are published again."""
    private, renamed = route("once/#", exclude=("once/b",)), route("once/#", "new/{1}", exclude=("once/b",))
    assert await scene.start(private, route("never/#", retained="never")) == ["once/a"]
    assert await scene.change(renamed, route("never/#", "new/{1}", retained="never")) == ["new/a"]
    # Neither what it lets pass nor how makes it another route.
    assert await scene.change(route("once/#", "new/{1}", exclude=("once/b",), max_qos=1)) == []
    # Nor a route that goes. One that comes is new, also where its topics are subscribed already.
    assert await scene.change(renamed, route("once/b", "b")) == ["b", "new/a"]
    assert await scene.change(renamed) == []
    assert await scene.reconnect() == []
