"""The pages for those who come from another bridge say what the import does."""

from collections.abc import Iterator
from pathlib import Path
import re

import pytest

from custom_components.quic_bridge.bridge.routes import Route
from custom_components.quic_bridge.importer import read_bridges
from custom_components.quic_bridge.importer.model import ImportedBridge, Reason

DOCS = Path(__file__).parents[2] / "docs"
MOSQUITTO = (DOCS / "migrating-from-mosquitto.md").read_text()
NANOMQ = (DOCS / "migrating-from-nanomq.md").read_text()
ARROWS = {"to_remote": "→", "to_local": "←", "both": "↔"}

# mosquitto.conf(5), "Configuring Bridges".
MOSQUITTO_OPTIONS = """
address addresses bridge_alpn bridge_attempt_unsubscribe bridge_bind_address bridge_cafile bridge_capath bridge_certfile
bridge_ciphers bridge_ciphers_tls1.3 bridge_identity bridge_insecure bridge_keyfile bridge_max_packet_size
bridge_max_topic_alias bridge_outgoing_retain bridge_protocol_version bridge_psk bridge_receive_maximum
bridge_reload_type bridge_require_ocsp bridge_session_expiry_interval bridge_tcp_keepalive bridge_tcp_user_timeout
bridge_tls_use_os_certs bridge_tls_version cleansession clientid idle_timeout keepalive_interval local_cleansession
local_clientid local_password local_username notification_topic notifications notifications_local_only password
remote_clientid remote_password remote_username restart_timeout round_robin start_type threshold topic try_private
username
"""
# What NanoMQ reads (NanoNNG, conf_ver2.c), with the properties of CONNECT as it spells them.
NANOMQ_OPTIONS = """
backoff_max bridges.mqtt.cache.disk_cache_size bridges.mqtt.cache.enable bridges.mqtt.cache.flush_mem_threshold
bridges.mqtt.cache.mounted_file_path bridges.mqtt.cache.resend_interval cancel_timeout clean_start clientid
conn_properties.maximum_packet_size conn_properties.receive_maximum conn_properties.request_problem_infomation
conn_properties.request_response_infomation conn_properties.session_expiry_interval
conn_properties.topic_alias_maximum conn_properties.user_property enable forwards hybrid_bridging hybrid_servers
keepalive max_parallel_processes max_recv_queue_len max_send_queue_len no_local_v4 password proto_ver quic_0rtt
quic_discon_timeout quic_handshake_timeout quic_idle_timeout quic_initial_rtt_ms quic_keepalive quic_max_ack_delay_ms
quic_multi_stream quic_qos_priority quic_send_idle_timeout resend_interval resend_wait retry_qos_0 server
ssl.cacertfile ssl.certfile ssl.key_password ssl.keyfile sub_properties subscription tcp.bind_interface tcp.keepalive
transparent username will
"""


def tables(text: str, *head: str) -> Iterator[list[str]]:
    """Return the rows of the tables with these columns."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        first, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        if first == list(head):
            yield from rows


def code(cell: str) -> list[str]:
    """Return what is quoted as code in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def from_mosquitto(*lines: str) -> ImportedBridge:
    address = () if any(line.startswith("address ") for line in lines) else ("address h",)
    (bridge,) = read_bridges("\n".join(("connection x", *address, *lines)).encode())
    return bridge


def from_nanomq(*lines: str, servers: tuple[str, ...] = ("mqtt-quic://h:1",)) -> ImportedBridge:
    outside = [line for line in lines if line.startswith("bridges.")]
    first, *others = servers
    listed = ", ".join(f'"{server}"' for server in others)
    hybrid = f"hybrid_bridging = true, hybrid_servers = [{listed}]" if others else ""
    inside = [f'server = "{first}"', hybrid, *(line for line in lines if line not in outside)]
    (bridge,) = read_bridges("\n".join(["bridges.mqtt.x {", *inside, "}", *outside]).encode())
    return bridge


def options(bridge: ImportedBridge) -> dict[str, str]:
    """Return the options as the tables have them."""
    found = {key: value for page in bridge.options.values() for key, value in page.items() if key != "profile"}
    return {key: "off" if value is False else str(value) for key, value in found.items()}


def documented_options(cell: str) -> dict[str, str]:
    return dict(re.findall(r"`(\w+)` ([^,]+)", cell))


def endpoints(bridge: ImportedBridge, *, with_port: bool) -> list[list[str]]:
    found = bridge.endpoints
    main = str(found.main) if with_port else found.main.host
    return [[main], [str(address) for address in found.further], [str(found.fallback)] if found.fallback else []]


def sketch(route: Route) -> list[str]:
    return [ARROWS[route.direction], route.topic_filter, route.target]


# --- mosquitto --------------------------------------------------------------------------------------------------------


def test_settings_of_mosquitto() -> None:
    rows = list(tables(MOSQUITTO, "In the file", "Options"))
    assert len(rows) > 5
    for line, expected in rows:
        assert options(from_mosquitto(*code(line))) == documented_options(expected), line


def test_addresses_of_mosquitto() -> None:
    rows = list(tables(MOSQUITTO, "In the file", "Host", "Further QUIC addresses", "Fallback"))
    assert len(rows) > 2
    for lines, *expected in rows:
        assert endpoints(from_mosquitto(*code(lines)), with_port=False) == [code(cell) for cell in expected], lines


def test_topics_of_mosquitto() -> None:
    rows = list(tables(MOSQUITTO, "Line", "Direction", "Topics", "New name"))
    assert len(rows) > 3
    for line, arrow, topics, name in rows:
        (route,) = from_mosquitto(*code(line)).routes
        assert sketch(route) == [arrow, "".join(code(topics)), "".join(code(name))], line


def test_what_is_not_carried_over_from_mosquitto() -> None:
    rows = list(tables(MOSQUITTO, "In the file", "Why"))
    assert len(rows) > 10
    for lines, _ in rows:
        for line in code(lines):
            bridge = from_mosquitto(line if " " in line else f"{line} 1")
            assert any(note.what.startswith(line) and note.why is not Reason.UNKNOWN for note in bridge.notes), line


@pytest.mark.parametrize("option", MOSQUITTO_OPTIONS.split())
def test_every_option_of_mosquitto_is_documented(option: str) -> None:
    assert re.search(rf"`{re.escape(option)}[` ]", MOSQUITTO)


# --- NanoMQ -----------------------------------------------------------------------------------------------------------


def test_settings_of_nanomq() -> None:
    rows = list(tables(NANOMQ, "In the file", "Options"))
    assert len(rows) > 10
    for line, expected in rows:
        assert options(from_nanomq(*code(line))) == documented_options(expected), line


def test_addresses_of_nanomq() -> None:
    rows = list(tables(NANOMQ, "`server` and `hybrid_servers`", "Host", "Further QUIC addresses", "Fallback"))
    assert len(rows) > 3
    for servers, *expected in rows:
        cells = [code(cell) for cell in expected]
        bridge = from_nanomq(servers=tuple(code(servers)))
        assert endpoints(bridge, with_port=":" in cells[0][0]) == cells, servers


def test_names_of_nanomq() -> None:
    rows = list(tables(NANOMQ, "Topics", "Name in the file", "New name here", "Example"))
    assert len(rows) > 3
    for topics, name, target, _ in rows:
        (local,), (remote,) = code(topics), code(name)
        (route,) = from_nanomq(
            f'forwards = [{{ local_topic = "{local}", remote_topic = "{remote.strip('"')}" }}]'
        ).routes
        assert sketch(route) == ["→", local, "".join(code(target))], topics


def test_what_is_not_carried_over_from_nanomq() -> None:
    rows = [
        row
        for row in tables(NANOMQ, "In the file", "Why")
        if re.fullmatch(r"`[^`]*`(, `[^`]*`)*", row[0])  # the others are about rules, and other bridges
    ]
    assert len(rows) > 10
    for lines, _ in rows:
        for line in code(lines):
            bridge = from_nanomq(line if " = " in line else f"{line} = 1")
            assert any(note.what.startswith(line) and note.why is not Reason.UNKNOWN for note in bridge.notes), line


@pytest.mark.parametrize("option", NANOMQ_OPTIONS.split())
def test_every_option_of_nanomq_is_documented(option: str) -> None:
    assert re.search(rf"`{re.escape(option)}[` ]", NANOMQ)
