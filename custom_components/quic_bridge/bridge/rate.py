"""How fast a counter grows."""

from collections import deque


class Rate:
    """Growth per minute over the last so many samples, which are taken at regular intervals.

    A rate over a single interval would be nothing most of the time for what comes now and then.
    """

    def __init__(self, samples: int) -> None:
        """Look back over `samples` intervals at most."""
        self._samples: deque[tuple[float, int]] = deque(maxlen=samples + 1)
        self.per_minute = 0.0

    def sample(self, now: float, count: int) -> None:
        """Take the counter's value at `now` (seconds of any clock that does not go back)."""
        self._samples.append((now, count))
        then, before = self._samples[0]
        self.per_minute = (count - before) / (now - then) * 60 if now > then else 0.0

    def reset(self) -> None:
        """Forget what was: nothing moves any more."""
        self._samples.clear()
        self.per_minute = 0.0
