"""Messages cannot go round: each bridge writes into them which way it took them, and stops those that came far enough.

No Local keeps a bridge from hearing its own messages, and knows nothing of a second bridge. So a message carries its
path in a user property (HiveMQ Edge counts hops in one): a letter for each bridge passed, `u` for up, from a local
to a remote broker, and `d` for down. By default it may go up once, then down once, as routes do between the providers
of the internet ("valley-free"): two homes that meet at one broker in the cloud work, and there is no ring of bridges,
whichever way each of them points, in which such a path leads back to where it began and on from there.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from . import codec
from .routes import Direction

PATH_PROPERTY: Final = "quic_bridge_path"
_STEPS: Final = {Direction.TO_REMOTE: b"u", Direction.TO_LOCAL: b"d"}
_UP_AND_DOWN: Final = frozenset({b"u", b"d", b"ud"})


class GuardMode(StrEnum):
    """How far a message may come."""

    ONE_BRIDGE = "one_bridge"
    UP_AND_DOWN = "up_and_down"
    """From a local broker up to a remote one, then down to another local one."""
    COUNT = "count"
    """Any way, over so many bridges: for chains of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopGuard:
    """Which paths a message may take."""

    mode: GuardMode = GuardMode.UP_AND_DOWN
    limit: int = 4
    """Most bridges with COUNT."""

    def allows(self, path: bytes) -> bool:
        """Whether a message may take `path`.

        A path that no bridge like this one wrote is not up and down; its letters count all the same.
        """
        if self.mode is GuardMode.UP_AND_DOWN:
            return path in _UP_AND_DOWN
        return len(path) <= (1 if self.mode is GuardMode.ONE_BRIDGE else self.limit)


class LoopError(Exception):
    """The message has passed so many bridges that this one does not take it any further."""


class PathMarker:
    """Extends the path of the messages of one direction."""

    def __init__(self, guard: LoopGuard, direction: Direction) -> None:
        """Prepare for a direction (not BOTH)."""
        self._guard = guard
        self._step = _STEPS[direction]
        self.first = self._property(self._step)
        """The property for messages that have passed no bridge yet, which all guards allow."""
        self.first_block = bytes((len(self.first),)) + self.first
        """The same with its length, for a message that has no other properties."""

    def take_out(self, properties: bytes) -> tuple[bytes, bytes]:
        """Split a block of sound properties into all others, in their order, and the path.

        Somebody may have put several paths into one message: they count as one.
        """
        return codec.take_user_property(properties, PATH_PROPERTY)

    def extended(self, path: bytes) -> bytes:
        """Return the property for a message that came by `path`. Raises LoopError when it may go no further."""
        if not path:
            return self.first
        longer = path + self._step
        if not self._guard.allows(longer):
            way = longer.decode() if not longer.strip(b"ud") else "which no bridge like this one wrote"
            raise LoopError(f"it has passed other bridges before (path {way[:64]})")
        return self._property(longer)

    @staticmethod
    def _property(path: bytes) -> bytes:
        return codec.user_property(PATH_PROPERTY, path)
