"""TLS session tickets: what lets the next handshake with the same broker do without certificates (RFC 8446, 2.2).

A ticket is worth what the handshake was worth that gave it, so it is kept under everything that handshake depended on:
where, which name, which authorities, which identity of ours. Whatever of these changes, old tickets are not found any
more. A resumed handshake checks no certificate; the certificate must have been checked within the last day.
"""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Final, Self

from aioquic.tls import CipherSuite, SessionTicket
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..config import BrokerConfig, TlsConfig
from ..tls import default_authorities, server_name

PER_BROKER: Final = 2
"""Tickets kept of one broker: each serves once, and a broker gives one or two in each connection."""
MAX_TICKETS: Final = 8
MAX_TICKET_SIZE: Final = 16 * 1024
"""Bytes of one ticket; a broker may not fill our disk."""
TRUST: Final = timedelta(days=1)
"""How long a certificate that was checked need not be seen again, as long as it is valid."""
SAVE_DELAY: Final = 1.0

_VERSION: Final = 1
_LOGGER = logging.getLogger(__name__)

type _Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket, and until when the handshake with a certificate counts on which it rests."""

    session: SessionTicket
    trusted_until: datetime
    certificate: x509.Certificate
    """The one that was shown then."""

    @classmethod
    def checked_now(cls, session: SessionTicket, certificate: x509.Certificate) -> Self:
        """Make one for a ticket out of a connection in which the certificate was shown, and checked."""
        return cls(session, min(datetime.now(UTC) + TRUST, certificate.not_valid_after_utc), certificate)

    @property
    def is_valid(self) -> bool:
        """Whether it can be used now."""
        return self.session.is_valid and datetime.now(UTC) < self.trusted_until

    def without_early_data(self) -> Self:
        """Return it for a handshake in which nothing is sent before the broker's answer."""
        return replace(self, session=replace(self.session, max_early_data_size=None))

    def encode(self) -> _Json:
        """Return what JSON can hold."""
        session = self.session
        return {
            "trusted_until": self.trusted_until.isoformat(),
            "certificate": _to_text(self.certificate.public_bytes(Encoding.DER)),
            "age_add": session.age_add,
            "cipher_suite": int(session.cipher_suite),
            "not_valid_before": session.not_valid_before.isoformat(),
            "not_valid_after": session.not_valid_after.isoformat(),
            "server_name": session.server_name,
            "max_early_data_size": session.max_early_data_size,
            "secret": _to_text(session.resumption_secret),
            "ticket": _to_text(session.ticket),
            "extensions": [[kind, _to_text(data)] for kind, data in session.other_extensions],
        }

    @classmethod
    def decode(cls, data: _Json) -> Self:
        """Make it from what `encode` returned. Raises ValueError, KeyError or TypeError for anything else."""
        early, extensions = data["max_early_data_size"], data["extensions"]
        if not isinstance(extensions, list):
            raise TypeError("extensions are a list")
        return cls(
            SessionTicket(
                age_add=_int(data["age_add"]),
                cipher_suite=CipherSuite(_int(data["cipher_suite"])),
                not_valid_before=_time(data["not_valid_before"]),
                not_valid_after=_time(data["not_valid_after"]),
                resumption_secret=_to_bytes(data["secret"]),
                server_name=_str(data["server_name"]),
                ticket=_to_bytes(data["ticket"]),
                max_early_data_size=None if early is None else _int(early),
                other_extensions=[(_int(kind), _to_bytes(content)) for kind, content in extensions],
            ),
            _time(data["trusted_until"]),
            x509.load_der_x509_certificate(_to_bytes(data["certificate"])),
        )


def broker_key(config: BrokerConfig) -> str:
    """Return a fingerprint of everything on which a handshake with the broker depends; it gives nothing of it away.

    Blocking: the age of files with certificates counts.
    """
    tls = config.tls or TlsConfig()
    files = [source for source in (tls.ca, tls.certificate, tls.private_key) if isinstance(source, Path)]
    if tls.verify and tls.ca is None:
        files.append(Path(default_authorities()))
    parts = [config.host, config.port, server_name(config), asdict(tls), [_state(file) for file in files]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _state(file: Path) -> list[object]:
    """Return what changes when a file is replaced."""
    try:
        found = file.stat()
    except OSError:
        return [file]
    return [file, found.st_size, found.st_mtime_ns]


class TicketStore:
    """The tickets of one bridge, in memory and in a file that only this user can read. Each is used once."""

    def __init__(self, path: Path) -> None:
        """Prepare a store; the file is read before the first connection."""
        self._path = path
        self._loaded = False
        self._tickets: list[tuple[str, Ticket]] = []
        """The newest last."""
        self._save_handle: asyncio.TimerHandle | None = None
        self._saving: asyncio.Task[None] | None = None
        self._changed = False
        self._told = False

    def read(self) -> list[tuple[str, Ticket]] | None:
        """Read the file, for `loaded`; None if that was done before. Blocking.

        What cannot be read is left out: tickets are a convenience.
        """
        if self._loaded:
            return None
        try:
            stored = json.loads(self._path.read_bytes())
            return [(_str(item["broker"]), Ticket.decode(item)) for item in stored["tickets"]][-MAX_TICKETS:]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._tell("read", error)
            return []

    def loaded(self, found: list[tuple[str, Ticket]]) -> None:
        """Take over what was in the file."""
        if not self._loaded:
            self._loaded = True
            self._tickets = [*found, *self._tickets][-MAX_TICKETS:]

    def take(self, key: str) -> Ticket | None:
        """Take out the newest valid ticket for a broker; nobody gets it again."""
        for index in range(len(self._tickets) - 1, -1, -1):
            owner, ticket = self._tickets[index]
            if owner == key:
                del self._tickets[index]
                self._save_soon()
                if ticket.is_valid:
                    return ticket
        return None

    def give(self, key: str, ticket: Ticket) -> None:
        """Keep a ticket; the oldest ones make room for it."""
        if len(ticket.session.ticket) > MAX_TICKET_SIZE:
            return
        mine = [item for item in self._tickets if item[0] == key]
        for item in mine[: max(0, len(mine) - PER_BROKER + 1)]:
            self._tickets.remove(item)
        self._tickets = [*self._tickets, (key, ticket)][-MAX_TICKETS:]
        self._save_soon()

    def forget(self, key: str) -> None:
        """Drop all tickets for a broker, because one of them did no good."""
        kept = [item for item in self._tickets if item[0] != key]
        if len(kept) != len(self._tickets):
            self._tickets = kept
            self._save_soon()

    async def close(self) -> None:
        """Write what was not written yet."""
        if self._save_handle is not None:
            self._save_handle.cancel()
            self._start_saving()
        if self._saving is not None:
            await asyncio.wait((self._saving,))

    # The file

    def _save_soon(self) -> None:
        self._changed = True
        if self._save_handle is None and self._saving is None:
            self._save_handle = asyncio.get_running_loop().call_later(SAVE_DELAY, self._start_saving)

    def _start_saving(self) -> None:
        self._save_handle = None
        if self._saving is None:
            self._saving = asyncio.get_running_loop().create_task(self._save(), name="quic_bridge tickets")

    async def _save(self) -> None:
        try:
            while self._changed:
                self._changed = False
                tickets = [{"broker": key, **ticket.encode()} for key, ticket in self._tickets]
                text = json.dumps({"version": _VERSION, "tickets": tickets})
                await asyncio.get_running_loop().run_in_executor(None, _write, self._path, text)
        except OSError as error:
            self._tell("written", error)
        finally:
            self._saving = None

    def _tell(self, what: str, error: Exception) -> None:
        """Log the first trouble with the file."""
        _LOGGER.log(
            logging.DEBUG if self._told else logging.WARNING,
            "Session tickets cannot be %s (%s): reconnecting takes full handshakes; the file is %s",
            what,
            error,
            self._path,
        )
        self._told = True


def _write(path: Path, text: str) -> None:
    """Replace the file; at no moment anybody else can read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123 - a descriptor
            file.write(text)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _to_bytes(text: object) -> bytes:
    try:
        return base64.b64decode(_str(text), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no number")
    return value


def _str(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _time(value: object) -> datetime:
    found = datetime.fromisoformat(_str(value))
    if found.tzinfo is None:
        raise ValueError("a time without a zone")
    return found
