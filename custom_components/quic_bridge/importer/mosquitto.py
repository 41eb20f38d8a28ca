"""The bridges of a mosquitto.conf: its `connection` blocks (mosquitto.conf(5), "Configuring Bridges")."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
import re
from typing import Final

from ..bridge.routes import Direction, RetainMode, Route, same_name
from ..const import (
    CONF_ANNOUNCE,
    CONF_BACKOFF_BASE,
    CONF_BACKOFF_CAP,
    CONF_BACKOFF_STABLE,
    CONF_KEEPALIVE,
    CONF_PAYLOAD_OFFLINE,
    CONF_PAYLOAD_ONLINE,
    CONF_SESSION_EXPIRY,
    CONF_STATUS_TOPIC,
    PAGE_CONNECTION,
    PAGE_PRESENCE,
)
from ..options import valid_status_topic
from .addresses import arrange
from .model import (
    Address,
    Carrier,
    FileError,
    FileProblem,
    ImportedBridge,
    Note,
    Reason,
    distinct,
    is_secret,
    problem_of,
)
from .settings import Settings

_MOSQUITTO: Final = re.compile(
    r"^[ \t]*(connection|listener|include_dir|allow_anonymous|per_listener_settings|persistence|password_file|pid_file)"
    r"[ \t]+[^\s={]",
    re.MULTILINE,
)
"""A bridge, or what many a file has that has none."""
_WORD: Final = re.compile(r'"[^"]*"|\S+')
_DEFAULT_PORT: Final = 1883
"""With TLS, too."""
_DIRECTIONS: Final = {"out": Direction.TO_REMOTE, "in": Direction.TO_LOCAL, "both": Direction.BOTH}
_BOOLEANS: Final = {"0": "false", "1": "true"}

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
    "bridge_require_ocsp": ("false", Reason.REVOCATION),
    "cleansession": ("false", Reason.SESSION),
    "local_cleansession": ("false", Reason.SESSION),
    "round_robin": ("false", Reason.ROUND_ROBIN),
    "start_type": ("automatic", Reason.START),
}
"""Options that are not carried over, with the value that means what the bridge does anyway."""

_REASONS: Final = {
    "bridge_attempt_unsubscribe": Reason.NOT_NEEDED,
    "bridge_bind_address": Reason.INTERFACE,
    "bridge_max_packet_size": Reason.LIMITS,
    "bridge_max_topic_alias": Reason.NOT_NEEDED,
    "bridge_protocol_version": Reason.PROTOCOL,
    "bridge_receive_maximum": Reason.RECEIVE_MAXIMUM,
    "bridge_reload_type": Reason.NOT_NEEDED,
    "bridge_tcp_keepalive": Reason.TIMERS,
    "bridge_tcp_user_timeout": Reason.TIMERS,
    "bridge_alpn": Reason.TLS,
    "bridge_capath": Reason.FILE,
    "bridge_cafile": Reason.FILE,
    "bridge_certfile": Reason.FILE,
    "bridge_keyfile": Reason.FILE,
    "bridge_identity": Reason.TLS,
    "bridge_psk": Reason.TLS,
    "bridge_tls_version": Reason.TLS,
    "bridge_ciphers": Reason.TLS,
    "bridge_ciphers_tls1.3": Reason.TLS,
    "local_clientid": Reason.NOT_NEEDED,
    "notifications_local_only": Reason.PRESENCE,
    "idle_timeout": Reason.START,
    "threshold": Reason.START,
    "try_private": Reason.NOT_NEEDED,
}
"""Options that are not carried over, whatever their value is."""
_WITH_TLS: Final = frozenset({"bridge_cafile", "bridge_capath"})
_HOUR: Final = 3600


def recognises(text: str) -> bool:
    """Tell whether a text is a mosquitto.conf."""
    return _MOSQUITTO.search(text) is not None


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
                blocks.append((number, _Block(_first_word(value))))
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
        self._carrier = Carrier.TCP
        self._values: dict[str, str] = {}
        self._routes: list[Route] = []
        self._settings = Settings()
        self._notes: list[Note] = []
        self._outgoing_retain = True

    def take(self, key: str, value: str) -> None:
        """Take one option. Raises ValueError."""
        what = f"{key} {value}".strip()
        match key:
            case "address" | "addresses":
                self._addresses += [_address(text) for text in _words(value)]
            case "topic":
                self._topic(value, what)
            case _ if (name := _VALUES.get(key)) is not None:
                self._values[name] = value
            case "bridge_outgoing_retain":
                self._outgoing_retain = _boolean(value)
            case "bridge_tls_use_os_certs":
                if _boolean(value):
                    self._carrier = Carrier.TLS
            case "keepalive_interval":
                self._settings.number(PAGE_CONNECTION, CONF_KEEPALIVE, _integer(value), what)
            case "restart_timeout":
                self._restart_timeout(value, what)
            case "bridge_session_expiry_interval":
                self._session_expiry(value, what)
            case "notifications" | "notification_topic":
                self._notification(key, value, what)
            case _:
                self._rest(key, value, what)

    def _rest(self, key: str, value: str, what: str) -> None:
        """Note an option that has no part in the bridge."""
        if key in _WITH_TLS:
            self._carrier = Carrier.TLS
        if (usual := _USUAL.get(key)) is None:
            self._notes.append(Note(key if is_secret(key) else what, _REASONS.get(key, Reason.UNKNOWN)))
        elif _plain(value) != usual[0]:
            self._notes.append(Note(what, usual[1]))

    # --- settings -----------------------------------------------------------------------------------------------------

    def _restart_timeout(self, value: str, what: str) -> None:
        """Take `base cap [stable]`, or a constant."""
        base, cap, stable = (*map(_integer, _words(value)), None, None, None)[:3]
        if base is None:
            raise ValueError(what)
        self._settings.number(PAGE_CONNECTION, CONF_BACKOFF_BASE, base, what)
        self._settings.number(PAGE_CONNECTION, CONF_BACKOFF_CAP, base if cap is None else cap, what)
        if stable is not None:
            self._settings.number(PAGE_CONNECTION, CONF_BACKOFF_STABLE, stable, what)

    def _session_expiry(self, value: str, what: str) -> None:
        if seconds := _integer(value):
            self._settings.number(PAGE_CONNECTION, CONF_SESSION_EXPIRY, seconds / _HOUR, what)
        else:
            self._notes.append(Note(what, Reason.SESSION))

    def _notification(self, key: str, value: str, what: str) -> None:
        """Take where, and whether, the state is published, with the messages that mosquitto has for it."""
        if key == "notification_topic" and valid_status_topic(value):
            for option, text in (
                (CONF_STATUS_TOPIC, value),
                (CONF_PAYLOAD_ONLINE, "1"),
                (CONF_PAYLOAD_OFFLINE, "0"),
            ):
                self._settings.value(PAGE_PRESENCE, option, text, what)
        elif key == "notifications" and not _boolean(value):
            self._settings.value(PAGE_PRESENCE, CONF_ANNOUNCE, False, what)
        else:
            self._notes.append(Note(what, Reason.PRESENCE))

    # --- topics -------------------------------------------------------------------------------------------------------

    def _topic(self, value: str, what: str) -> None:
        """Take `pattern [[[out|in|both] qos] local-prefix remote-prefix]`."""
        words = [word.strip('"') for word in _words(value)]
        pattern, direction, qos, here, there = (*words, *("", "out", "0", "", "")[len(words) :])[:5]
        # mosquitto reads a quality of service with atoi(): for "topic # in prefix/" it is 0, and the prefix is none.
        level = int(qos[: len(qos) - len(qos.lstrip("0123456789"))][:5] or 0)
        if not words or (way := _DIRECTIONS.get(direction.lower())) is None or level > 2:
            raise ValueError(value)
        local, remote = here + pattern, there + pattern
        source, target = (remote, local) if way is Direction.TO_LOCAL else (local, remote)
        route = Route(
            id=f"line {len(self._routes)}",
            direction=way,
            topic_filter=source,
            target="" if source == target else same_name(target),
            max_qos=level,
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
        values = self._values
        addresses = self._addresses
        if self._carrier is Carrier.TLS:
            addresses = [replace(item, carrier=Carrier.TLS, port=item.port or _DEFAULT_PORT) for item in addresses]
        endpoints, remarks = arrange(addresses)
        options = self._settings.pages()
        return ImportedBridge(
            name=self._name,
            endpoints=endpoints,
            client_id=values.get("client_id"),
            username=values.get("username"),
            password=values.get("password"),
            wants_files=any(note.why is Reason.FILE for note in self._notes),
            local_username=values.get("local_username"),
            local_password=values.get("local_password"),
            routes=tuple(self._routes if self._outgoing_retain else self._without_retain()),
            options=options,
            notes=distinct(
                (
                    *(Note(f"address {address}", why) for address, why in remarks),
                    *self._settings.notes,
                    *self._notes,
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
                yield replace(route, direction=Direction.TO_LOCAL, topic_filter=back.topic_filter, target=back.target)


def _words(value: str) -> list[str]:
    """Return the words of a value; those in quotes are one, and a comment may follow the first."""
    words = _WORD.findall(value)
    end = next((number for number, word in enumerate(words) if number and word.startswith("#")), None)
    return words[:end]


def _address(text: str) -> Address:
    """Read `host` or `host:port`; an IPv6 address always has a port. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon:
        return Address(host=text)
    if not host or not 0 < int(port) < 65_536:
        raise ValueError(text)
    return Address(host=host.strip("[]"), port=int(port))


def _first_word(value: str) -> str:
    """Return the first word of a value; mosquitto does not look at the others, which mostly are a comment."""
    return value.split(None, 1)[0] if value else ""


def _plain(value: str) -> str:
    """Return the first word of a value, `true` or `false` for 1 or 0."""
    word = _first_word(value)
    return _BOOLEANS.get(word, word)


def _integer(value: str) -> int:
    """Read a number of at most 32 bits, perhaps a hexadecimal one. Raises ValueError."""
    word = _first_word(value)
    number = int(word, 16 if word.startswith("0x") else 10)
    if not 0 <= number <= 0xFFFFFFFF:
        raise ValueError(value)
    return number


def _boolean(value: str) -> bool:
    """Read `true`, `false`, 1 or 0. Raises ValueError."""
    if (word := _plain(value)) not in {"true", "false"}:
        raise ValueError(value)
    return word == "true"
