"""What the brokers' own logs say against the brokers, so that the bridge is not blamed for it.

Two things were seen with mosquitto 2.0.11 (src/database.c).

- It forgets that it sent a PUBREL when the connection is lost before it could repeat it in the next one: the state
  `mosq_ms_resend_pubrel` becomes `mosq_ms_publish_qos2`. In the connection after that it sends the QoS 2 PUBLISH again,
  which MQTT forbids (MQTT 5, 4.3.3) and nobody can tell from a new message. 2.0.22 and 2.1.2 do so, too. The soak test
  avoids the occasions as far as it can.
- It sends a message with a lower packet identifier, which is the earlier one, after one with a higher; also after a
  reconnect, one that is new among those that it repeats.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
import re

_LINE = re.compile(
    rb"\d+: (?:(?P<released>Sending PUBREL to )(?P<c1>\S+) \(m(?P<m1>\d+)\)"
    rb"|(?P<completed>Received PUBCOMP from )(?P<c2>\S+) \(Mid: (?P<m2>\d+)"
    rb"|(?P<taken>Sending PUBREC to bridge \()m(?P<m4>\d+), rc0"
    rb"|(?P<passed>Received PUBREL from bridge \()Mid: (?P<m5>\d+)"
    rb"|(?P<connected>Sending CONNACK to )(?P<c6>\S+) \((?P<present>\d), "
    rb"|Sending PUBLISH to (?P<c3>\S+) \(d(?P<dup>\d), q(?P<qos>[12]), r\d, m(?P<m3>\d+), '(?P<topic>[^']*)')"
)
_WRAP = 32_768


@dataclass(slots=True)
class BrokerFaults:
    """Messages by topic."""

    repeated: Counter[str] = field(default_factory=Counter)
    """QoS 2, sent again after their PUBREL."""
    overtaken: Counter[str] = field(default_factory=Counter)
    """Sent after a later one."""

    again: Counter[str] = field(default_factory=Counter)
    """QoS 1, sent to the bridge again after a reconnect, as it must: no fault. But where the bridge has dropped a
    message and its PUBACK got lost, it takes the repeat for another one, which then comes after later ones."""

    def __add__(self, other: BrokerFaults) -> BrokerFaults:
        return BrokerFaults(self.repeated + other.repeated, self.overtaken + other.overtaken, self.again + other.again)

    def __bool__(self) -> bool:
        return bool(self.repeated or self.overtaken)


class BrokerLog:
    """Reads a mosquitto's log as it grows."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self._path = path
        self._read_to = 0
        self._released: set[tuple[bytes, bytes]] = set()
        self._highest: dict[tuple[bytes, bytes], int] = {}
        """By client and topic, of new messages."""
        self._highest_here: dict[tuple[bytes, bytes], int] = {}
        """... since the client connected."""
        self.held: set[int] = set()
        """Identifiers of QoS 2 messages that the bridge has not released yet, as of the last call of `faults`."""

    def faults(self) -> BrokerFaults:
        """What the broker did wrong since the last call."""
        with self._path.open("rb") as log:
            log.seek(self._read_to)
            data = log.read()
        data = data[: data.rfind(b"\n") + 1]
        self._read_to += len(data)
        repeated: set[tuple[bytes, bytes, str]] = set()
        faults = BrokerFaults()
        for line in data.splitlines():
            match = _LINE.match(line)
            if match is None:
                continue
            if match["released"]:
                self._released.add((match["c1"], match["m1"]))
                continue
            if match["completed"]:
                self._released.discard((match["c2"], match["m2"]))
                continue
            if match["taken"]:
                self.held.add(int(match["m4"]))
                continue
            if match["passed"]:
                self.held.discard(int(match["m5"]))
                continue
            if match["connected"]:
                self._connected(match["c6"], session_present=match["present"] != b"0")
                continue
            topic, mid, stream = match["topic"].decode(), int(match["m3"]), (match["c3"], match["topic"])
            if match["qos"] == b"2" and (match["c3"], match["m3"]) in self._released:
                repeated.add((match["c3"], match["m3"], topic))
            elif match["dup"] == b"1":
                faults.again[topic] += match["qos"] == b"1" and match["c3"] == b"bridge"
                if 0 < self._highest_here.get(stream, 0) - mid < _WRAP:
                    faults.overtaken[topic] += 1
            elif 0 < self._highest.get(stream, 0) - mid < _WRAP:
                faults.overtaken[topic] += 1
            else:
                self._highest[stream] = self._highest_here[stream] = mid
        faults.repeated.update(topic for _, _, topic in repeated)
        return faults

    def _connected(self, client: bytes, *, session_present: bool) -> None:
        for stream in [stream for stream in self._highest_here if stream[0] == client]:
            del self._highest_here[stream]
        if client == b"bridge" and not session_present:
            self.held.clear()

    def forget(self) -> None:
        """Empty the log file."""
        self.faults()
        self._path.write_bytes(b"")
        self._read_to = 0
