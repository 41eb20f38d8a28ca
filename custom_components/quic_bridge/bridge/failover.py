"""Which endpoint of a broker to dial: its own over QUIC, further ones over QUIC, or TLS/TCP. No I/O and no clock."""

from typing import Final

from .config import BrokerConfig, FailoverConfig
from .errors import SERVER_ERRORS, TRANSPORT_ERRORS, ErrorCode

PROBES: Final = 3
"""Fewest probes in a row that must succeed before the link moves."""
_PROBES_PER_HOLD_DOWN: Final = 4
_BAD_PROBES_PER_STAY: Final = 10
"""A probe that is likely to fail costs little, but for ever: the longer it has been bad, the rarer it is tried."""
_FLAPPING: Final = 5.0
"""Lost again within so many hold-downs, an endpoint is flapping: it is to be good for most of the time."""


class Failover:
    """Chooses among the endpoints of one broker, and learns from what became of each attempt and session.

    Endpoints are known by their index, in order of preference: 0 is the broker's own, then come the further ones, the
    fallback is the last. `now` is any clock in seconds that does not go back.
    """

    def __init__(self, config: FailoverConfig) -> None:
        """Begin at the preferred endpoint."""
        self._config = config
        self._servers = 1 + len(config.further)
        self._fallback = None if config.fallback is None else self._servers
        self.index = 0
        """The endpoint to dial next, or in use."""
        self.hold_down = config.hold_down
        self._failures = 0
        self._failing_since = 0.0
        self._fresh = True
        """At the start nothing is known for or against QUIC, so one failure is enough for a try elsewhere."""
        self._carried: int | None = None
        """The endpoint of the last session."""
        self._since = 0.0
        """When the first of the sessions there began."""
        self._proven = False
        """Whether the fallback has carried a session since QUIC was given up."""
        self._refuge: int | None = None
        """Where to be back at once, if the endpoint that we moved to is not good after all."""
        self._returned_at: float | None = None
        """When we moved to a better endpoint; None once that was judged."""
        self._probes_good = 0
        self._good: int | None = None
        self._good_since = 0.0

    @property
    def has_choice(self) -> bool:
        """Whether there is more than one endpoint."""
        return self._servers > 1 or self._fallback is not None

    @property
    def probes_good(self) -> int:
        """How many probes in a row have found the same better endpoint."""
        return self._probes_good

    def endpoint(self, index: int, broker: BrokerConfig) -> BrokerConfig:
        """Return how the broker is reached at an endpoint."""
        return self._config.endpoints(broker)[index]

    # --- attempts and sessions ----------------------------------------------------------------------------------------

    def connected(self, now: float) -> None:
        """Note that a session began at the present endpoint."""
        self._fresh = False
        if self.index == self._fallback:
            self._proven = True
        if self.index == self._carried:
            return
        if self._carried is not None and self.index < self._carried and self._returned_at is None:
            self._returned_at = now
        self._carried, self._since = self.index, now

    def ended(
        self, code: ErrorCode, now: float, *, began: float, connected_for: float = 0.0, asked: bool = True
    ) -> None:
        """Note why an attempt that `began` then failed, or its session ended after `connected_for` seconds.

        `asked`: MQTT's CONNECT was sent, so the transport was up.
        """
        if not self.has_choice or code is ErrorCode.RECONNECT_REQUESTED:
            return
        since = now if connected_for else began
        cured_elsewhere = SERVER_ERRORS if self.index == self._fallback else TRANSPORT_ERRORS
        curable = code in cured_elsewhere or (code is ErrorCode.PROTOCOL_ERROR and not asked)
        if connected_for >= self._config.stable:
            self._failures, self._refuge = 0, None
        if self._refuge is not None and (curable or not connected_for):
            self._descend(self._refuge, since)
        elif curable:
            self._count(since)
            self._give_up(now, dialled=not connected_for)
        elif self.index == self._fallback:
            if not self._proven:
                self._go(0)
        elif code not in SERVER_ERRORS:
            self._failures = 0  # the broker spoke, or it is our own fault: QUIC is not to blame
        elif not connected_for:
            self._next_server(since)

    def _count(self, since: float) -> None:
        if not self._failures:
            self._failing_since = since
        self._failures += 1

    def _give_up(self, now: float, *, dialled: bool) -> None:
        """Leave the present endpoint if it is time to."""
        attempts, patience = (1, 0.0) if self._fresh else (self._config.attempts, self._config.patience)
        patience_over = self._failures >= max(attempts, self._servers) and now - self._failing_since >= patience
        if self.index == self._fallback:
            if patience_over or not self._proven:
                self._go(0)
        elif patience_over and self._fallback is not None:
            self._proven = self._fresh = False
            self._descend(self._fallback, self._failing_since)
        elif dialled:
            self._next_server(self._failing_since)

    def _next_server(self, since: float) -> None:
        failures = self._failures
        if self.index + 1 < self._servers:
            self._descend(self.index + 1, since)
        elif self.index:
            self._go(0)
        self._failures = failures  # of QUIC as such, which the fallback may have to stand in for

    def _descend(self, index: int, since: float) -> None:
        """Go to an endpoint that is preferred less, as the present one is bad `since` then."""
        if self._returned_at is not None:
            flapping = since - self._returned_at < _FLAPPING * self.hold_down
            config = self._config
            self.hold_down = min(2 * self.hold_down, config.hold_down_cap) if flapping else config.hold_down
            self._returned_at = None
        self._go(index)

    def _go(self, index: int) -> None:
        self.index = index
        self._failures = 0
        self._refuge = None
        self._good, self._probes_good = None, 0

    def restart(self) -> None:
        """Begin at the preferred endpoint: a person or a changed network says that now is a good time.

        If it is not, the one that worked is taken again at once.
        """
        refuge = self.index if self.index == self._carried else None
        if self.index:
            self._go(0)
            self._refuge = refuge

    # --- the way back -------------------------------------------------------------------------------------------------

    def probe_delay(self, now: float) -> float:
        """Return how long to wait before the better endpoints are looked at again."""
        config = self._config
        if self._probes_good:
            delay = self.hold_down / _PROBES_PER_HOLD_DOWN
        else:
            delay = max(config.probe_interval, (now - self._since) / _BAD_PROBES_PER_STAY)
        return min(delay, config.probe_interval_cap)

    def probed(self, answered: int | None, now: float) -> bool:
        """Note which of the better endpoints answered a probe (None: none); True: the link is to move there now."""
        if answered is None or answered != self._good:
            self._good, self._good_since, self._probes_good = answered, now, 0
        if answered is None:
            return False
        self._probes_good += 1
        if self._probes_good < PROBES or now - self._good_since < self.hold_down:
            return False
        refuge = self.index
        self._go(answered)
        self._refuge, self._returned_at = refuge, now
        return True
