"""The bridges of a NanoMQ configuration file (HOCON): `bridges.mqtt.<name>`.

Options and their meaning as in NanoMQ 0.25 (nanomq/docs/en_US/config-description/bridges.md and, where that is silent
or wrong, NanoNNG's conf_ver2.c and topics.c). Files of before 0.19, with a `connector` in each bridge, are read too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
import re
from typing import Final
from urllib.parse import urlsplit

from ..bridge.config import DEFAULT_TLS_PORT
from ..bridge.routes import Direction, Qos0Policy, RetainedAtConnect, RetainMode, Route, same_name
from ..bridge.topic_tree import TopicTree
from ..bridge.topics import has_wildcards
from ..const import (
    CONF_BACKOFF_CAP,
    CONF_CONGESTION_CONTROL,
    CONF_HANDSHAKE_TIMEOUT,
    CONF_IDLE_TIMEOUT,
    CONF_INITIAL_RTT,
    CONF_KEEPALIVE,
    CONF_OUTBOX_MESSAGES,
    CONF_PING_INTERVAL,
    CONF_PING_TIMEOUT,
    CONF_SESSION_EXPIRY,
    PAGE_CONNECTION,
    PAGE_MESSAGES,
)
from ..options import CONGESTION_CONTROLS
from .addresses import arrange
from .hocon_text import Node, parse
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
    wildcards,
)
from .settings import Settings

_OLD_FORMAT: Final = re.compile(r"^[ \t]*bridge\.(mqtt|sqlite)\.\S+[ \t]*=", re.MULTILINE)
_NO_BRIDGES: Final = frozenset({"cache", "sqlite"})
_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_RETAIN: Final = {"0": RetainMode.NEVER, "1": RetainMode.ALWAYS}
_RETAINED: Final = {"0": RetainedAtConnect.ALWAYS, "1": RetainedAtConnect.ONCE, "2": RetainedAtConnect.NEVER}

_NUMBER: Final = re.compile(r"[0-9]{1,10}")
_DURATION: Final = re.compile(r"([0-9]{1,10}) *([a-z]*)")
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_HOUR: Final = 3600
_MOST_MESSAGES: Final = 65_535
"""Receive Maximum of a client that sets no limit (MQTT 5, 3.1.2.11.3), as the bridge."""
_CARRIERS: Final = {"quic": Carrier.QUIC, "tls": Carrier.TLS}
"""By a part of the scheme of a server's URL; the others are TCP."""
_FILES: Final = frozenset({"cacertfile", "certfile", "keyfile"})

_READ: Final = frozenset(
    {
        "clientid", "conn_properties", "connector", "enable", "forwards", "hybrid_bridging", "hybrid_servers", "name",
        "password", "retry_qos_0", "server", "ssl", "subscription", "username",
    }
)  # fmt: skip
_TIMERS: Final = {
    "backoff_max": (CONF_BACKOFF_CAP, "s", ()),
    "keepalive": (CONF_KEEPALIVE, "s", ()),
    "quic_discon_timeout": (CONF_PING_TIMEOUT, "s", (20,)),
    "quic_handshake_timeout": (CONF_HANDSHAKE_TIMEOUT, "s", (20, 60)),
    "quic_idle_timeout": (CONF_IDLE_TIMEOUT, "s", (120,)),
    "quic_initial_rtt_ms": (CONF_INITIAL_RTT, "ms", (800,)),
    "quic_keepalive": (CONF_PING_INTERVAL, "s", (120,)),
}
"""Timers: the option that means the same, the unit of both, and the defaults that NanoMQ has, or says it has.

The sample configurations write out each QUIC timer with its default. Taken for a choice, these would have the bridge
notice a dead connection after two minutes, and be forgotten by address translation meanwhile.
"""
_PROPERTIES: Final = {
    "maximum_packet_size": Reason.LIMITS,
    "receive_maximum": Reason.RECEIVE_MAXIMUM,
    "request_problem_infomation": Reason.NOT_NEEDED,
    "request_problem_information": Reason.NOT_NEEDED,
    "request_response_infomation": Reason.NOT_NEEDED,
    "request_response_information": Reason.NOT_NEEDED,
    "topic_alias_maximum": Reason.NOT_NEEDED,
    "user_property": Reason.NOT_NEEDED,
}
_USUAL: Final = {
    "clean_start": ("false", Reason.SESSION),
    "proto_ver": ("5", Reason.PROTOCOL),
    "quic_0rtt": ("false", Reason.EARLY_DATA),
    "quic_multi_stream": ("false", Reason.STREAMS),
    "transparent": ("false", Reason.TRANSPARENT),
}
"""Options that are not carried over, with the value that means what the bridge does anyway."""
_REASONS: Final = {
    "cancel_timeout": Reason.NOT_NEEDED,
    "max_parallel_processes": Reason.NOT_NEEDED,
    "max_recv_queue_len": Reason.NOT_NEEDED,
    "max_send_queue_len": Reason.OUTBOX,
    "no_local_v4": Reason.NOT_NEEDED,
    "quic_max_ack_delay_ms": Reason.TIMERS,
    "quic_qos_priority": Reason.NOT_NEEDED,
    "quic_send_idle_timeout": Reason.TIMERS,
    "resend_interval": Reason.NOT_NEEDED,
    "resend_wait": Reason.NOT_NEEDED,
    "sub_properties": Reason.NOT_NEEDED,
    "will": Reason.PRESENCE,
}
"""Options that are not carried over, whatever their value is."""
_RULE_KEYS: Final = {
    "forwards": frozenset({"local_topic", "prefix", "qos", "remote_topic", "retain", "suffix"}),
    "subscription": frozenset(
        {"local_topic", "nolocal", "prefix", "qos", "remote_topic", "retain", "retain_as_published", "retain_handling",
         "stream_id", "suffix", "topic"}
    ),
}  # fmt: skip


def read(text: str) -> list[ImportedBridge]:
    """Return the bridges of a NanoMQ configuration file; may take a second. Raises FileError."""
    if _OLD_FORMAT.search(text):
        raise FileError(FileProblem.OLD_FORMAT)
    tree, included = parse(text, "bridges")
    notes = [Note(f"include {name}", Reason.INCLUDE) for name in included]
    kinds = _mapping(tree)
    notes += [Note(f"bridges.{kind}", Reason.OTHER_BRIDGE) for kind in kinds if kind != "mqtt"]
    mqtt = _mapping(kinds.get("mqtt"))
    cache = {name: node for name, node in mqtt.items() if name in _NO_BRIDGES}
    named = {name: node for name, node in mqtt.items() if name not in cache and name != "nodes"}
    for node in _items(mqtt.get("nodes")):
        named[_text(_mapping(node).get("name"))] = node
    return [_Reader(name, _mapping(node)).bridge(cache, notes) for name, node in named.items()]


class _Reader:
    """Reads one bridge."""

    def __init__(self, name: str, options: Mapping[str, Node]) -> None:
        self._name = name
        # Before 0.19 all about the connection stood in a `connector`.
        self._options = {**_mapping(options.get("connector")), **options}
        self._settings = Settings()
        self._notes: list[Note] = []

    def bridge(self, cache: Mapping[str, Node], notes: list[Note]) -> ImportedBridge:
        """Return the bridge, with the cache of all bridges, and what the whole file has to note. Raises FileError."""
        options = self._options
        servers = self._servers()
        endpoints, remarks = arrange(servers)
        for address, why in remarks:
            self._note(f"{'server' if address == servers[0] else 'hybrid_servers'} {address}", why)
        wants_files = self._tls(checked=all(address.carrier is Carrier.TCP for address in servers))
        routes = [*self._rules("forwards"), *self._rules("subscription")]
        self._find_copies(routes)
        for key, node in options.items():
            self._rest(key, node)
        for name, node in cache.items():
            self._cache(name, _mapping(node))
        pages = self._settings.pages()
        return ImportedBridge(
            name=self._name,
            endpoints=endpoints,
            client_id=_text(options.get("clientid")) or None,
            username=_text(options.get("username")) or None,
            password=_text(options.get("password")) or None,
            wants_files=wants_files,
            enabled=_text(options.get("enable", "true")).lower() in _TRUE,
            routes=tuple(routes),
            options=pages,
            notes=distinct([*self._notes, *self._settings.notes, *notes]),
        )

    def _note(self, what: str, why: Reason) -> None:
        self._notes.append(Note(what, why))

    def _is_on(self, key: str) -> bool:
        return _text(self._options.get(key)).lower() in _TRUE

    def _servers(self) -> list[Address]:
        """Return all servers, that of the bridge first. Raises FileError."""
        further = [_text(node) for node in _items(self._options.get("hybrid_servers"))]
        if further and not self._is_on("hybrid_bridging"):
            self._note("hybrid_servers", Reason.SWITCHED_OFF)
            further = []
        servers = [_address(self._name, url) for url in (_text(self._options.get("server")), *further) if url]
        if not servers:
            raise FileError(FileProblem.UNREADABLE, f"bridges.mqtt.{self._name}: no server")
        if len(servers) > 1:
            self._note("hybrid_bridging = true", Reason.ROUND_ROBIN)
        return servers

    def _tls(self, *, checked: bool) -> bool:
        """Note what is to be said of certificates; returns whether there are files to be given."""
        ssl = _mapping(self._options.get("ssl"))
        is_on = _text(ssl.get("enable", "true")).lower() in _TRUE
        if not is_on:
            self._note("ssl", Reason.SWITCHED_OFF)
            ssl = {}
        for key, node in ssl.items():
            if key in _FILES:
                self._note(f"ssl.{key} = {_text(node)}", Reason.FILE)
            elif key == "key_password":
                self._note(f"ssl.{key}", Reason.FILE)
            elif key != "enable":
                self._note(f"ssl.{key}", Reason.UNKNOWN)
        if not checked and "cacertfile" not in ssl:
            self._note("ssl", Reason.CERTIFICATE_CHECK)
        return any(key in _FILES for key in ssl)

    def _rest(self, key: str, node: Node) -> None:
        """Take an option that is one here, too, or note it."""
        text = _text(node)
        what = f"{key} = {text}" if text and not is_secret(key) else key
        if key == "conn_properties":
            self._properties(_mapping(node))
        elif key == "tcp":
            for name in _mapping(node):
                self._note(f"tcp.{name}", Reason.INTERFACE if name == "bind_interface" else Reason.TIMERS)
        elif key in _READ:
            return
        elif (timer := _TIMERS.get(key)) is not None:
            self._timer(*timer, text, what)
        elif key == "congestion_control":
            if text in CONGESTION_CONTROLS:
                self._settings.value(PAGE_CONNECTION, CONF_CONGESTION_CONTROL, text, what)
            else:
                self._note(what, Reason.TIMERS)
        elif (usual := _USUAL.get(key)) is None:
            self._note(what, _REASONS.get(key, Reason.UNKNOWN))
        elif text.lower() != usual[0]:
            self._note(what, usual[1])

    # --- settings -----------------------------------------------------------------------------------------------------

    def _timer(self, option: str, unit: str, defaults: Sequence[int], text: str, what: str) -> None:
        duration = _DURATION.fullmatch(text)
        seconds = None if duration is None else _SECONDS.get(duration[2] or unit)
        if duration is None or seconds is None:
            self._note(what, Reason.TIMERS)
            return
        value = int(duration[1]) * seconds / _SECONDS[unit]
        if value in defaults:
            self._note(what, Reason.DEFAULT)
        elif not value:
            self._note(what, Reason.TIMERS)
        else:
            self._settings.number(PAGE_CONNECTION, option, value, what)

    def _properties(self, properties: Mapping[str, Node]) -> None:
        """Take the properties of CONNECT (MQTT 5, 3.1.2.11)."""
        for key, node in properties.items():
            text = _text(node)
            what = f"conn_properties.{key}" + (f" = {text}" if text else "")
            number = _number(text)
            if key == "session_expiry_interval" and number:
                self._settings.number(PAGE_CONNECTION, CONF_SESSION_EXPIRY, number / _HOUR, what)
            elif key == "session_expiry_interval":
                self._note(what, Reason.SESSION)
            elif key != "receive_maximum" or number != _MOST_MESSAGES:
                self._note(what, _PROPERTIES.get(key, Reason.UNKNOWN))

    def _cache(self, name: str, options: Mapping[str, Node]) -> None:
        """Take how much may wait on disk."""
        for key, node in options.items():
            text = _text(node)
            what = f"bridges.mqtt.{name}.{key}" + (f" = {text}" if text else "")
            if key == "disk_cache_size" and (number := _number(text)):
                self._settings.number(PAGE_MESSAGES, CONF_OUTBOX_MESSAGES, number, what)
            else:
                self._note(what, Reason.OUTBOX)

    # --- rules --------------------------------------------------------------------------------------------------------

    def _rules(self, key: str) -> Iterator[Route]:
        rules = self._options.get(key)
        if not isinstance(rules, list | None):
            self._note(key, Reason.UNKNOWN)
        for number, node in enumerate(_items(rules), 1):
            what = f"{key}[{number}]"
            rule = _mapping(node) or {"local_topic": node, "remote_topic": node}  # before 0.19
            for name in rule:
                if name not in _RULE_KEYS[key]:
                    self._note(f"{what}.{name}", Reason.UNKNOWN)
            route = self._forward(what, rule) if key == "forwards" else self._subscription(what, rule)
            if route is not None:
                yield route

    def _forward(self, what: str, rule: Mapping[str, Node]) -> Route | None:
        qos = _text(rule.get("qos"))
        route = Route(
            id=what,
            direction=Direction.TO_REMOTE,
            topic_filter=_text(rule.get("local_topic")),
            max_qos=int(qos) if qos in {"0", "1", "2"} else 2,
            retain=_RETAIN.get(_text(rule.get("retain")), RetainMode.AS_PUBLISHED),
            qos_0=Qos0Policy.QUEUE if self._is_on("retry_qos_0") else Qos0Policy.DROP,
        )
        if route.max_qos < 2:
            self._note(f"{what}.qos = {qos}", Reason.QOS_LIMIT)
        return self._named(route, rule, _text(rule.get("remote_topic")))

    def _subscription(self, what: str, rule: Mapping[str, Node]) -> Route | None:
        qos = _text(rule.get("qos"))
        route = Route(
            id=what,
            direction=Direction.TO_LOCAL,
            topic_filter=_text(rule.get("remote_topic")) or _text(rule.get("topic")),
            max_qos=int(qos) if qos in {"1", "2"} else 0,
            retain=_RETAIN.get(_text(rule.get("retain")), RetainMode.AS_PUBLISHED),
            retained=_RETAINED.get(_text(rule.get("retain_handling")), RetainedAtConnect.ONCE),
        )
        if not route.max_qos:
            self._note(f"{what} ({route.topic_filter})", Reason.QOS_0)
        if _text(rule.get("nolocal", "true")).lower() not in _TRUE:
            self._note(f"{what}.nolocal", Reason.NO_LOCAL)
        if _text(rule.get("retain_as_published")) == "0":
            self._note(f"{what}.retain_as_published = 0", Reason.RETAIN)
        return self._named(route, rule, _text(rule.get("local_topic")))

    def _named(self, route: Route, rule: Mapping[str, Node], name: str) -> Route | None:
        """Give a route its new name; None: it cannot be, which is noted."""
        prefix, suffix = _text(rule.get("prefix")), _text(rule.get("suffix"))
        target = new_name(route.topic_filter, name)
        problem: Reason | None = Reason.ROUTE_NAME
        if target is None and wildcards(name) == wildcards(route.topic_filter):
            target = same_name(name)
            self._note(f"{route.id}: {route.topic_filter}, {name}", Reason.ROUTE_MEANT)
        if target is not None:
            target = f"{prefix}{target}{suffix}"
            route = replace(route, target="" if target == same_name(route.topic_filter) else target)
            problem = problem_of(
                route, prefix, suffix, "" if has_wildcards(name) or name == route.topic_filter else name
            )
        if problem is None:
            return route
        self._note(f"{route.id}: {route.topic_filter}" + (f", {name}" if name else ""), problem)
        return None

    def _find_copies(self, routes: Sequence[Route]) -> None:
        """Note the rules that share messages with one before them: NanoMQ forwards a message by each rule."""
        before = TopicTree[None]()
        for route in routes:
            if route.direction is not Direction.TO_REMOTE:
                continue
            for _ in before.overlapping(route.topic_filter):
                self._note(f"{route.id}: {route.topic_filter}", Reason.COPIES)
                break
            before.add(route.topic_filter, None)


def new_name(topic_filter: str, name: str) -> str | None:
    """Return the target of a rule that takes `topic_filter` to `name`; None: NanoMQ could make no name of it, either.

    A name without wildcards is the name. One with wildcards must be a part of the filter, and stands for the levels of
    the topic in its place (NanoNNG, topics.c); empty is the same name.
    """
    if not name or name == topic_filter:
        return same_name(topic_filter)
    if not has_wildcards(name):
        return name
    before, found, after = topic_filter.partition(name)
    if not found or "#" in name[:-1]:
        return None
    first = before.count("/")
    levels = same_name(topic_filter).split("/")
    return "/".join(levels[first : first + 1 + name.count("/")] if after else levels[first:])


def _address(name: str, url: str) -> Address:
    """Read a server's URL. Raises FileError."""
    try:
        parts = urlsplit(url if "://" in url else f"mqtt-tcp://{url}")
        if parts.hostname:
            carrier = next((item for part, item in _CARRIERS.items() if part in parts.scheme), Carrier.TCP)
            port = parts.port or (DEFAULT_TLS_PORT if carrier is Carrier.TLS else None)
            return Address(host=parts.hostname, port=port, carrier=carrier)
    except ValueError:
        pass
    raise FileError(FileProblem.UNREADABLE, f"bridges.mqtt.{name}: server")


def _number(text: str) -> int:
    """Return a number that is more than 0, as NanoMQ takes no other; else 0."""
    return int(text) if _NUMBER.fullmatch(text) else 0


def _mapping(node: Node) -> Mapping[str, Node]:
    return node if isinstance(node, dict) else {}


def _items(node: Node) -> list[Node]:
    return node if isinstance(node, list) else []


def _text(node: Node) -> str:
    return node if isinstance(node, str) else ""
