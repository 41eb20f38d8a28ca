"""Bridges of a NanoMQ configuration file."""

import os
from pathlib import Path

import pytest

from custom_components.quic_bridge.bridge.routes import (
    Direction,
    Qos0Policy,
    RetainedAtConnect,
    RetainMode,
    Route,
    Router,
)
from custom_components.quic_bridge.importer import MAX_SIZE, read_bridges
from custom_components.quic_bridge.importer.model import Address, FileError, FileProblem, ImportedBridge, Note, Reason
from custom_components.quic_bridge.importer.nanomq import new_name

FILE = Path(__file__).parent / "files" / "nanomq.conf"
SERVER = 'server = "mqtt-quic://h:1"'


def read_one(options: str, name: str = "x") -> ImportedBridge:
    """Read a bridge with these options."""
    (bridge,) = read_bridges(f"bridges.mqtt.{name} {{\n{SERVER}\n{options}\n}}".encode())
    return bridge


def sketch(route: Route) -> tuple[str, str, str, int]:
    return str(route.direction), route.topic_filter, route.target, route.max_qos


def reasons(bridge: ImportedBridge) -> dict[str, Reason]:
    return {note.what: note.why for note in bridge.notes}


def test_a_whole_file() -> None:
    cloud, second = read_bridges(FILE.read_bytes())
    assert (cloud.name, cloud.quic, cloud.enabled, cloud.wants_files) == ("cloud", True, True, True)
    # A number is a text, too, and as it was written.
    assert (cloud.client_id, cloud.username, cloud.password) == ("farm 7", "farm", "0123")
    assert cloud.addresses == (
        Address(host="broker.example.org", port=14567, quic=True),
        Address(host="backup.example.org", port=14567, quic=True),
        Address(host="broker.example.org", port=8883),
    )
    assert [sketch(route) for route in cloud.routes] == [
        ("to_remote", "sensors/#", "farm/7/sensors/{1}", 2),
        ("to_remote", "alarms/+/state", "", 1),
        ("to_remote", "weather/#", "farm/7/weather/{1}", 2),
        ("to_remote", "weather/rain", "rain", 2),
        ("to_local", "cmd/farm7/#", "farm7/{1}", 2),
        ("to_local", "cmd/all/reboot", "", 0),
    ]
    assert cloud.routes[1].retain is RetainMode.ALWAYS
    assert cloud.routes[5].retained is RetainedAtConnect.NEVER
    assert list(cloud.notes) == [
        Note("hybrid_servers backup.example.org:14567", Reason.ADDRESSES),
        Note("hybrid_servers broker.example.org:8883", Reason.ADDRESSES),
        Note("ssl.cacertfile = /etc/certs/cacert.pem", Reason.FILE),
        Note("ssl.certfile = /etc/certs/cert.pem", Reason.FILE),
        Note("ssl.keyfile = /etc/certs/key.pem", Reason.FILE),
        Note("forwards[1]: sensors/#, farm/7/sensors/#", Reason.ROUTE_MEANT),
        Note("forwards[2].qos = 1", Reason.QOS_LIMIT),
        Note("forwards[5]: cameras/+/motion, motion", Reason.VARIABLE),
        Note("subscription[2] (cmd/all/reboot)", Reason.QOS_0),
        Note("subscription[2].nolocal", Reason.NO_LOCAL),
        Note("subscription[2].retain_as_published = 0", Reason.RETAIN),
        Note("forwards[4]: weather/rain", Reason.COPIES),
        Note("proto_ver = 4", Reason.PROTOCOL),
        Note("keepalive = 1m", Reason.TIMERS),
        Note("backoff_max = 60s", Reason.TIMERS),
        Note("clean_start = true", Reason.SESSION),
        Note("conn_properties", Reason.LIMITS),
        Note("will", Reason.PRESENCE),
        Note("sub_properties", Reason.NOT_NEEDED),
        Note("quic_keepalive = 120s", Reason.TIMERS),
        Note("quic_idle_timeout = 120s", Reason.TIMERS),
        Note("quic_0rtt = true", Reason.NOT_NEEDED),
        Note("hybrid_bridging = true", Reason.ADDRESSES),
        Note("max_parallel_processes = 2", Reason.NOT_NEEDED),
        Note("max_send_queue_len = 32", Reason.OUTBOX),
        Note("max_recv_queue_len = 128", Reason.NOT_NEEDED),
        Note("some_new_option = 1", Reason.UNKNOWN),
        Note("include nanomq_more", Reason.INCLUDE),
        Note("bridges.aws", Reason.OTHER_BRIDGE),
        Note("bridges.mqtt.cache", Reason.OUTBOX),
    ]
    assert "0123" not in repr(cloud)
    assert (second.name, second.enabled, second.quic, second.wants_files) == ("second", False, False, False)
    assert second.client_id is second.username is second.password is None
    assert [(*sketch(route), route.qos_0) for route in second.routes] == [("to_remote", "a/#", "", 2, Qos0Policy.QUEUE)]
    assert reasons(second)["server 192.0.2.7:1883"] is Reason.TCP


@pytest.mark.parametrize(
    ("topic_filter", "name", "topic", "expected"),
    [
        # The examples of NanoMQ's documentation and of its users (nanomq#1174, #1684, #2081).
        ("cmd/nanomq/#", "", "cmd/nanomq/hello", "cmd/nanomq/hello"),
        ("cmd/nanomq/#", "cmd/nanomq/#", "cmd/nanomq/hello", "cmd/nanomq/hello"),
        ("+/nanomq/#", "#", "cmd/nanomq/hello/world", "hello/world"),
        ("+/nanomq/#", "nanomq/#", "cmd/nanomq/hello/world", "nanomq/hello/world"),
        ("cmd/+/#", "+/#", "cmd/nanomq/hello/world", "nanomq/hello/world"),
        ("a/+/c/d", "+/c", "a/b/c/d", "b/c"),
        ("a/+/c/+", "c/+", "a/b/c/d", "c/d"),
        ("abc/#", "c/#", "abc/d", "abc/d"),  # levels are skipped, not characters
        ("topic1/#", "fwd/topic1", "topic1/a", "fwd/topic1"),
        ("topic1", "fwd/topic1", "topic1", "fwd/topic1"),
    ],
)
def test_new_names(topic_filter: str, name: str, topic: str, expected: str) -> None:
    forwards = f'forwards = [{{ local_topic = "{topic_filter}", remote_topic = "{name}" }}]'
    subscription = f'subscription = [{{ remote_topic = "{topic_filter}", local_topic = "{name}", qos = 1 }}]'
    for options, direction in ((forwards, Direction.TO_REMOTE), (subscription, Direction.TO_LOCAL)):
        plan = Router(read_one(options).routes, direction).find(topic.encode())
        assert plan.route is not None
        assert (plan.topic or topic.encode()).decode() == expected


@pytest.mark.parametrize(
    ("topic_filter", "name"), [("a/#", "b/+"), ("a/+", "#"), ("a", "+"), ("a/#", "#/#"), ("+/a", "a/+")]
)
def test_names_that_cannot_be_made(topic_filter: str, name: str) -> None:
    assert new_name(topic_filter, name) is None


def test_prefix_and_suffix() -> None:
    bridge = read_one(
        """forwards = [
            { local_topic = "a/+", remote_topic = "", prefix = "p/", suffix = "/s" }
            { local_topic = "b/#", remote_topic = "c", prefix = "p/", suffix = "/s" }
            { local_topic = "d", remote_topic = "", prefix = "+/" }
            { local_topic = "e", remote_topic = "f{1}" }
            { local_topic = "g/+", remote_topic = "", prefix = "{1}/" }
            { local_topic = "h/#", remote_topic = "b/+" }
            { local_topic = "h+", remote_topic = "" }
            { local_topic = "$SYS/#", remote_topic = "" }
            { local_topic = "", remote_topic = "", other = 1 }
        ]"""
    )
    assert [sketch(route)[1:3] for route in bridge.routes] == [("a/+", "p/a/{1}/s"), ("b/#", "p/c/s")]
    assert [(note.what, note.why) for note in bridge.notes[1:]] == [
        ("forwards[3]: d", Reason.ROUTE_INVALID),
        ("forwards[4]: e, f{1}", Reason.ROUTE_INVALID),
        ("forwards[5]: g/+", Reason.ROUTE_INVALID),
        ("forwards[6]: h/#, b/+", Reason.ROUTE_NAME),
        ("forwards[7]: h+", Reason.ROUTE_INVALID),
        ("forwards[8]: $SYS/#", Reason.ROUTE_SYSTEM),
        ("forwards[9].other", Reason.UNKNOWN),
        ("forwards[9]: ", Reason.ROUTE_INVALID),
    ]


def test_what_rules_say_of_messages() -> None:
    bridge = read_one(
        """subscription = [
            { remote_topic = "a", qos = 1, retain = 0, retain_handling = 0 }
            { remote_topic = "b", qos = 2, retain = 1, retain_handling = 1 }
            { remote_topic = "c", qos = 0, retain = 2 }
        ]"""
    )
    assert [(route.max_qos, route.retain, route.retained) for route in bridge.routes] == [
        (1, RetainMode.NEVER, RetainedAtConnect.ALWAYS),
        (2, RetainMode.ALWAYS, RetainedAtConnect.ONCE),
        (0, RetainMode.AS_PUBLISHED, RetainedAtConnect.ONCE),
    ]
    assert reasons(bridge)["subscription[3] (c)"] is Reason.QOS_0


def test_files_of_before_0_19() -> None:
    text = """
    bridges.mqtt {
        nodes = [
            {
                name = emqx
                enable = true
                connector {
                    server = "mqtt-tcp://emqx.example.org:1883"
                    proto_ver = 5
                    username = u
                }
                forwards = ["forward1/#", "forward2/#"]
                subscription = [{ topic = "cmd/topic1", qos = 1 }]
                congestion_control = cubic
            }
        ]
        sqlite { disk_cache_size = 1 }
    }"""
    (bridge,) = read_bridges(text.encode())
    assert (bridge.name, bridge.username) == ("emqx", "u")
    assert [sketch(route)[:3] for route in bridge.routes] == [
        ("to_remote", "forward1/#", ""),
        ("to_remote", "forward2/#", ""),
        ("to_local", "cmd/topic1", ""),
    ]
    assert reasons(bridge) == {
        "server emqx.example.org:1883": Reason.TCP,
        "bridges.mqtt.sqlite": Reason.OUTBOX,
    }


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("mqtt-quic://h:14567", Address(host="h", port=14567, quic=True)),
        ("mqtt-quic://[2001:db8::1]:14567", Address(host="2001:db8::1", port=14567, quic=True)),
        ("tls+mqtt-tcp://h:8883", Address(host="h", port=8883)),
        ("mqtt-tcp://h", Address(host="h")),
        ("h:1883", Address(host="h", port=1883)),
    ],
)
def test_servers(server: str, expected: Address) -> None:
    (bridge,) = read_bridges(f'bridges.mqtt.x {{ server = "{server}" }}'.encode())
    assert bridge.addresses == (expected,)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("bridges.mqtt.x {", FileProblem.UNREADABLE),
        ("bridges.mqtt.x {}", FileProblem.UNREADABLE),
        ('bridges.mqtt.x { server = "mqtt-quic://h:port" }', FileProblem.UNREADABLE),
        ('bridges.mqtt.x { server = "mqtt-quic://" }', FileProblem.UNREADABLE),
        ("[1, 2]", FileProblem.UNREADABLE),
        ("a = " + "[" * 20_000, FileProblem.UNREADABLE),
        ("a = " + "{a=" * 20_000, FileProblem.UNREADABLE),
        ("bridges.mqtt.x { }\n" * 301, FileProblem.UNREADABLE),
        ("mqtt { max_packet_size = 1 }", FileProblem.NO_BRIDGE),
        ("bridges = 1", FileProblem.NO_BRIDGE),
        ("bridges.mqtt.cache { }", FileProblem.NO_BRIDGE),
        ("bridges.mqtt = null", FileProblem.NO_BRIDGE),
        ("a = ${b}\nb = 1", FileProblem.SUBSTITUTION),
        ("a = ${?HOME}", FileProblem.SUBSTITUTION),
        ("  bridge.mqtt.emqx.address=mqtt-tcp://192.0.2.1:1883", FileProblem.OLD_FORMAT),
        ("#" * (MAX_SIZE + 1), FileProblem.TOO_LARGE),
    ],
)
def test_what_cannot_be_read(text: str, problem: FileProblem) -> None:
    with pytest.raises(FileError) as caught:
        read_bridges(text.encode())
    assert caught.value.problem is problem


def test_values_of_several_words_and_lists_that_are_added_to() -> None:
    bridge = read_one('username = my user\nforwards = [{ local_topic = "a" }]\nforwards += { local_topic = "b" }')
    assert bridge.username == "my user"
    assert [route.topic_filter for route in bridge.routes] == ["a", "b"]


def test_nothing_of_this_host_gets_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither files nor environment variables, in whatever way a file asks for them."""
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret.conf"
    secret.write_text('bridges.mqtt.x { username = "leaked" }')
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "secret.conf").write_text(secret.read_text())
    for include in (
        f'include "{secret}"',
        'include "secret"',
        f'include file("{secret}")',
        f'include required(file("{secret}"))',
        'include package("package", "secret.conf")',
    ):
        (bridge,) = read_bridges(f"{include}\nbridges.mqtt.x {{ {SERVER} }}".encode())
        assert bridge.username is None, include
        assert reasons(bridge)["include secret"] is Reason.INCLUDE
    with pytest.raises(FileError):
        read_bridges(f'include url("file://{secret}")\nbridges.mqtt.x {{ {SERVER} }}'.encode())
    assert os.environ["HOME"]
    bridge = read_one('username = "${HOME}"\npassword = "$HOME"')
    assert (bridge.username, bridge.password) == ("${HOME}", "$HOME")
