"""Logs for experts: what QUIC did (qlog) and the secrets to decrypt a capture of it (key log). Off by default.

Both are bounded, in memory and on disk, and written in the executor. Neither holds a payload; but whoever has the key
log and a capture of the packets can read everything, passwords included.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
import io
import json
import logging
import os
from pathlib import Path
import shutil
from typing import Final, override

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.logger import QLOG_VERSION, QuicLogger, QuicLoggerTrace

from ..config import QuicLogConfig

MAX_FILES: Final = 10
"""qlog files kept; the oldest make room."""
MAX_FILE_SIZE: Final = 4 * 1024 * 1024
"""Bytes of one qlog file; then the connection goes on in another."""
MAX_KEYS_SIZE: Final = 256 * 1024
"""Bytes of the key log; then it is put aside, in place of the one before."""
MAX_PENDING: Final = 20_000
"""Events that wait to be written; those over it are counted."""
WRITE_INTERVAL: Final = 1.0
"""Seconds between two writes."""
KEYS: Final = "keys.log"
_RECORD_SEPARATOR: Final = "\x1e"
"""Begins each record of a JSON text sequence (RFC 7464)."""

_LOGGER = logging.getLogger(__name__)

type _Event = Mapping[str, object]


class _Trace(QuicLoggerTrace):
    """One connection's events on their way to a file. aioquic completes an event after it was logged."""

    def __init__(self, logs: QuicLogs, odcid: bytes) -> None:
        super().__init__(is_client=True, odcid=odcid)
        self._logs = logs
        self.began = datetime.now(UTC)
        self.pending: deque[_Event] = deque()
        self.dropped = 0
        self.part = 0
        self.size = MAX_FILE_SIZE
        """Bytes of the present file; full: the next write begins one."""

    @property
    def file_name(self) -> str:
        """The present file's."""
        return f"{self.began:%Y%m%d-%H%M%S-%f}-{self._odcid.hex()}-{self.part:03}.sqlog"

    @property
    def header(self) -> _Event:
        """The first record of each file."""
        return {
            "qlog_format": "JSON-SEQ",
            "qlog_version": QLOG_VERSION,
            "trace": {"common_fields": {"ODCID": self._odcid.hex()}, "vantage_point": self._vantage_point},
        }

    @override
    def log_event(self, *, category: str, event: str, data: dict[str, object]) -> None:
        if len(self.pending) >= MAX_PENDING:
            self.dropped += 1
            return
        super().log_event(category=category, event=event, data=data)
        self.pending.append(self._events.pop())
        self._logs.has_events(self)

    @override
    def encode_new_connection_id_frame(
        self, connection_id: bytes, retire_prior_to: int, sequence_number: int, stateless_reset_token: bytes
    ) -> dict[str, object]:
        # With the token anybody could end the connection.
        return super().encode_new_connection_id_frame(connection_id, retire_prior_to, sequence_number, b"")


class _Keys(io.StringIO):
    """The file that aioquic writes secrets to."""

    def __init__(self, logs: QuicLogs) -> None:
        super().__init__()
        self._logs = logs
        self.pending: list[str] = []

    @override
    def write(self, text: str) -> int:
        if len(self.pending) < MAX_PENDING:
            self.pending.append(text)
            self._logs.write_soon()
        return len(text)


class QuicLogs(QuicLogger):
    """The logs of one bridge, in a folder that only this user can look into."""

    def __init__(self, config: QuicLogConfig) -> None:
        """Prepare; nothing is written before there is something."""
        super().__init__()
        self._config = config
        self._waiting: dict[_Trace, None] = {}
        """Connections with events that were not written, in order."""
        self._keys = _Keys(self)
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._told = False

    def attach(self, configuration: QuicConfiguration) -> None:
        """Have a connection log here."""
        if self._config.qlog:
            configuration.quic_logger = self
        if self._config.key_log:
            configuration.secrets_log_file = self._keys

    @override
    def start_trace(self, is_client: bool, odcid: bytes) -> QuicLoggerTrace:
        return _Trace(self, odcid)

    @override
    def end_trace(self, trace: QuicLoggerTrace) -> None:
        """Do nothing: most connections end without aioquic's noticing."""

    def has_events(self, trace: _Trace) -> None:
        """Hear that a connection logged something."""
        self._waiting[trace] = None
        self.write_soon()

    def write_soon(self) -> None:
        """Write what there is, in a while."""
        if self._timer is None and self._writing is None:
            self._timer = asyncio.get_running_loop().call_later(WRITE_INTERVAL, self._start_writing)

    async def close(self) -> None:
        """Write what was not written yet, also what is logged while a write is under way."""
        while self._timer is not None or self._writing is not None:
            if self._timer is not None:
                self._timer.cancel()
                self._start_writing()
            if self._writing is not None:
                await asyncio.wait((self._writing,))

    def _start_writing(self) -> None:
        self._timer = None
        self._writing = asyncio.get_running_loop().create_task(self._write(), name="quic_bridge qlog")

    async def _write(self) -> None:
        batches: list[tuple[_Trace, list[_Event]]] = []
        for trace in self._waiting:
            events, trace.pending = list(trace.pending), deque()
            if trace.dropped:
                events.append({"name": "quic_bridge:events_dropped", "data": {"count": trace.dropped}})
                trace.dropped = 0
            batches.append((trace, events))
        self._waiting.clear()
        keys, self._keys.pending = "".join(self._keys.pending), []
        try:
            await asyncio.get_running_loop().run_in_executor(None, _write_files, self._config.folder, batches, keys)
        except OSError as error:
            level = logging.DEBUG if self._told else logging.WARNING
            _LOGGER.log(level, "The QUIC logs in %s cannot be written: %s", self._config.folder, error)
            self._told = True
        finally:
            self._writing = None
        if self._waiting or self._keys.pending:
            self.write_soon()


def remove_logs(folder: Path) -> None:
    """Delete a bridge's logs; blocking. Raises OSError."""
    if folder.exists():
        shutil.rmtree(folder)


def _write_files(folder: Path, batches: list[tuple[_Trace, list[_Event]]], keys: str) -> None:
    """Append to the files; blocking. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for trace, events in batches:
        pieces: list[str] = []
        for event in events:
            record = _record(event)
            if trace.size + len(record) > MAX_FILE_SIZE:
                _append(folder / trace.file_name, pieces)
                trace.part += 1
                pieces = [_record(trace.header)]
                trace.size = len(pieces[0])
            pieces.append(record)
            trace.size += len(record)
        _append(folder / trace.file_name, pieces)
    if batches:
        for old in sorted(folder.glob("*.sqlog"))[:-MAX_FILES]:
            old.unlink()
    if keys:
        file = folder / KEYS
        if _append(file, [keys]) > MAX_KEYS_SIZE:
            file.replace(file.with_suffix(".old.log"))


def _record(event: _Event) -> str:
    return f"{_RECORD_SEPARATOR}{json.dumps(event, separators=(',', ':'))}\n"


def _append(file: Path, pieces: list[str]) -> int:
    """Append to a file that is for nobody else; return its size."""
    if not pieces:
        return 0
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as stream:  # noqa: PTH123 - its mode
        stream.write("".join(pieces))
        return stream.tell()
