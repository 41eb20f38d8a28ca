"""The bridges of a NanoMQ configuration file (HOCON): `bridges.mqtt.<name>`.

Options and their meaning as in NanoMQ 0.25 (nanomq/docs/en_US/config-description/bridges.md and, where that is silent
or wrong, NanoNNG's conf_ver2.c and topics.c). Files of before 0.19, with a `connector` in each bridge, are read too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
import re
from typing import Final
from urllib.parse import urlsplit

from ..bridge.routes import Direction, Qos0Policy, RetainedAtConnect, RetainMode, Route, same_name
from ..bridge.topics import has_wildcards, overlap
from .hocon_text import Node, parse
from .model import (
    Address,
    FileError,
    FileProblem,
    ImportedBridge,
    Note,
    Reason,
    distinct,
    problem_of,
    wildcards,
)

_OLD_FORMAT: Final = re.compile(r"^[ \t]*bridge\.(mqtt|sqlite)\.\S+[ \t]*=", re.MULTILINE)
_NO_BRIDGES: Final = frozenset({"cache", "sqlite"})
_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_RETAIN: Final = {"0": RetainMode.NEVER, "1": RetainMode.ALWAYS}
_RETAINED: Final = {"0": RetainedAtConnect.ALWAYS, "1": RetainedAtConnect.ONCE, "2": RetainedAtConnect.NEVER}

_READ: Final = frozenset(
    {
        "clientid", "connector", "enable", "forwards", "hybrid_servers", "name", "password", "retry_qos_0", "server",
        "ssl", "subscription", "username",
    }
)  # fmt: skip
_USUAL: Final = {
    "clean_start": ("false", Reason.SESSION),
    "congestion_control": ("cubic", Reason.NOT_NEEDED),
    "hybrid_bridging": ("false", Reason.ADDRESSES),
    "proto_ver": ("5", Reason.PROTOCOL),
    "quic_multi_stream": ("false", Reason.NOT_NEEDED),
    "transparent": ("false", Reason.TRANSPARENT),
}
"""Options that are not carried over, with the value that means what the bridge does anyway."""
_REASONS: Final = {
    "backoff_max": Reason.TIMERS,
    "cancel_timeout": Reason.NOT_NEEDED,
    "conn_properties": Reason.LIMITS,
    "keepalive": Reason.TIMERS,
    "max_parallel_processes": Reason.NOT_NEEDED,
    "max_recv_queue_len": Reason.NOT_NEEDED,
    "max_send_queue_len": Reason.OUTBOX,
    "no_local_v4": Reason.NOT_NEEDED,
    "quic_0rtt": Reason.NOT_NEEDED,
    "quic_qos_priority": Reason.NOT_NEEDED,
    "resend_interval": Reason.NOT_NEEDED,
    "resend_wait": Reason.NOT_NEEDED,
    "sub_properties": Reason.NOT_NEEDED,
    "tcp": Reason.TIMERS,
    "will": Reason.PRESENCE,
}
"""Options that are not carried over, whatever their value is. Those that begin with `quic_` are timers."""
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
    notes += [Note(f"bridges.mqtt.{name}", Reason.OUTBOX) for name in mqtt if name in _NO_BRIDGES]
    named = {name: node for name, node in mqtt.items() if name not in _NO_BRIDGES and name != "nodes"}
    for node in _items(mqtt.get("nodes")):
        named[_text(_mapping(node).get("name"))] = node
    return [_Reader(name, _mapping(node)).bridge(notes) for name, node in named.items()]


class _Reader:
    """Reads one bridge."""

    def __init__(self, name: str, options: Mapping[str, Node]) -> None:
        self._name = name
        # Before 0.19 all about the connection stood in a `connector`.
        self._options = {**_mapping(options.get("connector")), **options}
        self._notes: list[Note] = []

    def bridge(self, notes: list[Note]) -> ImportedBridge:
        """Return the bridge, with what the whole file has to note. Raises FileError."""
        options = self._options
        servers = [
            _address(self._name, _text(server)) for server in (options.get("server"), *self._further()) if server
        ]
        if not servers:
            raise FileError(FileProblem.UNREADABLE, f"bridges.mqtt.{self._name}: no server")
        if not servers[0].quic:
            self._note(f"server {servers[0]}", Reason.TCP)
        for server in servers[1:]:
            self._note(f"hybrid_servers {server}", Reason.ADDRESSES)
        wants_files = self._tls(quic=servers[0].quic)
        routes = [*self._rules("forwards"), *self._rules("subscription")]
        self._find_copies(routes)
        for key, node in options.items():
            self._rest(key, node)
        return ImportedBridge(
            name=self._name,
            addresses=tuple(servers),
            client_id=_text(options.get("clientid")) or None,
            username=_text(options.get("username")) or None,
            password=_text(options.get("password")) or None,
            wants_files=wants_files,
            enabled=_text(options.get("enable", "true")).lower() in _TRUE,
            routes=tuple(routes),
            notes=distinct([*self._notes, *notes]),
        )

    def _note(self, what: str, why: Reason) -> None:
        self._notes.append(Note(what, why))

    def _further(self) -> list[Node]:
        return _items(self._options.get("hybrid_servers")) if self._is_on("hybrid_bridging") else []

    def _is_on(self, key: str) -> bool:
        return _text(self._options.get(key)).lower() in _TRUE

    def _tls(self, *, quic: bool) -> bool:
        """Note what is to be said of certificates; returns whether there are files to be given."""
        ssl = _mapping(self._options.get("ssl"))
        files = [key for key in ("cacertfile", "certfile", "keyfile") if _text(ssl.get(key))]
        if _text(ssl.get("enable", "true")).lower() not in _TRUE:
            files = []
        for key in files:
            self._note(f"ssl.{key} = {_text(ssl[key])}", Reason.FILE)
        if quic and "cacertfile" not in files:
            self._note("ssl", Reason.CERTIFICATE_CHECK)
        return bool(files)

    def _rest(self, key: str, node: Node) -> None:
        """Note an option that has no part in the bridge."""
        if key in _READ:
            return
        text = _text(node)
        what = f"{key} = {text}" if text else key
        if (usual := _USUAL.get(key)) is not None:
            if text.lower() != usual[0]:
                self._note(what, usual[1])
        else:
            self._note(what, _REASONS.get(key, Reason.TIMERS if key.startswith("quic_") else Reason.UNKNOWN))

    # --- rules --------------------------------------------------------------------------------------------------------

    def _rules(self, key: str) -> Iterator[Route]:
        for number, node in enumerate(_items(self._options.get(key)), 1):
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
        before: list[Route] = []
        for route in routes:
            if route.direction is not Direction.TO_REMOTE:
                continue
            if any(overlap(other.topic_filter, route.topic_filter) for other in before):
                self._note(f"{route.id}: {route.topic_filter}", Reason.COPIES)
            before.append(route)


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
            return Address(host=parts.hostname, port=parts.port, quic="quic" in parts.scheme)
    except ValueError:
        pass
    raise FileError(FileProblem.UNREADABLE, f"bridges.mqtt.{name}: server")


def _mapping(node: Node) -> Mapping[str, Node]:
    return node if isinstance(node, dict) else {}


def _items(node: Node) -> list[Node]:
    return node if isinstance(node, list) else []


def _text(node: Node) -> str:
    return node if isinstance(node, str) else ""
