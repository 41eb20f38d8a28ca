"""When to try again."""

import random

from .config import BackoffConfig
from .errors import REFUSED_ERRORS, ErrorCode

SLOW_ERRORS = REFUSED_ERRORS | {ErrorCode.SESSION_TAKEN_OVER, ErrorCode.KICKED}
"""Where trying again soon makes things worse: a storm of refusals, or two clients that throw each other out."""

_SHARE_OF_OUTAGE = 15.0


class Backoff:
    """Decorrelated jitter: each wait is random between the base and three times the last one, up to the cap.

    As mosquitto's bridge does it (bridge.c, `restart_timeout base cap stable`): the growth is forgotten only after
    a connection that lasted for `stable` seconds, so a flapping link does not hammer the broker. Besides, no wait is
    much longer than a fifteenth of the outage so far: a broker that was away for half a minute is found within two
    seconds of its return, one that was away for hours within half a minute.
    """

    def __init__(self, config: BackoffConfig, rng: random.Random | None = None) -> None:
        """Begin with the shortest wait."""
        self._config = config
        self._random = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._last = 0.0
        self._waited = 0.0
        self._slow = False

    def next(self, error: ErrorCode, connected_for: float, *, elsewhere: bool = False) -> float:
        """Seconds to wait after `error`, which ended a session of `connected_for` seconds (0: never connected).

        `elsewhere`: the next attempt is made at another endpoint, which has not refused anything yet.
        """
        slow = error in SLOW_ERRORS and not elsewhere
        config = self._config
        base, cap = (config.refused_base, config.refused_cap) if slow else (config.base, config.cap)
        if slow != self._slow or connected_for >= config.stable or not self._last:
            self._slow = slow
            self._last = base
            self._waited = 0.0
            # The first wait is already spread: many bridges lose the same broker at the same moment.
            return self._random.uniform(base / 2, base)
        if not slow:
            cap = min(cap, max(2 * base, self._waited / _SHARE_OF_OUTAGE))
        self._last = min(cap, self._random.uniform(base, self._last * 3))
        self._waited += self._last
        return self._last

    def reset(self) -> None:
        """Forget the growth: a person or a changed network says that now is a good time."""
        self._last = 0.0
