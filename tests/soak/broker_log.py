"""What the brokers' own logs say against the brokers.

mosquitto forgets that it sent a PUBREL when it could not write it, and on the next connection it sends the QoS 2 PUBLISH
again, which MQTT forbids (MQTT 5, 4.3.3) and nobody can tell from a new message. Seen with 2.0.11; later versions have
the same lines (`db__message_reconnect_reset_outgoing`). The soak test avoids the occasions, but cannot exclude them.
"""

from collections import Counter
from pathlib import Path
import re

_LINE = re.compile(
    rb"\d+: (?:(?P<released>Sending PUBREL to )(?P<c1>\S+) \(m(?P<m1>\d+)\)"
    rb"|(?P<completed>Received PUBCOMP from )(?P<c2>\S+) \(Mid: (?P<m2>\d+)"
    rb"|Sending PUBLISH to (?P<c3>\S+) \(d\d, q2, r\d, m(?P<m3>\d+), '(?P<topic>[^']*)')"
)


class BrokerLog:
    """Reads a mosquitto's log as it grows, and counts QoS 2 messages that it sent again after their PUBREL."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_to = 0
        self._released: set[tuple[bytes, bytes]] = set()

    def repeated(self) -> Counter[str]:
        """How many messages of each topic were sent again in that way since the last call."""
        with self._path.open("rb") as log:
            log.seek(self._read_to)
            data = log.read()
        data = data[: data.rfind(b"\n") + 1]
        self._read_to += len(data)
        found: set[tuple[bytes, bytes, str]] = set()
        for line in data.splitlines():
            match = _LINE.match(line)
            if match is None:
                continue
            if match["released"]:
                self._released.add((match["c1"], match["m1"]))
            elif match["completed"]:
                self._released.discard((match["c2"], match["m2"]))
            elif (match["c3"], match["m3"]) in self._released:
                found.add((match["c3"], match["m3"], match["topic"].decode()))
        return Counter(topic for _, _, topic in found)

    def forget(self) -> None:
        """Empty the log file."""
        self.repeated()
        self._path.write_bytes(b"")
        self._read_to = 0
