"""Whether a broker still answers, over lines of any speed.

A PINGREQ goes each keepalive, whatever the traffic: EMQX counts only what it hears (nanomq#1958). An answer is due some
seconds after the question has arrived. On a slow line that may take minutes, as all that was written before goes first;
but then the other host acknowledges more and more of it (TCP and QUIC do, whatever the broker does with it), and one
that died acknowledges nothing.
"""

import asyncio
from collections.abc import Callable
import math
from typing import Final, Protocol

from . import codec
from .errors import BridgeError, ErrorCode

_LOOK_INTERVAL: Final = 1.0
"""Seconds between looks at the line while an answer is due; a quarter of the time for it, if that is less."""

_SUSPECT: Final = 0.25
"""Of the Keep Alive: a PINGREQ was under way at least so long when the broker ends the session for want of packets."""
_MAX_KEEP_ALIVE: Final = 65_535


class Line(Protocol):
    """What is looked at of a transport."""

    @property
    def written(self) -> int:
        """Bytes that were written since the connection began."""

    @property
    def acknowledged(self) -> int:
        """How many of them the other host has acknowledged."""

    def write(self, data: bytes) -> None:
        """Queue bytes."""


class Patience:
    """A deadline for the answer to what was written last, begun anew while the line takes what is ahead of it."""

    def __init__(self, line: Line, seconds: float, now: float) -> None:
        """Begin to wait; `seconds` are for the answer alone."""
        self.began = now
        self._line = line
        self._seconds = seconds
        self._position = line.written
        self._start = self._acknowledged = line.acknowledged
        self._moved_at = self._looked_at = now

    @property
    def arrived(self) -> bool:
        """Whether the other host has the question, as of the last look."""
        return self._acknowledged >= self._position

    @property
    def waited(self) -> float:
        """Seconds for which the question was under way, as of the last look."""
        return self._looked_at - self.began

    @property
    def estimate(self) -> float:
        """Seconds in which the question arrives at the pace so far; infinite if nothing moves."""
        moved = self._acknowledged - self._start
        return self.waited * (self._position - self._start) / moved if moved else math.inf

    def look(self, now: float, heard_at: float = 0.0) -> float:
        """Return how many seconds to wait before the next look; 0: no more. What was heard counts as moving, too."""
        self._looked_at = now
        if not self.arrived and (acknowledged := self._line.acknowledged) > self._acknowledged:
            self._acknowledged = acknowledged
            self._moved_at = now
        self._moved_at = max(self._moved_at, heard_at)
        rest = self._moved_at + self._seconds - now
        return max(0.0, min(rest, _LOOK_INTERVAL, self._seconds / 4))


class Keepalive:
    """Asks a broker for signs of life, and waits for its answers."""

    def __init__(self, line: Line, timeout: float, dead: Callable[[BridgeError], None]) -> None:
        """Prepare; `timeout` seconds are for each answer, `dead` hears when there is none."""
        self._line = line
        self._timeout = timeout
        self._dead = dead
        self._loop = asyncio.get_running_loop()
        self._interval = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._patience: Patience | None = None
        self._heard_at = 0.0
        self._asked = 0
        self._answered = 0
        self.reading_paused = False
        """We do not read on purpose, so silence says nothing: it is enough that the other host has our PINGREQ."""

    def start(self, interval: float) -> None:
        """Send a PINGREQ each so many seconds; 0: never."""
        self._interval = interval
        if interval:
            self._timer = self._loop.call_later(interval, self._ask)

    def stop(self) -> None:
        """Release the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def heard(self) -> None:
        """Note that something came from the broker."""
        self._heard_at = self._loop.time()

    def answered(self) -> None:
        """Note a PINGRESP."""
        self._answered += 1

    def ping(self) -> int:
        """Send a PINGREQ; returns its number."""
        self._line.write(codec.PINGREQ_PACKET)
        self._asked += 1
        return self._asked

    def wanted(self, keep_alive: int) -> int:
        """Return the Keep Alive that would have let our last PINGREQ arrive in time; 0: the broker's `keep_alive` did.

        Brokers like EMQX count whole packets: they hear nothing while a large message is under way, and give up on us
        after one and a half times the Keep Alive that they were told (MQTT 5, 3.1.2.10).
        """
        patience = self._patience
        if not keep_alive or patience is None or patience.arrived or patience.waited < _SUSPECT * keep_alive:
            return 0
        # The last packet before was our PINGREQ before.
        needed = self._interval + patience.estimate
        return min(math.ceil(needed), _MAX_KEEP_ALIVE) if keep_alive < needed < math.inf else 0

    async def answer[T](self, future: asyncio.Future[T], seconds: float) -> T:
        """Wait for the answer to what was written last. Raises TimeoutError.

        It may also be behind much that the broker sends, so what comes counts as life; but only until a PINGREQ that
        was sent after the question is answered, or a broker that always sends might keep us waiting for ever.
        """
        patience = Patience(self._line, seconds, self._loop.time())
        ping: int | None = None
        while not future.done():
            now = self._loop.time()
            passed_over = ping is not None and self._answered >= ping
            wait = patience.look(now, 0.0 if passed_over else self._heard_at)
            if not wait:
                raise TimeoutError
            if ping is None and now >= patience.began + seconds:
                ping = self.ping()
            await asyncio.wait((future,), timeout=wait)
        return future.result()

    def _ask(self) -> None:
        self.ping()
        now = self._loop.time()
        self._patience = patience = Patience(self._line, min(self._timeout, self._interval), now)
        self._timer = self._loop.call_later(patience.look(now), self._look, patience)

    def _look(self, patience: Patience) -> None:
        now = self._loop.time()
        wait = patience.look(now, self._heard_at)
        if patience.arrived and (self._heard_at >= patience.began or self.reading_paused):
            rest = max(0.0, patience.began + self._interval - now)
            self._timer = self._loop.call_later(rest, self._ask)
        elif wait:
            self._timer = self._loop.call_later(wait, self._look, patience)
        else:
            unheard = "" if patience.arrived else ", which did not arrive"
            self._dead(
                BridgeError(
                    ErrorCode.PING_TIMEOUT,
                    f"no answer to PINGREQ{unheard}; nothing received for {now - self._heard_at:.0f} s",
                )
            )
