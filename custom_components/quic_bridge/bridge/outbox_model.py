"""What goes into the Outbox, what comes out, and what can go wrong with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Final, override

MAX_MID: Final = 65_535
"""Packet identifiers are 16 bits, and 0 is not one of them (MQTT 5, 2.2.1)."""


class OutboxPriority(IntEnum):
    """Which messages go out first, and last over a bound. Each has a lane of its own, in which the order is kept."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


class OutboxPolicy(StrEnum):
    """What gives way when the Outbox is full."""

    DROP_OLDEST = "drop_oldest"
    """The oldest messages are dropped (and counted) to make room."""
    REFUSE = "refuse"
    """New messages are not taken: the forwarder does not acknowledge them and the local broker's queue holds them."""


class OutboxDrop(StrEnum):
    """Why a message left the Outbox undelivered, or did not get in."""

    FULL_MESSAGES = "full_messages"
    FULL_BYTES = "full_bytes"
    EXPIRED = "expired"
    """Its own MQTT message expiry interval ran out."""
    AGE = "age"
    """Older than the Outbox keeps messages."""
    REPLACED = "replaced"
    """A newer message of the same topic took its place, as its route wants."""


class OutboxFault(StrEnum):
    """What keeps the Outbox from working."""

    DISK_FULL = "disk_full"
    NOT_WRITABLE = "not_writable"
    """The file or its folder is read-only or belongs to somebody else."""
    IO_ERROR = "io_error"
    CORRUPT = "corrupt"
    """The file is damaged and could not be replaced by a new one."""
    TOO_NEW = "too_new"
    """Written by a later version of this integration."""
    IN_USE = "in_use"
    """Another process, or another bridge, has the file open."""
    FULL = "full"
    """At its bound, with the policy to refuse new messages."""
    CLOSED = "closed"
    """Not open: before `open`, or after `close`."""


class OutboxError(Exception):
    """The Outbox could not do what was asked, and nothing of it was done.

    It stays usable: when the cause is gone, the same call succeeds.
    """

    def __init__(self, fault: OutboxFault, text: str) -> None:
        """Make the error; `text` says in English what happened, without any message's content."""
        super().__init__(text)
        self.fault = fault
        self.text = text

    @override
    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxLimits:
    """How much the Outbox keeps."""

    messages: int = 100_000
    bytes: int = 256 * 1024 * 1024
    """Sum of the PUBLISH packets; the file is somewhat larger."""
    age: float = 7 * 24 * 3600.0
    """Seconds after which a message counts as stale, by the wall clock."""
    policy: OutboxPolicy = OutboxPolicy.DROP_OLDEST


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxMessage:
    """A message on its way in."""

    packet: bytes
    """The whole PUBLISH packet for the remote. Its packet identifier is the forwarder's to patch when it is sent."""
    topic: str
    qos: int
    source_mid: int = 0
    """Packet identifier under which the local broker sent it; 0: none."""
    sent_mid: int | None = None
    """Packet identifier under which it was sent to the remote before the remote went away; None: it was not."""
    expires_at: float | None = None
    """Unix time when its message expiry interval ends."""
    priority: OutboxPriority = OutboxPriority.NORMAL
    """Messages of one topic must have the same, or they pass each other. Of no account with `sent_mid`."""
    replaces_topic: bool = False
    """Take the place of the waiting messages of this topic that have this flag too."""
    needs_receipt: bool = False
    """QoS 2, and the local broker's PUBREL is still to come: remember `source_mid` among the receipts."""
    released: bool = False
    """QoS 2 with `sent_mid`, and the remote's PUBREC has come: only PUBREL is left to send; `packet` is not kept."""

    def __post_init__(self) -> None:
        """Raise ValueError for what would break the remote's or the local broker's session later."""
        if self.qos not in {0, 1, 2}:
            raise ValueError(f"QoS {self.qos} does not exist")
        if not 0 <= self.source_mid <= MAX_MID:
            raise ValueError(f"{self.source_mid} is no packet identifier")
        if self.sent_mid is not None and not (self.qos and 1 <= self.sent_mid <= MAX_MID):
            raise ValueError(f"a QoS {self.qos} message was not sent with packet identifier {self.sent_mid}")
        if self.needs_receipt and not (self.qos == 2 and self.source_mid):
            raise ValueError("only QoS 2 messages of the local broker have receipts")
        if self.released and not (self.qos == 2 and self.sent_mid):
            raise ValueError("only QoS 2 messages that were sent can be released")


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A message on its way out."""

    seq: int
    """Place in its lane; rises there, never reused while the Outbox is open."""
    mid: int
    """Packet identifier to send it with, the same however often; 0 for QoS 0."""
    qos: int
    packet: bytes
    topic: str
    created_at: float
    """Unix time when the Outbox took it."""
    expires_at: float | None
    sent: bool
    """It may have been sent before: by this process, or by one that was killed.

    May have been: with QoS 2 that must not become DUP = 1 on the wire, because EMQX 6.2 and later acknowledges a
    QoS 2 PUBLISH with DUP that it has not seen without delivering it.
    """
    released: bool
    """The remote has received it (QoS 2): send PUBREL instead; packet and topic are empty."""


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What became of the messages of one `append`."""

    seqs: Sequence[int]
    """Places of the messages that the Outbox has taken over, from the front of the batch: acknowledge these.

    A message dropped at once (already expired, too large for the bounds) is among them.
    """
    refused: int
    """How many messages, at the end of the batch, were not taken (policy `refuse`): do not acknowledge these."""
    dropped: Mapping[OutboxDrop, int]
    """Messages that fell over a bound to make room, new ones and earlier ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRescue:
    """A damaged file was replaced."""

    moved_to: Path
    """Where the damaged file is kept."""
    rows: int
    """Rows that could be read and are in the new file."""
    damaged: int
    """Rows that could be read but whose content was wrong; what could not even be found is not counted."""
    receipts_lost: bool
    """The receipts could not be read: a QoS 2 message under way from the local broker may be forwarded twice."""
    text: str
    """What was wrong with the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxOpened:
    """What was found in the file."""

    messages: int
    bytes: int
    receipts: int
    rescue: OutboxRescue | None
