"""How fast counters grow."""

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


class Share:
    """How much of the growth of one counter another one is, over the last so many samples."""

    def __init__(self, samples: int) -> None:
        """Look back over `samples` intervals at most."""
        self._samples: deque[tuple[int, int]] = deque(maxlen=samples + 1)
        self.percent: float | None = None
        """None while the whole has not grown."""

    def sample(self, part: int | None, whole: int | None) -> None:
        """Take both counters; they may begin anew, or not be there."""
        if part is None or whole is None:
            self._samples.clear()
            self.percent = None
            return
        if self._samples and whole < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((part, whole))
        part_then, whole_then = self._samples[0]
        grown = whole - whole_then
        self.percent = (part - part_then) / grown * 100 if grown else None
