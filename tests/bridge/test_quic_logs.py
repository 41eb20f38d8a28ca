"""Logs for experts: off by default, bounded, private, complete."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
import json
import logging
from pathlib import Path
import threading
from typing import Any

import pytest

from custom_components.quic_bridge.bridge.config import BridgeConfig, QuicLogConfig
from custom_components.quic_bridge.bridge.transport import QuicResources, QuicTransport, quic_logs
from custom_components.quic_bridge.bridge.transport.quic_logs import KEYS, QuicLogs, remove_logs

from ..support.certs import Certificates
from ..support.processes import PATIENCE, wait_until
from ..support.quic_front import Front
from .transport_support import Peer, Receiver, payload, quic_config

pytestmark = pytest.mark.usefixtures("socket_enabled")

SECRET = b"\0a password in a payload"


@pytest.fixture
def settings(tmp_path: Path) -> QuicLogConfig:
    return QuicLogConfig(folder=tmp_path / "logs" / "entry", qlog=True, key_log=True)


class Stage:
    """Connections that are logged."""

    def __init__(self, front: Front, certs: Certificates, peer: Peer) -> None:
        self.front = front
        self.config = quic_config(front.address, certs.ca_pem)
        self.peer = peer

    @asynccontextmanager
    async def connection(self, logs: QuicLogs) -> AsyncIterator[QuicTransport]:
        """Connect, and end the logs with the connection."""
        transport = QuicTransport(self.config, QuicResources(logs=logs))
        try:
            await transport.connect(Receiver(), SECRET)
            yield transport
            await wait_until(lambda: not transport.backlog)
            await transport.close()
        finally:
            transport.abort()
            await logs.close()


@pytest.fixture
def stage(front: Front, certs: Certificates, peer: Peer) -> Stage:
    return Stage(front, certs, peer)


def records(folder: Path) -> list[list[dict[str, Any]]]:
    """Read all qlog files; the newest connection last."""
    return [
        [json.loads(record) for record in file.read_text().split("\x1e")[1:]] for file in sorted(folder.glob("*.sqlog"))
    ]


def modes(folder: Path) -> set[int]:
    """Return who may do what with the folder and its files."""
    return {path.stat().st_mode & 0o077 for path in (folder, *folder.iterdir())}


def sizes(folder: Path) -> dict[str, int]:
    """Return the sizes of the files."""
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_nothing_is_logged_by_default(tmp_path: Path, stage: Stage) -> None:
    config = BridgeConfig(remote=stage.config, routes=())
    assert config.quic_logs is None
    assert QuicResources.of(config).logs is None
    folder = tmp_path / "logs"
    settings = QuicLogConfig(folder=folder)
    assert not settings.qlog
    assert not settings.key_log


async def test_what_a_connection_did(stage: Stage, settings: QuicLogConfig) -> None:
    async with stage.connection(QuicLogs(settings)):
        pass
    (found,) = records(settings.folder)
    head, *events = found
    assert head["qlog_format"] == "JSON-SEQ"
    assert head["trace"]["vantage_point"]["type"] == "client"
    names = [event["name"] for event in events]
    assert {"transport:packet_sent", "transport:packet_received", "recovery:metrics_updated"} <= set(names)
    frames = [
        frame["frame_type"]
        for event in events
        if event["name"] == "transport:packet_received"
        for frame in event["data"]["frames"]
    ]
    assert {"crypto", "ack", "handshake_done", "new_connection_id"} <= set(frames), "noted before they were known"
    assert modes(settings.folder) == {0}


async def test_no_payload_and_no_token_is_in_it(stage: Stage, settings: QuicLogConfig) -> None:
    async with stage.connection(QuicLogs(replace(settings, key_log=False))):
        tokens = [cid.stateless_reset_token for cid in stage.front.connection.quic._host_cids]
    text = "".join(json.dumps(record) for record in records(settings.folder)[0])
    for secret in (SECRET.decode(), SECRET.hex(), *(token.hex() for token in tokens[1:])):
        assert secret not in text
    assert KEYS not in sizes(settings.folder)


async def test_the_keys_of_a_connection(stage: Stage, settings: QuicLogConfig) -> None:
    async with stage.connection(QuicLogs(replace(settings, qlog=False))):
        pass
    assert list(sizes(settings.folder)) == [KEYS]
    lines = [line.split(" ") for line in (settings.folder / KEYS).read_text().splitlines()]
    assert {line[0] for line in lines} == {
        f"{end}_{what}" for end in ("CLIENT", "SERVER") for what in ("HANDSHAKE_TRAFFIC_SECRET", "TRAFFIC_SECRET_0")
    }
    assert all(len(line) == 3 and len(line[1]) == 64 for line in lines)
    assert modes(settings.folder) == {0}


async def test_the_files_are_bounded(stage: Stage, settings: QuicLogConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many connections and within one; the newest is what stays."""
    monkeypatch.setattr(quic_logs, "MAX_FILE_SIZE", 20_000)
    monkeypatch.setattr(quic_logs, "MAX_KEYS_SIZE", 1000)
    monkeypatch.setattr(quic_logs, "MAX_FILES", 3)
    logs = QuicLogs(settings)
    for size in (1, 1, 1, 300_000):
        async with stage.connection(logs) as transport:
            transport.write(payload(size))
    found = sizes(settings.folder)
    traces = {name: size for name, size in found.items() if name.endswith(".sqlog")}
    assert len(traces) == 3
    assert max(traces.values()) <= 20_000
    assert len({name.rsplit("-", 1)[0] for name in traces}) == 1, "parts of the last connection"
    assert all(record[0]["qlog_format"] == "JSON-SEQ" for record in records(settings.folder))
    assert set(found) - set(traces) <= {KEYS, "keys.old.log"}
    assert found["keys.old.log"] < 3000


async def test_events_that_come_too_fast_are_counted(
    stage: Stage, settings: QuicLogConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quic_logs, "MAX_PENDING", 20)
    async with stage.connection(QuicLogs(settings)) as transport:
        transport.write(payload(50_000))
    (found,) = records(settings.folder)
    assert found[-1]["name"] == "quic_bridge:events_dropped"
    assert found[-1]["data"]["count"] > 20
    assert len(found) < 50


async def test_it_is_written_while_the_connection_lasts(
    stage: Stage, settings: QuicLogConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quic_logs, "WRITE_INTERVAL", 0.01)
    async with stage.connection(QuicLogs(settings)) as transport:
        await wait_until(lambda: settings.folder.exists() and sum(sizes(settings.folder).values()) > 1000)
        before = sum(sizes(settings.folder).values())
        transport.write(b"more")
        await wait_until(lambda: sum(sizes(settings.folder).values()) > before)


async def test_what_is_logged_during_a_write_is_not_left_behind(
    settings: QuicLogConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk is still writing when the connection, and with it the log, ends."""
    begun, go_on = threading.Event(), threading.Event()
    write_files = quic_logs._write_files

    def slow(*arguments: Any) -> None:  # noqa: ANN401 # whatever it is called with
        begun.set()
        go_on.wait(PATIENCE)
        write_files(*arguments)

    monkeypatch.setattr(quic_logs, "_write_files", slow)
    monkeypatch.setattr(quic_logs, "WRITE_INTERVAL", 0.0)
    logs = QuicLogs(settings)
    trace = logs.start_trace(is_client=True, odcid=bytes(8))
    trace.log_event(category="test", event="first", data={})
    await wait_until(begun.is_set, what="the first write")
    trace.log_event(category="test", event="last", data={})
    closing = asyncio.create_task(logs.close())
    await asyncio.sleep(0)
    go_on.set()
    await closing
    (found,) = records(settings.folder)
    assert found[-1]["name"] == "test:last"


async def test_a_disk_that_fails_is_told_once_and_disturbs_nothing(
    stage: Stage, settings: QuicLogConfig, caplog: pytest.LogCaptureFixture
) -> None:
    settings.folder.parent.write_text("a file where a folder should be")
    logs = QuicLogs(settings)
    for _ in range(2):
        async with stage.connection(logs):
            pass
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


async def test_they_are_deleted_with_the_bridge(stage: Stage, settings: QuicLogConfig) -> None:
    async with stage.connection(QuicLogs(settings)):
        pass
    remove_logs(settings.folder)
    assert not settings.folder.exists()
    remove_logs(settings.folder)
