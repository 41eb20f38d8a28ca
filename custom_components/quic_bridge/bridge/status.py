"""The state of the bridge as immutable snapshots. Everybody outside `bridge/` looks at these and at nothing else."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from .errors import ErrorCode
from .outbox_model import OutboxFault


class Side(StrEnum):
    """Which broker."""

    LOCAL = "local"
    REMOTE = "remote"


class LinkState(StrEnum):
    """State of the connection to one broker."""

    STOPPED = "stopped"
    CONNECTING = "connecting"
    """Dialling, handshaking, waiting for CONNACK or subscribing."""
    CONNECTED = "connected"
    """The broker accepted our CONNECT and answered our SUBSCRIBE: messages cross. Never earlier."""
    WAITING = "waiting"
    """Between two attempts."""
    REFUSED = "refused"
    """As waiting, but something a person must mend: credentials, certificate, settings. Retried slowly."""


class BridgeState(StrEnum):
    """The bridge as a whole."""

    STOPPED = "stopped"
    CONNECTING = "connecting"
    """Not both brokers are connected, and nothing has failed yet."""
    RUNNING = "running"
    """Both brokers are connected."""
    LOCAL_DOWN = "local_down"
    REMOTE_DOWN = "remote_down"
    DOWN = "down"
    """Neither broker is connected."""
    REFUSED = "refused"
    """A broker refuses us; a person must act."""


class DropReason(StrEnum):
    """Why a message was not forwarded."""

    DISCONNECTED = "disconnected"
    """QoS 0 while the other broker was away."""
    CONGESTED = "congested"
    """QoS 0 while the other broker could not keep up."""
    TOO_LARGE = "too_large"
    """Larger than the broker's Maximum Packet Size."""
    REJECTED = "rejected"
    """The broker acknowledged with an error (not authorised, topic invalid, ...)."""
    NO_ROUTE = "no_route"
    """Delivered by the broker although no route matches (left over from an earlier configuration)."""
    EXPIRED = "expired"
    """Its Message Expiry Interval ran out while it waited here."""
    OUTBOX_FULL = "outbox_full"
    """Fell over the Outbox's bound of messages or bytes."""
    TOO_OLD = "too_old"
    """Waited in the Outbox for longer than it keeps messages."""
    REPLACED = "replaced"
    """QoS 0: a newer message of the same topic took its place while the target was away."""
    LOOP = "loop"
    """It had passed other bridges before, and might have gone round for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkError:
    """The last thing that went wrong with a link."""

    code: ErrorCode
    text: str
    at: datetime
    reason_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateStatus:
    """What a certificate says of itself."""

    subject: str
    issuer: str
    names: str
    """The host names and addresses that it is for, the first few of them."""
    fingerprint: str
    """SHA-256 of the whole certificate, in hexadecimal with colons."""
    pin: str
    """SHA-256 of its public key, as `sha256/BASE64`; stays the same when it is renewed for the same key."""
    valid_from: datetime
    valid_until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportStatus:
    """What is known of the connection below MQTT; None where it does not apply or is not known yet."""

    address: str | None = None
    """Address and port that were dialled, for example `192.0.2.1:14567`."""
    version: str | None = None
    """`QUIC v1`, `TLSv1.3` or None."""
    cipher: str | None = None
    certificate: CertificateStatus | None = None
    """The broker's, as it showed it when the connection was made, or the one that it resumes."""
    client_certificate: CertificateStatus | None = None
    """Ours, as it was sent."""
    handshake_ms: float | None = None
    resumed: bool | None = None
    """The handshake went by a session ticket, without certificates (QUIC)."""
    early_data: bool | None = None
    """CONNECT went with the first flight (0-RTT), and the broker took it there, or refused it and got it again."""
    rtt_ms: float | None = None
    packets_sent: int | None = None
    packets_lost: int | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    """Bytes of MQTT, without what carries them."""
    datagram_bytes_sent: int | None = None
    datagram_bytes_received: int | None = None
    """UDP payload in all: handshake, acknowledgements and repeats included."""
    migrations: int = 0
    """How often this connection went on from another local address or port, without a new handshake."""
    migration_ms: float | None = None
    """From the last such change to the broker's first answer there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStatus:
    """Which of a broker's endpoints a link uses or tries, where there are several."""

    address: str
    """Host and port as configured; `details.address` is what the host was resolved to."""
    preferred: bool = True
    """Whether it is the broker's own address over QUIC."""
    since: datetime | None = None
    """When the first session there began, without one elsewhere since then."""
    diverted: LinkError | None = None
    """Why the preferred one is not in use."""
    hold_down: float = 0.0
    """Seconds that a better endpoint must be good before the link moves to it."""
    probes: int = 0
    """Probes of better endpoints since `since`."""
    probes_good: int = 0
    """How many of the last ones in a row succeeded."""
    probe_error: LinkError | None = None
    """Why the last one failed; None: it did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatus:
    """One side of the bridge. Times are aware UTC datetimes."""

    state: LinkState
    since: datetime
    transport: str | None = None
    """`quic` or `tcp`: what the link uses or tries now."""
    error: LinkError | None = None
    """The last error; it stays after a reconnect, as history. `state` says whether it matters now."""
    next_attempt: datetime | None = None
    connected_at: datetime | None = None
    """When the present session began."""
    reconnects: int = 0
    """Sessions after the first one."""
    attempts: int = 0
    """Attempts since the last session."""
    session_present: bool | None = None
    protocol: str | None = None
    """`5` or `3.1.1`."""
    failed_filters: dict[str, str] = field(default_factory=dict)
    """Topic filters that the broker refused to subscribe, and its reason in words (MQTT 5, 3.9.3)."""
    details: TransportStatus = TransportStatus()
    packet_loss: float | None = None
    """Percent of the packets that we sent over QUIC in the last minute that got lost; None: none was sent."""
    certificate: CertificateStatus | None = None
    """The broker's, as it was seen last; None: it was not seen yet, or there is no TLS."""
    client_certificate: CertificateStatus | None = None
    """Ours, as it was sent last."""
    endpoint: EndpointStatus | None = None
    """None: the broker has only one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionStatus:
    """Counters of one direction since the bridge was started."""

    forwarded: int = 0
    """Messages the target has accepted (QoS 1, 2: acknowledged; QoS 0: written)."""
    bytes: int = 0
    """Size of those messages' PUBLISH packets."""
    rate: float = 0.0
    """Messages per minute, over the last minute (or since the start, if that is less)."""
    waiting: int = 0
    """QoS 1 and 2 messages held in memory: under way or waiting for the target."""
    dropped: dict[DropReason, int] = field(default_factory=dict)
    copies: int = 0
    """What the source sent once more, for another of our subscriptions, and was not forwarded again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxStatus:
    """The queue on disk for outbound messages while the remote is away."""

    messages: int | None = 0
    """None: the file has not been opened yet, so nobody knows what waits in it."""
    bytes: int | None = 0
    oldest: datetime | None = None
    """When the first of the waiting messages came in."""
    error: str | None = None
    """What keeps the Outbox from working (English); None: it works. The local broker's queue stands in."""
    fault: OutboxFault | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeStatus:
    """The whole bridge at one moment."""

    state: BridgeState
    since: datetime
    local: LinkStatus
    remote: LinkStatus
    outbound: DirectionStatus = DirectionStatus()
    """Local to remote."""
    inbound: DirectionStatus = DirectionStatus()
    """Remote to local."""
    outbox: OutboxStatus | None = None
    """None: the bridge runs without one."""

    def link(self, side: Side) -> LinkStatus:
        """Return the part that is about one side."""
        return self.local if side is Side.LOCAL else self.remote
