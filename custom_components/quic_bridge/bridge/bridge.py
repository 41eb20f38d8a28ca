"""The bridge: two links, a forwarder for each direction, and one snapshot of it all."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
import logging
from pathlib import Path
from typing import Final

from .config import BridgeConfig, BrokerConfig, FailoverConfig, PresenceConfig
from .forwarder import Forwarder
from .link import Link
from .presence import Presence
from .publisher import Publication, Publisher, Receipt
from .rate import Rate, Share
from .routes import Direction, Route, Router, subscriptions
from .status import BridgeState, BridgeStatus, DropReason, LinkState, Side, TransportStatus
from .transport import QuicResources
from .transport.quic_logs import remove_logs

_LOGGER = logging.getLogger(__name__)

_COUNTER_INTERVAL: Final = 5.0
"""Seconds between two looks at the counters; only what changed is pushed."""
_RATE_SAMPLES: Final = 12
"""Of these intervals a rate is the mean: a minute."""

_DROP_LEVELS: Final = {DropReason.DISCONNECTED: logging.DEBUG, DropReason.LOOP: logging.INFO}
"""How loudly the first drop of a kind is told of, where it is nothing to worry about by itself."""


class Bridge:
    """Carries messages between the local and the remote broker, from `start` until `stop`.

    `local` is asked for the local broker before each attempt to connect it and may raise BridgeError.
    `on_status` is called in the event loop: at once when a state changes, every few seconds when counters did.
    """

    def __init__(
        self, config: BridgeConfig, local: Callable[[], BrokerConfig], on_status: Callable[[BridgeStatus], None]
    ) -> None:
        """Prepare a bridge; call it in the event loop."""
        self._on_status = on_status
        self._routes = config.routes
        self._presence_config = config.presence
        self._running = False
        self._since = datetime.now(UTC)
        self._state = BridgeState.STOPPED
        self._published: BridgeStatus | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rates = {direction: Rate(_RATE_SAMPLES) for direction in (Direction.TO_REMOTE, Direction.TO_LOCAL)}
        self._loss = Share(_RATE_SAMPLES)
        self._drops_seen: set[tuple[Direction, DropReason]] = set()
        self._outbound, self._inbound = (
            Forwarder(
                direction,
                self._router(direction),
                partial(self._dropped, direction),
                config.guard,
                self._changed,
                config.outbox if direction is Direction.TO_REMOTE else None,
            )
            for direction in (Direction.TO_REMOTE, Direction.TO_LOCAL)
        )
        presence = config.presence
        self._local_presence = Presence(presence, Side.LOCAL) if presence is not None else None
        self._remote_presence = Presence(presence, Side.REMOTE) if presence is not None else None
        self._publisher = Publisher(self._outbound.sender)
        self._quic = QuicResources.of(config)
        self._local = Link(
            Side.LOCAL,
            local,
            config.local_backoff or config.backoff,
            FailoverConfig(),
            publishes=self._outbound.receiver,
            acks=self._inbound.sender,
            subscriptions=lambda refused: subscriptions(self._routes, Direction.TO_REMOTE, refused),
            changed=self._changed,
            presence=self._local_presence,
        )
        self._remote = Link(
            Side.REMOTE,
            lambda: config.remote,
            config.backoff,
            config.failover,
            publishes=self._inbound.receiver,
            acks=self._publisher,
            subscriptions=lambda refused: subscriptions(self._routes, Direction.TO_LOCAL, refused),
            changed=self._changed,
            resources=self._quic,
            presence=self._remote_presence,
        )

    @property
    def status(self) -> BridgeStatus:
        """The present state as a snapshot."""
        return BridgeStatus(
            state=self._state,
            since=self._since,
            local=self._local.status,
            remote=replace(self._remote.status, packet_loss=self._loss.percent),
            outbound=replace(self._outbound.status, rate=self._rates[Direction.TO_REMOTE].per_minute),
            inbound=replace(self._inbound.status, rate=self._rates[Direction.TO_LOCAL].per_minute),
            outbox=self._outbound.outbox_status,
        )

    async def start(self) -> None:
        """Begin to connect both sides; returns promptly, whether or not they can be reached."""
        if self._running:
            return
        self._running = True
        await self._outbound.start()
        self._local.start()
        self._remote.start()
        self._count()

    async def stop(self) -> None:
        """Log out of both brokers and release everything, within about 5 s; safe to call again and at any time."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for rate in self._rates.values():
            rate.reset()
        self._loss.sample(None, None)
        # The local side first: what it still gets acknowledged was accepted by the remote.
        await asyncio.gather(self._local.stop(), self._remote.stop())
        await self._inbound.stop()
        await self._outbound.stop()
        await self._quic.close()

    async def apply_routes(self, routes: tuple[Route, ...]) -> None:
        """Follow other routes without dropping a connection: only the subscriptions that differ change."""
        self._routes = routes
        self._outbound.reroute(self._router(Direction.TO_REMOTE))
        self._inbound.reroute(self._router(Direction.TO_LOCAL))
        await asyncio.gather(self._local.resubscribe(), self._remote.resubscribe())

    def _router(self, direction: Direction) -> Router:
        presence = self._presence_config
        if presence is None:
            return Router(self._routes, direction)
        ours = presence.local_topic, presence.remote_topic
        return Router(self._routes, direction, ours if direction is Direction.TO_REMOTE else ours[::-1])

    def retire_presence(self, other: PresenceConfig | None) -> None:
        """Prepare for a bridge with another status topic, or none: `stop` takes this one's away."""
        for presence, topic in (
            (self._local_presence, other.local_topic if other is not None else None),
            (self._remote_presence, other.remote_topic if other is not None else None),
        ):
            if presence is not None and presence.topic != topic:
                presence.retire()

    async def leave_empty(self, side: Side) -> bool:
        """Take all that waits in a broker's session, within 4 s, and let nothing more in: it is not come back to.

        Returns whether that was possible. Only for a bridge that is stopped next.
        """
        direction = self._outbound if side is Side.LOCAL else self._inbound
        return await self._link(side).leave_empty(lambda: direction.receiver.owing)

    def subscribed(self, side: Side) -> list[str]:
        """Return the topic filters that a broker's session with us has, as far as is known."""
        return self._link(side).subscribed

    def remember_subscriptions(self, side: Side, filters: Iterable[str]) -> None:
        """Hear, before the start, what an earlier bridge had subscribed in a session that the broker may still have."""
        self._link(side).remember_subscriptions(filters)

    def _link(self, side: Side) -> Link:
        return self._local if side is Side.LOCAL else self._remote

    def reconnect(self, side: Side | None = None) -> None:
        """Connect one side (or both) anew at once; a wait for the next attempt is cut short."""
        for link in (self._local, self._remote):
            if side in {None, link.side}:
                link.reconnect()

    async def publish(self, message: Publication) -> Receipt:
        """Publish a message of our own to the remote broker and wait until it has it; never kept. PublishError."""
        return await self._publisher.publish(message)

    # --- status -------------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        if self._local_presence is not None and self._remote_presence is not None:
            self._local_presence.cross(self._remote.connected)
            self._remote_presence.cross(self._local.connected)
        state = _overall(self._local.outlook, self._remote.outlook)
        if state is not self._state:
            self._state = state
            self._since = datetime.now(UTC)
        self._push(self.status)

    def _count(self) -> None:
        """Take the rates, and look again in a while."""
        loop = asyncio.get_running_loop()
        self._rates[Direction.TO_REMOTE].sample(loop.time(), self._outbound.status.forwarded)
        self._rates[Direction.TO_LOCAL].sample(loop.time(), self._inbound.status.forwarded)
        link = self._remote.status
        details = link.details if link.state is LinkState.CONNECTED else TransportStatus()
        self._loss.sample(details.packets_lost, details.packets_sent)
        self._timer = loop.call_later(_COUNTER_INTERVAL, self._push_counters)

    def _push_counters(self) -> None:
        self._count()
        status = self.status
        if status != self._published:
            self._push(status)

    def _push(self, status: BridgeStatus) -> None:
        self._published = status
        self._on_status(status)

    def _dropped(self, direction: Direction, reason: DropReason, detail: str) -> None:
        """Report the first drop of its kind loudly, the rest at debug; the counters have them all."""
        key = (direction, reason)
        level = _DROP_LEVELS.get(reason, logging.WARNING) if key not in self._drops_seen else logging.DEBUG
        self._drops_seen.add(key)
        _LOGGER.log(level, "Dropped a message (%s): %s, %s", direction, reason, detail)


def _overall(local: LinkState, remote: LinkState) -> BridgeState:
    """Sum up both sides."""
    states = {local, remote}
    if states == {LinkState.STOPPED}:
        return BridgeState.STOPPED
    if LinkState.REFUSED in states:
        return BridgeState.REFUSED
    if states == {LinkState.CONNECTED}:
        return BridgeState.RUNNING
    if LinkState.WAITING not in states:
        return BridgeState.CONNECTING
    if local is LinkState.CONNECTED:
        return BridgeState.REMOTE_DOWN
    if remote is LinkState.CONNECTED:
        return BridgeState.LOCAL_DOWN
    return BridgeState.DOWN


async def remove_files(tickets: Path, quic_logs: Path) -> None:
    """Delete what a bridge that is removed has on disk besides its Outbox: session tickets and logs. Raises OSError."""
    await asyncio.to_thread(tickets.unlink, missing_ok=True)
    await asyncio.to_thread(remove_logs, quic_logs)
