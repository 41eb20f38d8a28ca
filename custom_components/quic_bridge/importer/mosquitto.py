"""The bridges of a mosquitto.conf: its `connection` blocks (mosquitto.conf(5), "Configuring Bridges")."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
import re
from typing import Final

from ..bridge.routes import Direction, RetainMode, Route, same_name
from .model import Address, FileError, FileProblem, ImportedBridge, Note, Reason, distinct, problem_of

_CONNECTION: Final = re.compile(r"^[ \t]*connection[ \t]+[^\s={]", re.MULTILINE)
_DIRECTIONS: Final = {"out": Direction.TO_REMOTE, "in": Direction.TO_LOCAL, "both": Direction.BOTH}
_QOS: Final = frozenset({"0", "1", "2"})
_EMPTY: Final = '""'

_VALUES: Final = {
    "clientid": "client_id",
    "remote_clientid": "client_id",
    "username": "username",
    "remote_username": "username",
    "password": "password",
    "remote_password": "password",
    "local_username": "local_username",
    "local_password": "local_password",
}
_USUAL: Final = {
    "bridge_insecure": ("false", Reason.CERTIFICATE_NAME),
    "bridge_tls_use_os_certs": ("true", Reason.CERTIFICATE_CHECK),
    "cleansession": ("false", Reason.SESSION),
    "round_robin": ("false", Reason.ADDRESSES),
    "start_type": ("automatic", Reason.START),
}
"""Options that are not carried over, with the value that means what the bridge does anyway."""

_REASONS: Final = {
    "bridge_attempt_unsubscribe": Reason.NOT_NEEDED,
    "bridge_bind_address": Reason.NOT_NEEDED,
    "bridge_max_packet_size": Reason.LIMITS,
    "bridge_max_topic_alias": Reason.LIMITS,
    "bridge_protocol_version": Reason.PROTOCOL,
    "bridge_receive_maximum": Reason.LIMITS,
    "bridge_reload_type": Reason.NOT_NEEDED,
    "bridge_session_expiry_interval": Reason.SESSION,
    "bridge_tcp_keepalive": Reason.TIMERS,
    "bridge_tcp_user_timeout": Reason.TIMERS,
    "bridge_alpn": Reason.TLS,
    "bridge_capath": Reason.FILE,
    "bridge_cafile": Reason.FILE,
    "bridge_certfile": Reason.FILE,
    "bridge_keyfile": Reason.FILE,
    "bridge_identity": Reason.TLS,
    "bridge_psk": Reason.TLS,
    "bridge_require_ocsp": Reason.TLS,
    "bridge_tls_version": Reason.TLS,
    "bridge_ciphers": Reason.TLS,
    "bridge_ciphers_tls1.3": Reason.TLS,
    "keepalive_interval": Reason.TIMERS,
    "local_clientid": Reason.NOT_NEEDED,
    "local_cleansession": Reason.SESSION,
    "notification_topic": Reason.PRESENCE,
    "notifications": Reason.PRESENCE,
    "notifications_local_only": Reason.PRESENCE,
    "restart_timeout": Reason.TIMERS,
    "idle_timeout": Reason.START,
    "threshold": Reason.START,
    "try_private": Reason.NOT_NEEDED,
}
"""Options that are not carried over, whatever their value is."""
_SECRET: Final = frozenset({"bridge_psk"})


def recognises(text: str) -> bool:
    """Tell whether a text is a mosquitto.conf with a bridge."""
    return _CONNECTION.search(text) is not None


def read(text: str) -> list[ImportedBridge]:
    """Return the bridges of a mosquitto.conf. Raises FileError."""
    blocks: list[tuple[int, _Block]] = []
    included: list[Note] = []
    number = 0
    try:
        for number, line in enumerate(text.splitlines(), 1):
            key, value = (*line.split(None, 1), "", "")[:2]
            if not key or key.startswith("#"):
                continue
            value = value.strip()
            if key == "connection":
                blocks.append((number, _Block(value)))
            elif key == "include_dir":
                included.append(Note(f"{key} {value}", Reason.INCLUDE))
            elif blocks:
                blocks[-1][1].take(key, value)
        found = []
        for number, block in blocks:  # noqa: B007 - for the message
            found.append(block.bridge(included))
    except ValueError as error:
        raise FileError(FileProblem.UNREADABLE, f"line {number}: {error}") from None
    return found


class _Block:
    """One `connection` and what follows it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._addresses: list[Address] = []
        self._values: dict[str, str] = {}
        self._routes: list[Route] = []
        self._notes: list[Note] = []
        self._outgoing_retain = True

    def take(self, key: str, value: str) -> None:
        """Take one option. Raises ValueError."""
        what = f"{key} {value}".strip()
        match key:
            case "address" | "addresses":
                self._addresses += [_address(text) for text in value.split()]
            case "topic":
                self._topic(value, what)
            case _ if (name := _VALUES.get(key)) is not None:
                self._values[name] = value
            case "bridge_outgoing_retain":
                self._outgoing_retain = _boolean(value)
            case _ if (usual := _USUAL.get(key)) is not None:
                if value != usual[0]:
                    self._notes.append(Note(what, usual[1]))
            case _:
                self._notes.append(Note(key if key in _SECRET else what, _REASONS.get(key, Reason.UNKNOWN)))

    def _topic(self, value: str, what: str) -> None:
        """Take `pattern [[[out|in|both] qos] local-prefix remote-prefix]`."""
        words = ["" if word == _EMPTY else word for word in value.split()]
        pattern, direction, qos, here, there = (*words, *("", "out", "0", "", "")[len(words) :])[:5]
        if not words or direction not in _DIRECTIONS or qos not in _QOS:
            raise ValueError(value)
        local, remote = here + pattern, there + pattern
        way = _DIRECTIONS[direction]
        source, target = (remote, local) if way is Direction.TO_LOCAL else (local, remote)
        route = Route(
            id=f"line {len(self._routes)}",
            direction=way,
            topic_filter=source,
            target="" if source == target else same_name(target),
            max_qos=int(qos),
        )
        problem = problem_of(route, here, there) if local and remote else Reason.ROUTE_INVALID
        if problem is not None:
            self._notes.append(Note(what, problem))
            return
        self._routes.append(route)
        if not route.max_qos:
            self._notes.append(Note(what, Reason.QOS_0))

    def bridge(self, included: Iterable[Note]) -> ImportedBridge:
        """Return what was taken. Raises ValueError."""
        if not self._addresses:
            raise ValueError("no address")
        values, notes = self._values, self._notes
        return ImportedBridge(
            name=self._name,
            addresses=tuple(self._addresses),
            client_id=values.get("client_id"),
            username=values.get("username"),
            password=values.get("password"),
            wants_files=any(note.why is Reason.FILE for note in notes),
            local_username=values.get("local_username"),
            local_password=values.get("local_password"),
            routes=tuple(self._routes if self._outgoing_retain else self._without_retain()),
            notes=distinct(
                (
                    Note(f"address {self._addresses[0]}", Reason.TCP),
                    *(Note(f"address {address}", Reason.ADDRESSES) for address in self._addresses[1:]),
                    *notes,
                    *included,
                )
            ),
        )

    def _without_retain(self) -> Iterator[Route]:
        """Return the routes with the retain flag off on the way out, and only there."""
        for route in self._routes:
            if route.direction is Direction.TO_LOCAL:
                yield route
                continue
            yield replace(route, direction=Direction.TO_REMOTE, retain=RetainMode.NEVER)
            if route.direction is Direction.BOTH and (back := route.way(Direction.TO_LOCAL)) is not None:
                target = "" if same_name(back.topic_filter) == back.target else back.target
                yield replace(route, direction=Direction.TO_LOCAL, topic_filter=back.topic_filter, target=target)


def _address(text: str) -> Address:
    """Read `host` or `host:port`; an IPv6 address always has a port. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon:
        return Address(host=text)
    if not host or not 0 < int(port) < 65_536:
        raise ValueError(text)
    return Address(host=host.strip("[]"), port=int(port))


def _boolean(value: str) -> bool:
    if value not in {"true", "false"}:
        raise ValueError(value)
    return value == "true"
