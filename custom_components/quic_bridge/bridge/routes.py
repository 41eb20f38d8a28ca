"""Which topics go where. Knows nothing of connections."""

from dataclasses import dataclass
from enum import StrEnum


class Direction(StrEnum):
    """Which way a route carries messages."""

    TO_REMOTE = "to_remote"
    TO_LOCAL = "to_local"
    BOTH = "both"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One rule: messages that match `topic_filter` cross in `direction`, under the same topic."""

    id: str
    """Stable name of the route (the config subentry's id)."""
    direction: Direction
    topic_filter: str
    max_qos: int = 2
