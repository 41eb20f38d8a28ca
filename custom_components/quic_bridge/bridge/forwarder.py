"""One direction of the bridge: every message of the source goes to the target, acknowledged end to end.

A QoS 1 or 2 PUBLISH keeps its packet identifier, and the source hears PUBACK, PUBREC and PUBCOMP only when the
target has said them. The persistent sessions of the two brokers are the durable queue; what is in memory here is
what is under way. So a bridge that dies at any instant loses nothing: the source sends again what was not
acknowledged, and the target recognises the identifiers of QoS 2.

A message comes in at the Receiver, which knows what the source waits for, and goes out by the Sender, which knows
what the target has and has yet to get; the Outbox stands in the Sender's place while the target is away.
"""

from collections.abc import Callable
from dataclasses import replace

from .config import OutboxConfig
from .guard import LoopGuard
from .outbound import OutboundSender
from .receiver import Receiver
from .routes import Direction, Router
from .sender import Sender
from .status import DirectionStatus, DropReason, OutboxStatus


class Forwarder:
    """Carries messages from one broker (the source) to the other (the target)."""

    def __init__(
        self,
        direction: Direction,
        router: Router,
        on_drop: Callable[[DropReason, str], None],
        guard: LoopGuard,
        changed: Callable[[], None],
        outbox: OutboxConfig | None = None,
    ) -> None:
        """Begin with neither broker attached.

        `on_drop` hears of each drop: reason and detail, never a payload. `changed` hears when the Outbox, if there is
        to be one, breaks or mends.
        """
        self.receiver = Receiver(router)
        if outbox is None:
            self.sender = Sender(self.receiver, direction, router, on_drop, guard)
        else:
            self.sender = OutboundSender(self.receiver, direction, router, on_drop, guard, outbox, changed)
        self.receiver.sender = self.sender

    async def start(self) -> None:
        """Open the Outbox, if there is one. Before the first message: it must not pass those that wait in the file."""
        await self.sender.start()

    async def stop(self) -> None:
        """Close the Outbox and cancel what is scheduled; for when both sessions are over."""
        await self.sender.stop()

    def reroute(self, router: Router) -> None:
        """Follow other routes from the next message on; what is under way keeps those it came with."""
        router.succeed(self.receiver.router)
        self.receiver.router = router
        self.sender.reroute(router)

    @property
    def status(self) -> DirectionStatus:
        """Counters since the start."""
        return replace(self.sender.status, copies=self.receiver.copies.left_out)

    @property
    def outbox_status(self) -> OutboxStatus | None:
        """Figures of the Outbox; None: there is none."""
        return self.sender.outbox_status
