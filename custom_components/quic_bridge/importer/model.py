"""What a configuration file of another bridge says, in our terms, and what of it we do not have."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
import re
from typing import Any, override

from ..bridge.routes import Route


class FileProblem(StrEnum):
    """Why a file cannot be used at all. The value is the translation key of the error."""

    UNREADABLE = "import_unreadable"
    TOO_LARGE = "import_too_large"
    NO_BRIDGE = "import_no_bridge"
    OLD_FORMAT = "import_old_format"
    """NanoMQ's lines of `bridge.mqtt.name.key=value`, from before it read HOCON."""
    SUBSTITUTION = "import_substitution"
    """HOCON that takes values from elsewhere, which NanoMQ does not understand either."""


class FileError(Exception):
    """A file cannot be used; `detail` says more (English)."""

    def __init__(self, problem: FileProblem, detail: str = "") -> None:
        """Make the error."""
        super().__init__(f"{problem}: {detail}")
        self.problem = problem
        self.detail = detail


class Reason(StrEnum):
    """Why something is not carried over, or not as it was. The value is a translation key."""

    NOT_NEEDED = "not_needed"
    SWITCHED_OFF = "switched_off"
    """Named in the file, and not in use there."""
    ADJUSTED = "adjusted"
    """Carried over with the nearest value that can be set here, or that goes together with the others."""
    DEFAULT = "default"
    """The other bridge's own default, which says nothing of the network that it is in."""
    TIMERS = "timers"
    LIMITS = "limits"
    RECEIVE_MAXIMUM = "receive_maximum"
    """Carried over it could lose messages: brokers are about that drop what exceeds it."""
    PROTOCOL = "protocol"
    SESSION = "session"
    OUTBOX = "outbox"
    PRESENCE = "presence"
    FILE = "file"
    """The file that it names is not here."""
    CERTIFICATE_CHECK = "certificate_check"
    """The other bridge did not check the broker's certificate; ours does."""
    CERTIFICATE_NAME = "certificate_name"
    REVOCATION = "revocation"
    TLS = "tls"
    TCP = "tcp"
    """The broker was reached over TCP: its QUIC port must be asked for."""
    ADDRESSES = "addresses"
    """Carried over; but the other bridge did not ask for nodes that share their sessions."""
    ADDRESS_LEFT = "address_left"
    """There is no place for it among the endpoints."""
    ROUND_ROBIN = "round_robin"
    INTERFACE = "interface"
    STREAMS = "streams"
    EARLY_DATA = "early_data"
    TRANSPARENT = "transparent"
    START = "start"
    NO_LOCAL = "no_local"
    RETAIN = "retain"
    QOS_LIMIT = "qos_limit"
    """A quality of service that was set is now the highest one."""
    QOS_0 = "qos_0"
    """The file says, or means, that messages cross with QoS 0 and so may get lost."""
    COPIES = "copies"
    """Several rules took the same messages, which made copies."""
    ROUTE_INVALID = "route_invalid"
    ROUTE_SYSTEM = "route_system"
    ROUTE_NAME = "route_name"
    """The new name cannot be made from the topics."""
    ROUTE_MEANT = "route_meant"
    """The other bridge could not do what its rule says; ours does."""
    VARIABLE = "variable"
    INCLUDE = "include"
    OTHER_BRIDGE = "other_bridge"
    """A bridge to something that is no MQTT broker."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Note:
    """Something of the file that is not carried over, or not as it was. Never has a password."""

    what: str
    why: Reason


class Carrier(StrEnum):
    """What an address is reached over."""

    TCP = "tcp"
    TLS = "tls"
    """TLS over TCP, with certificates."""
    QUIC = "quic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a broker is reached."""

    host: str
    port: int | None = None
    """None: the file leaves it to the default, or does not know it."""
    carrier: Carrier = Carrier.TCP

    @override
    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """The addresses of a file as this bridge uses them."""

    main: Address
    """As the file has it: only that over QUIC has the port which it takes."""
    further: tuple[Address, ...] = ()
    """Over QUIC; without a port they are to have that of the main one."""
    fallback: Address | None = None
    """Over TLS; always with a port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedBridge:
    """A bridge as a file describes it."""

    name: str
    endpoints: Endpoints
    client_id: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    wants_files: bool = False
    """It names files with certificates or keys, which must be given."""
    local_username: str | None = None
    local_password: str | None = field(default=None, repr=False)
    enabled: bool = True
    routes: tuple[Route, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Pages of the entry's options, as they are stored."""
    notes: tuple[Note, ...] = ()

    @property
    def quic(self) -> bool:
        """Whether its broker was reached over QUIC."""
        return self.endpoints.main.carrier is Carrier.QUIC


_CAPTURE = re.compile(r"\{\d+\}")


def wildcards(topic: str) -> list[str]:
    """Return the wildcards of a topic filter, in their order."""
    return [level for level in topic.split("/") if level in {"+", "#"}]


def problem_of(route: Route, *literal: str) -> Reason | None:
    """Say why a route cannot be; `literal` are the parts of its target in which a capture would not be meant.

    Nor is one in its filter, which is a part of the target, too.
    """
    if route.target and _CAPTURE.search(route.topic_filter):
        return Reason.ROUTE_INVALID
    if any(_CAPTURE.search(text) or "+" in text or "#" in text for text in literal):
        return Reason.ROUTE_INVALID
    if "${" in route.topic_filter or "${" in route.target:
        return Reason.VARIABLE
    problem = route.problem()
    if problem is None:
        return None
    return Reason.ROUTE_SYSTEM if problem == "filter_sys" else Reason.ROUTE_INVALID


def is_secret(key: str) -> bool:
    """Whether the value of an option may be one that nobody should see, also if its name is misspelt."""
    return any(part in key for part in ("pass", "pwd", "psk", "secret", "token"))


def distinct(notes: Iterable[Note]) -> tuple[Note, ...]:
    """Return the notes, each once."""
    return tuple(dict.fromkeys(notes))
