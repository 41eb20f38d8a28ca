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
from custom_components.quic_bridge.importer.model import (
    Address,
    Carrier,
    Endpoints,
    FileError,
    FileProblem,
    ImportedBridge,
    Note,
    Reason,
)
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
    assert cloud.endpoints == Endpoints(
        main=Address(host="broker.example.org", port=14567, carrier=Carrier.QUIC),
        further=(Address(host="backup.example.org", port=14567, carrier=Carrier.QUIC),),
        fallback=Address(host="broker.example.org", port=8883, carrier=Carrier.TLS),
    )
    assert cloud.options == {
        "connection": {
            "profile": "custom",
            "keepalive": 60,
            "backoff_cap": 60,
            "idle_timeout": 60,
        },
        "messages": {"outbox_messages": 102400},
    }
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
        Note("hybrid_bridging = true", Reason.ROUND_ROBIN),
        Note("hybrid_servers backup.example.org:14567", Reason.ADDRESSES),
        Note("ssl.key_password", Reason.FILE),
        Note("ssl.keyfile = /etc/certs/key.pem", Reason.FILE),
        Note("ssl.certfile = /etc/certs/cert.pem", Reason.FILE),
        Note("ssl.cacertfile = /etc/certs/cacert.pem", Reason.FILE),
        Note("forwards[1]: sensors/#, farm/7/sensors/#", Reason.ROUTE_MEANT),
        Note("forwards[2].qos = 1", Reason.QOS_LIMIT),
        Note("forwards[5]: cameras/+/motion, motion", Reason.VARIABLE),
        Note("subscription[2] (cmd/all/reboot)", Reason.QOS_0),
        Note("subscription[2].nolocal", Reason.NO_LOCAL),
        Note("subscription[2].retain_as_published = 0", Reason.RETAIN),
        Note("forwards[4]: weather/rain", Reason.COPIES),
        Note("proto_ver = 4", Reason.PROTOCOL),
        Note("clean_start = true", Reason.SESSION),
        Note("conn_properties.maximum_packet_size = 1048576", Reason.LIMITS),
        Note("conn_properties.receive_maximum = 100", Reason.RECEIVE_MAXIMUM),
        Note("conn_properties.session_expiry_interval = 0", Reason.SESSION),
        Note("conn_properties.user_property", Reason.NOT_NEEDED),
        Note("will", Reason.PRESENCE),
        Note("sub_properties", Reason.NOT_NEEDED),
        Note("quic_keepalive = 120s", Reason.DEFAULT),
        Note("quic_idle_timeout = 120s", Reason.DEFAULT),
        Note("quic_0rtt = true", Reason.EARLY_DATA),
        Note("max_parallel_processes = 2", Reason.NOT_NEEDED),
        Note("max_send_queue_len = 32", Reason.OUTBOX),
        Note("max_recv_queue_len = 128", Reason.NOT_NEEDED),
        Note("some_new_option = 1", Reason.UNKNOWN),
        Note("bridges.mqtt.cache.flush_mem_threshold = 100", Reason.OUTBOX),
        Note("include nanomq_more", Reason.INCLUDE),
        Note("bridges.aws", Reason.OTHER_BRIDGE),
    ]
    assert "key secret" not in repr(cloud)
    assert "0123" not in repr(cloud)
    assert (second.name, second.enabled, second.quic, second.wants_files) == ("second", False, False, False)
    assert second.client_id is second.username is second.password is None
    assert [(*sketch(route), route.qos_0) for route in second.routes] == [("to_remote", "a/#", "", 2, Qos0Policy.QUEUE)]
    assert reasons(second)["server 192.0.2.7:1883"] is Reason.TCP
    assert reasons(second)["keepalive = 500ms"] is Reason.ADJUSTED


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
        "bridges.mqtt.sqlite.disk_cache_size = 1": Reason.ADJUSTED,
    }
    assert bridge.options == {
        "connection": {"profile": "custom", "congestion_control": "cubic"},
        "messages": {"outbox_messages": 100},
    }


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("mqtt-quic://h:14567", Address(host="h", port=14567, carrier=Carrier.QUIC)),
        ("mqtt-quic://[2001:db8::1]:14567", Address(host="2001:db8::1", port=14567, carrier=Carrier.QUIC)),
        ("tls+mqtt-tcp://h:8884", Address(host="h", port=8884, carrier=Carrier.TLS)),
        ("tls+mqtt-tcp://h", Address(host="h", port=8883, carrier=Carrier.TLS)),
        ("mqtt-tcp://h", Address(host="h")),
        ("h:1883", Address(host="h", port=1883)),
    ],
)
def test_servers(server: str, expected: Address) -> None:
    (bridge,) = read_bridges(f'bridges.mqtt.x {{ server = "{server}" }}'.encode())
    assert bridge.endpoints.main == expected
    assert bridge.endpoints.further == ()


QUIC, TLS, TCP = "mqtt-quic://{}", "tls+mqtt-tcp://{}", "mqtt-tcp://{}"


@pytest.mark.parametrize(
    ("servers", "endpoints", "notes"),
    [
        ([QUIC.format("a:1"), QUIC.format("b:2")], ("a:1", ["b:2"], None), {"b:2": Reason.ADDRESSES}),
        ([QUIC.format("a:1"), TLS.format("a:3"), TCP.format("a:4")], ("a:1", [], "a:3"), {"a:4": Reason.ADDRESS_LEFT}),
        (
            [QUIC.format("a:1"), TLS.format("b"), TLS.format("c")],
            ("a:1", [], "b:8883"),
            {"c:8883": Reason.ADDRESS_LEFT},
        ),
        # What is reached over QUIC goes first, wherever it stands.
        (
            [TCP.format("a:1"), TLS.format("b:2"), QUIC.format("c:3"), QUIC.format("d:4")],
            ("c:3", ["d:4"], "b:2"),
            {"a:1": Reason.ADDRESS_LEFT, "d:4": Reason.ADDRESSES},
        ),
        # The same server twice, and nothing over QUIC.
        ([QUIC.format("a:1"), QUIC.format("a:1")], ("a:1", [], None), {}),
        (
            [TCP.format("a:1883"), TLS.format("a:8883"), TCP.format("b:1883")],
            ("a:1883", ["b"], "a:8883"),
            {"a:1883": Reason.TCP, "b:1883": Reason.ADDRESSES},
        ),
    ],
)
def test_hybrid_servers(
    servers: list[str], endpoints: tuple[str, list[str], str | None], notes: dict[str, Reason]
) -> None:
    first, *others = servers
    listed = ", ".join(f'"{server}"' for server in others)
    text = f'server = "{first}"\nhybrid_bridging = true\nhybrid_servers = [{listed}]\nssl.cacertfile = "ca.pem"'
    (bridge,) = read_bridges(f"bridges.mqtt.x {{\n{text}\n}}".encode())
    found = bridge.endpoints
    fallback = found.fallback and str(found.fallback)
    assert (str(found.main), [str(address) for address in found.further], fallback) == endpoints
    said = {what.split()[1]: why for what, why in reasons(bridge).items() if "server" in what}
    assert said == notes
    assert reasons(bridge)["hybrid_bridging = true"] is Reason.ROUND_ROBIN


def test_hybrid_servers_that_are_switched_off() -> None:
    bridge = read_one('hybrid_bridging = false\nhybrid_servers = ["mqtt-quic://b:1"]')
    assert bridge.endpoints.further == ()
    assert reasons(bridge) == {"hybrid_servers": Reason.SWITCHED_OFF, "ssl": Reason.CERTIFICATE_CHECK}


@pytest.mark.parametrize(
    ("line", "options", "reason"),
    [
        ("keepalive = 45s", {"keepalive": 45, "idle_timeout": 45}, None),
        ("keepalive = 20", {"keepalive": 20}, None),
        ("keepalive = 2h", {"keepalive": 600, "idle_timeout": 600}, Reason.ADJUSTED),
        ("keepalive = soon", {}, Reason.TIMERS),
        ("keepalive = 10 weeks", {}, Reason.TIMERS),
        ("backoff_max = 2m", {"backoff_cap": 120}, None),
        ("quic_keepalive = 20s", {"ping_interval": 20}, None),
        ("quic_keepalive = 60s", {"ping_interval": 60, "idle_timeout": 65}, None),
        ("quic_keepalive = 120s", {}, Reason.DEFAULT),
        ("quic_keepalive = 0s", {}, Reason.TIMERS),
        ("quic_idle_timeout = 90s", {"idle_timeout": 90}, None),
        ("quic_idle_timeout = 10s", {"idle_timeout": 30}, Reason.ADJUSTED),
        ("quic_idle_timeout = 2m", {}, Reason.DEFAULT),
        ("quic_discon_timeout = 10s", {"ping_timeout": 10}, None),
        ("quic_handshake_timeout = 30s", {"handshake_timeout": 30}, None),
        ("quic_handshake_timeout = 60s", {}, Reason.DEFAULT),
        ("quic_initial_rtt_ms = 300ms", {"initial_rtt": 300}, None),
        ("quic_initial_rtt_ms = 300", {"initial_rtt": 300}, None),
        ("quic_initial_rtt_ms = 4s", {"initial_rtt": 4000, "handshake_timeout": 12, "ping_timeout": 8}, None),
        ("quic_initial_rtt_ms = 800ms", {}, Reason.DEFAULT),
        ("quic_send_idle_timeout = 2s", {}, Reason.TIMERS),
        ("congestion_control = cubic", {"congestion_control": "cubic"}, None),
        ("congestion_control = bbr", {}, Reason.TIMERS),
        ("conn_properties.receive_maximum = 50", {}, Reason.RECEIVE_MAXIMUM),
        ("conn_properties.receive_maximum = 65535", {}, None),
        ("conn_properties.session_expiry_interval = 86400", {"session_expiry": 24}, None),
        ("conn_properties.session_expiry_interval = 60", {"session_expiry": 1}, Reason.ADJUSTED),
        ("conn_properties.session_expiry_interval = 0", {}, Reason.SESSION),
        ("conn_properties.maximum_packet_size = 1024", {}, Reason.LIMITS),
        ("conn_properties.topic_alias_maximum = 10", {}, Reason.NOT_NEEDED),
        ("conn_properties.new = 10", {}, Reason.UNKNOWN),
        ("quic_0rtt = true", {}, Reason.EARLY_DATA),
        ("quic_multi_stream = true", {}, Reason.STREAMS),
        ("transparent = true", {}, Reason.TRANSPARENT),
        ("max_send_queue_len = 32", {}, Reason.OUTBOX),
    ],
)
def test_settings(line: str, options: dict[str, object], reason: Reason | None) -> None:
    bridge = read_one(f'{line}\nssl.cacertfile = "ca.pem"')
    assert bridge.options == ({"connection": {"profile": "custom", **options}} if options else {})
    assert [note for note in bridge.notes if not note.what.startswith("ssl")] == (
        [Note(line, reason)] if reason else []
    )


def test_timers_of_the_file_that_do_not_go_together() -> None:
    """NanoMQ lets a ping come as late as the end of the connection."""
    bridge = read_one("quic_idle_timeout = 100s\nquic_keepalive = 100s\nquic_discon_timeout = 30s")
    assert bridge.options["connection"] == {
        "profile": "custom",
        "idle_timeout": 130,
        "ping_interval": 100,
        "ping_timeout": 30,
    }
    assert reasons(bridge)["quic_idle_timeout = 100s"] is Reason.ADJUSTED


def test_tls_and_tcp() -> None:
    bridge = read_one(
        """ssl { enable = true, cacertfile = "ca.pem", key_password = "secret", verify_peer = true }
        tcp { bind_interface = wlan0, keepidle = 60000 }"""
    )
    assert bridge.wants_files
    assert reasons(bridge) == {
        "ssl.cacertfile = ca.pem": Reason.FILE,
        "ssl.key_password": Reason.FILE,
        "ssl.verify_peer": Reason.UNKNOWN,
        "tcp.bind_interface": Reason.INTERFACE,
        "tcp.keepidle": Reason.TIMERS,
    }
    bridge = read_one('ssl { enable = false, cacertfile = "ca.pem" }')
    assert not bridge.wants_files
    assert [note.why for note in bridge.notes] == [Reason.SWITCHED_OFF, Reason.CERTIFICATE_CHECK]


def test_the_cache() -> None:
    cache = "cache { disk_cache_size = 5000, flush_mem_threshold = 100 }"
    (bridge,) = read_bridges(f"bridges.mqtt {{\n{cache}\nx {{ {SERVER} }}\n}}".encode())
    assert bridge.options == {"messages": {"outbox_messages": 5000}}
    assert reasons(bridge)["bridges.mqtt.cache.flush_mem_threshold = 100"] is Reason.OUTBOX
    (bridge,) = read_bridges(f"bridges.mqtt {{ cache.disk_cache_size = 0, x {{ {SERVER} }} }}".encode())
    assert bridge.options == {}
    assert reasons(bridge)["bridges.mqtt.cache.disk_cache_size = 0"] is Reason.OUTBOX


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
        (f'bridges.mqtt.x {{ {SERVER}, clientid = "\\ud800" }}', FileProblem.UNREADABLE),
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


def test_rules_that_are_no_list_are_not_passed_over() -> None:
    bridge = read_one('forwards = "a/#"\nsubscription.1.topic = "b"')
    assert bridge.routes == ()
    assert reasons(bridge)["forwards"] is reasons(bridge)["subscription"] is Reason.UNKNOWN


def test_thousands_of_rules_are_compared_quickly() -> None:
    routes = [f'{{ local_topic = "home/{number}/#" }}' for number in range(3000)]
    bridge = read_one(f"forwards = [{','.join([*routes, '{ local_topic = "home/+/state" }'])}]")
    assert [note.what for note in bridge.notes if note.why is Reason.COPIES] == ["forwards[3001]: home/+/state"]


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
