"""What became of the connections lately: what a maintainer wants to see of one that comes and goes."""

from collections import deque
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from .bridge.errors import ErrorCode
from .bridge.status import BridgeStatus, LinkState, Side

MAX_KEPT: Final = 100
"""Changes of state; a connection that comes and goes makes three each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A connection's state has changed."""

    at: datetime
    side: Side
    state: LinkState
    transport: str | None
    error: ErrorCode | None = None
    """Why, if something went wrong."""
    text: str | None = None
    reason_code: int | None = None


class History:
    """Keeps the last changes of both connections."""

    def __init__(self) -> None:
        """Begin with none."""
        self.changes: deque[Change] = deque(maxlen=MAX_KEPT)
        self._last: dict[Side, tuple[LinkState, datetime]] = {}

    def follow(self, status: BridgeStatus) -> None:
        """Note what has changed since the last status."""
        for side in Side:
            link = status.link(side)
            if self._last.get(side) == (link.state, link.since):
                continue
            self._last[side] = link.state, link.since
            error = link.error if link.state in {LinkState.WAITING, LinkState.REFUSED} else None
            self.changes.append(
                Change(
                    at=link.since,
                    side=side,
                    state=link.state,
                    transport=link.transport,
                    error=error.code if error is not None else None,
                    text=error.text if error is not None else None,
                    reason_code=error.reason_code if error is not None else None,
                )
            )
