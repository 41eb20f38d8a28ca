"""Bridges of a mosquitto.conf."""

from pathlib import Path

import pytest

from custom_components.quic_bridge.bridge.routes import Direction, RetainMode, Route, Router
from custom_components.quic_bridge.importer import read_bridges
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

FILE = Path(__file__).parent / "files" / "mosquitto.conf"


def read_one(text: str) -> ImportedBridge:
    (bridge,) = read_bridges(text.encode())
    return bridge


def sketch(route: Route) -> tuple[str, str, str, int]:
    return str(route.direction), route.topic_filter, route.target, route.max_qos


def test_a_whole_file() -> None:
    office, cloud = read_bridges(FILE.read_bytes())
    assert (office.name, office.quic, office.enabled, office.wants_files) == ("office", False, True, True)
    main = Address(host="broker.example.org", port=8883, carrier=Carrier.TLS)
    assert office.endpoints == Endpoints(main=main, further=(Address(host="backup.example.org"),), fallback=main)
    assert (office.client_id, office.username, office.password) == ("home-7", "home", "pass word")
    assert (office.local_username, office.local_password) == ("bridge", '"quoted"')
    assert [sketch(route) for route in office.routes] == [
        ("to_remote", "home/#", "site/7/{1}", 1),
        ("to_local", "site/7/commands/#", "home/commands/{1}", 2),
        ("both", "shared/+/state", "", 2),
        ("to_remote", "lamp", "", 0),
        ("to_remote", "temperature", "site/7/temperature", 1),
    ]
    assert office.options == {
        "connection": {
            "profile": "custom",
            "keepalive": 120,
            "idle_timeout": 120,  # no shorter than the keepalive
            "backoff_base": 10,
            "backoff_cap": 60,
        },
        "presence": {"status_topic": "bridges/home-7/state", "payload_online": "1", "payload_offline": "0"},
    }
    assert list(office.notes) == [
        Note("address broker.example.org:8883", Reason.TCP),
        Note("address backup.example.org:1883", Reason.ADDRESSES),
        Note("round_robin true", Reason.ROUND_ROBIN),
        Note("bridge_protocol_version mqttv50", Reason.PROTOCOL),
        Note("notifications true", Reason.PRESENCE),
        Note("try_private true", Reason.NOT_NEEDED),
        Note("bridge_cafile /etc/mosquitto/certs/ca.crt", Reason.FILE),
        Note("bridge_certfile /etc/mosquitto/certs/client.crt", Reason.FILE),
        Note("bridge_keyfile /etc/mosquitto/certs/client.key", Reason.FILE),
        Note("bridge_insecure true", Reason.CERTIFICATE_NAME),
        Note("bridge_tls_version tlsv1.2", Reason.TLS),
        Note("topic lamp out", Reason.QOS_0),
        Note("topic clients/total in 0 test/ $SYS/broker/", Reason.ROUTE_SYSTEM),
        Note("topic +lamp out 1", Reason.ROUTE_INVALID),
        Note("topic state out 1 a/+/ b/", Reason.ROUTE_INVALID),
        Note("include_dir /etc/mosquitto/conf.d", Reason.INCLUDE),
    ]
    assert (cloud.name, cloud.client_id, cloud.username, cloud.password) == ("cloud", "old-name", "old", "older")
    assert cloud.endpoints == Endpoints(main=Address(host="2001:db8::7", port=1883))
    assert not cloud.wants_files
    # `bridge_outgoing_retain false` is about one way only.
    assert [(*sketch(route), route.retain) for route in cloud.routes] == [
        ("to_remote", "here/both/#", "there/both/{1}", 2, RetainMode.NEVER),
        ("to_local", "there/both/#", "here/both/{1}", 2, RetainMode.AS_PUBLISHED),
        ("to_remote", "out/#", "", 2, RetainMode.NEVER),
        ("to_local", "in/#", "", 2, RetainMode.AS_PUBLISHED),
    ]
    reasons = {note.what: note.why for note in cloud.notes}
    assert reasons["cleansession true"] is Reason.SESSION
    assert reasons["start_type lazy"] is Reason.START
    assert reasons["some_new_option 1"] is Reason.UNKNOWN
    # Nothing of what is secret.
    assert reasons["bridge_psk"] is Reason.TLS
    assert "0123456789abcdef" not in str(cloud.notes)
    assert "older" not in repr(cloud)


@pytest.mark.parametrize(
    ("line", "direction", "topic", "expected"),
    [
        # The table of mosquitto.conf(5).
        ("pattern both 1 L/ R/", Direction.TO_REMOTE, "L/pattern", "R/pattern"),
        ("pattern both 1 L/ R/", Direction.TO_LOCAL, "R/pattern", "L/pattern"),
        ('pattern both 1 L/ ""', Direction.TO_REMOTE, "L/pattern", "pattern"),
        ('pattern both 1 L/ ""', Direction.TO_LOCAL, "pattern", "L/pattern"),
        ('pattern both 1 "" R/', Direction.TO_REMOTE, "pattern", "R/pattern"),
        ('pattern both 1 "" R/', Direction.TO_LOCAL, "R/pattern", "pattern"),
        ('pattern both 1 "" ""', Direction.TO_REMOTE, "pattern", "pattern"),
        ('"" both 1 local remote', Direction.TO_REMOTE, "local", "remote"),
        ('"" both 1 local remote', Direction.TO_LOCAL, "remote", "local"),
        # Prefixes are put before the pattern as they are, wherever a level ends.
        ("# both 2 local/topic/ remote/topic/", Direction.TO_REMOTE, "local/topic/a/b", "remote/topic/a/b"),
        ("b/# out 1 a", Direction.TO_REMOTE, "ab/c", "b/c"),
        ("b/+/d/# in 1 x y/", Direction.TO_LOCAL, "y/b/c/d/e/f", "xb/c/d/e/f"),
        ("a/+", Direction.TO_REMOTE, "a/b", "a/b"),
        ("a in", Direction.TO_LOCAL, "a", "a"),
        ("a in", Direction.TO_REMOTE, "a", None),
        ("a/# out", Direction.TO_REMOTE, "b/c", None),
        ('"living room/#" OUT 1 "" R/', Direction.TO_REMOTE, "living room/lamp", "R/living room/lamp"),
        ("# out 1 # everything", Direction.TO_REMOTE, "a", "a"),
    ],
)
def test_topics(line: str, direction: Direction, topic: str, expected: str | None) -> None:
    bridge = read_one(f"connection x\naddress y\ntopic {line}\n")
    plan = Router(bridge.routes, direction).find(topic.encode())
    found = (plan.topic or topic.encode()).decode() if plan.route is not None else None
    assert found == expected


@pytest.mark.parametrize(
    "line",
    ['"" out 1 local', '"" in 1 "" remote', '"" both 1', "a out 1 p# q", "a{1} out 1 b {2}/", 'a{1}/# out 1 "" R/'],
)
def test_topics_that_cannot_be(line: str) -> None:
    bridge = read_one(f"connection x\naddress y\ntopic {line}\n")
    assert bridge.routes == ()
    assert bridge.notes[-1] == Note(f"topic {line}", Reason.ROUTE_INVALID)


@pytest.mark.parametrize(
    "text",
    [
        "connection x\ntopic a",
        "connection x\naddress y\ntopic",
        "connection x\naddress y\ntopic a sideways",
        "connection x\naddress y\ntopic a out 3",
        "connection x\naddress y:port",
        "connection x\naddress y:0",
        "connection x\naddress :1883",
        "connection x\naddress y\nbridge_outgoing_retain no",
        "connection x\naddress y\nnotifications no",
        "connection x\naddress y\nkeepalive_interval long",
        "connection x\naddress y\nrestart_timeout",
        "connection x\naddress y\nbridge_session_expiry_interval -1",
        "connection x\naddress y\nbridge_session_expiry_interval 0x1FFFFFFFF",
        "\n\nconnection x\naddress y\nconnection z",
    ],
)
def test_what_mosquitto_would_not_read(text: str) -> None:
    with pytest.raises(FileError) as caught:
        read_bridges(text.encode())
    assert caught.value.problem is FileProblem.UNREADABLE
    assert caught.value.detail.startswith("line ")


def test_a_password_under_another_name_is_not_shown() -> None:
    bridge = read_one("connection x\naddress y\nremote_passwd hunter2\nbridge_psk hunter2")
    assert [note.what for note in bridge.notes if note.why is Reason.UNKNOWN] == ["remote_passwd"]
    assert "hunter2" not in str(bridge.notes)


def test_comments_behind_values() -> None:
    """Of what is one word, the rest is not looked at."""
    bridge = read_one(
        "connection cloud # the name\naddress cloud:1883 # and no other\ntopic # both 1 # everything\n"
        "notifications 0 # quiet\ncleansession 0\nkeepalive_interval 45 # s\nrestart_timeout 2 60 # s"
    )
    assert (bridge.name, str(bridge.endpoints.main)) == ("cloud", "cloud:1883")
    assert [route.topic_filter for route in bridge.routes] == ["#"]
    assert bridge.options["presence"] == {"announce": False}
    assert bridge.options["connection"]["keepalive"] == 45
    assert [note.why for note in bridge.notes] == [Reason.TCP]


def test_a_prefix_in_the_place_of_the_quality_of_service() -> None:
    """As in an add-on for Home Assistant: mosquitto takes it for 0."""
    bridge = read_one("connection x\naddress y\ntopic # IN OpenZWave/")
    assert [(route.topic_filter, route.target, route.max_qos) for route in bridge.routes] == [("#", "", 0)]
    assert Note("topic # IN OpenZWave/", Reason.QOS_0) in bridge.notes


@pytest.mark.parametrize(
    "text", ["listener 1883\nallow_anonymous true", "pid_file /x\ninclude_dir /etc/mosquitto/conf.d"]
)
def test_a_file_without_a_bridge(text: str) -> None:
    with pytest.raises(FileError) as caught:
        read_bridges(text.encode())
    assert caught.value.problem is FileProblem.NO_BRIDGE


def test_comments_in_another_encoding() -> None:
    (bridge,) = read_bridges(b"# K\xfcche\r\nconnection x\r\n  # B\xfcro\r\naddress y\r\n")
    assert bridge.name == "x"
    with pytest.raises(FileError):
        read_bridges(b"connection x\naddress y\ntopic K\xfcche/#\n")


def test_what_means_the_same_is_not_mentioned() -> None:
    usual = "cleansession false\nround_robin false\nstart_type automatic\nbridge_insecure false\n# topic # out\n\n"
    usual += "local_cleansession false\nbridge_require_ocsp false\nbridge_tls_use_os_certs false\n"
    bridge = read_one(f"\ufeff# before\nlistener 1883\nconnection x\naddress y\n{usual}")
    assert bridge.options == {}
    assert bridge.notes == (Note("address y", Reason.TCP),)


TLS = "bridge_tls_use_os_certs true"


@pytest.mark.parametrize(
    ("lines", "further", "fallback", "left"),
    [
        ("address a", [], None, []),
        (f"address a\n{TLS}", [], "a:1883", []),
        (f"address a:8883 # comment\n{TLS}", [], "a:8883", []),
        ("address a\nbridge_cafile ca.crt", [], "a:1883", []),
        ("address a\nbridge_capath /etc/ssl", [], "a:1883", []),
        # Keys that both have agreed on are not certificates.
        ("address a\nbridge_identity i\nbridge_psk 00", [], None, []),
        ("addresses a b:1884 2001:db8::1:1883", ["b", "[2001:db8::1]"], None, []),
        (f"address a:8883 b:8883 b:8884\n{TLS}", ["b"], "a:8883", []),
        # Another broker on the same host has another QUIC port, which is not known.
        ("address a:1883 a:1884 b", ["b"], None, ["address a:1884"]),
    ],
)
def test_addresses(lines: str, further: list[str], fallback: str | None, left: list[str]) -> None:
    bridge = read_one(f"connection x\n{lines}")
    assert bridge.endpoints.main.host == "a"
    assert [str(address) for address in bridge.endpoints.further] == further
    assert (bridge.endpoints.fallback and str(bridge.endpoints.fallback)) == fallback
    assert [note.what for note in bridge.notes if note.why is Reason.ADDRESS_LEFT] == left


@pytest.mark.parametrize(
    ("line", "options", "adjusted"),
    [
        ("keepalive_interval 20", {"keepalive": 20}, False),
        ("keepalive_interval 65535", {"keepalive": 600, "idle_timeout": 600}, True),
        ("restart_timeout 20", {"backoff_base": 20, "backoff_cap": 20}, False),
        ("restart_timeout 1 7200 30", {"backoff_base": 1, "backoff_cap": 3600, "backoff_stable": 30}, True),
        ("restart_timeout 100 50", {"backoff_base": 60, "backoff_cap": 60}, True),
        ("bridge_session_expiry_interval 86400", {"session_expiry": 24}, False),
        ("bridge_session_expiry_interval 5400", {"session_expiry": 2}, True),
        ("bridge_session_expiry_interval 0xFFFFFFFF", {"session_expiry": 8760}, True),
    ],
)
def test_timers_and_windows(line: str, options: dict[str, int], adjusted: bool) -> None:
    bridge = read_one(f"connection x\naddress y\n{line}")
    assert bridge.options == {"connection": {"profile": "custom", **options}}
    assert bridge.notes[1:] == ((Note(line, Reason.ADJUSTED),) if adjusted else ())


def test_a_receive_maximum_could_lose_messages() -> None:
    bridge = read_one("connection x\naddress y\nbridge_receive_maximum 20")
    assert bridge.options == {}
    assert bridge.notes[1] == Note("bridge_receive_maximum 20", Reason.RECEIVE_MAXIMUM)


def test_a_session_that_ends_with_the_connection() -> None:
    bridge = read_one("connection x\naddress y\nbridge_session_expiry_interval 0")
    assert bridge.options == {}
    assert bridge.notes[1] == Note("bridge_session_expiry_interval 0", Reason.SESSION)


@pytest.mark.parametrize(
    ("lines", "presence"),
    [
        ("notifications false", {"announce": False}),
        ("notification_topic a/b", {"status_topic": "a/b", "payload_online": "1", "payload_offline": "0"}),
        # Nobody but a broker publishes these.
        ("notification_topic $SYS/broker/connection/x/state", None),
        ("notifications true", None),
        ("notifications_local_only true", None),
    ],
)
def test_notifications(lines: str, presence: dict[str, object] | None) -> None:
    bridge = read_one(f"connection x\naddress y\n{lines}")
    assert bridge.options == ({} if presence is None else {"presence": presence})
    assert bridge.notes[1:] == (() if presence else (Note(lines, Reason.PRESENCE),))
