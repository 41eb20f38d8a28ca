"""What a bridge is told: two brokers and the routes between them. Validated here, with errors a person can act on."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from .guard import LoopGuard
from .outbox_model import OutboxLimits
from .routes import Route

DEFAULT_TCP_PORT: Final = 1883
DEFAULT_QUIC_PORT: Final = 14567
"""EMQX's default for MQTT over QUIC."""
DEFAULT_TLS_PORT: Final = 8883
"""IANA's for MQTT over TLS (secure-mqtt)."""

_MAX_HEAD: Final = 64 * 1024
"""Bytes for a packet's topic and properties."""


class TransportKind(StrEnum):
    """How bytes reach a broker."""

    TCP = "tcp"
    QUIC = "quic"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """TLS as a client. Certificates and keys are PEM text, or the file that has it, which is read at each connect."""

    ca: str | Path | None = field(default=None, repr=False)
    """Certificates to trust instead of the system's."""
    server_name: str | None = None
    """Name for SNI and for the certificate check; None: the host that is dialled."""
    verify: bool = True
    """Whether the certificate must be trusted, in date and for the server's name."""
    check_name: bool = True
    """Whether the certificate must be for the server's name, if it is verified."""
    pins: tuple[str, ...] = ()
    """Public keys, as `sha256/BASE64`, of which the broker's certificate must have one; checked whether or not it is
    verified. Without verification they alone decide, which is as safe, for a broker with a certificate of its own."""
    certificate: str | Path | None = field(default=None, repr=False)
    private_key: str | Path | None = field(default=None, repr=False)
    private_key_password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuicConfig:
    """Timers and limits of a QUIC connection. Times in seconds.

    EMQX neither times out nor pings, so our PING is the only liveness on both ends.
    """

    handshake_timeout: float = 10.0
    ping_interval: float = 15.0
    ping_timeout: float = 5.0
    idle_timeout: float = 30.0
    initial_rtt: float = 0.1
    """Round-trip time to reckon with until it is measured: when to send the first packets again."""
    congestion_control: str = "reno"
    max_datagram_size: int = 1200
    flow_window: int = 256 * 1024
    """Bytes under way: what the broker may send ahead of what the session took, and what the session may write ahead
    of the broker's acknowledgements before it is asked to pause. Bounds what one connection moves in a round trip."""
    early_data: bool = False
    """Send CONNECT with the first flight of a resumed connection (0-RTT).

    Whoever sees it pass can send it to the broker again, though not read it. The broker then takes it for us and ends
    our session's connection, unless it knows such repeats.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """One broker and how to log in there."""

    host: str
    port: int
    client_id: str
    transport: TransportKind = TransportKind.TCP
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: TlsConfig | None = None
    """None: plain TCP. QUIC always uses TLS; None means the defaults there."""
    quic: QuicConfig = QuicConfig()
    keepalive: int = 30
    """Seconds between PINGREQs, whatever the traffic. A broker's Server Keep Alive goes first."""
    ping_timeout: float = 10.0
    """Seconds without any byte after a PINGREQ before the broker counts as gone."""
    connack_timeout: float = 10.0
    """EMQX can take 3 s to answer after a take-over, so not less than about 5."""
    connect_timeout: float = 10.0
    """Seconds for name resolution and the TCP and TLS handshakes (QUIC has its own)."""
    session_expiry: int = 7 * 24 * 3600
    """Seconds the broker keeps our session (and queues for us) while we are away (MQTT 5)."""
    window: int = 1000
    """Most QoS 1 and 2 messages under way to this broker; its own Receive Maximum goes first where it is smaller."""
    receive_maximum: int = 65_535
    """Most QoS 1 and 2 messages that this broker may have under way to us (MQTT 5).

    As many as there are packet identifiers: FlashMQ and NanoMQ drop what exceeds it, FlashMQ also while we are away,
    instead of letting it wait (MQTT 5, 4.9), and brokers that let it wait have a bound of their own that is much lower.
    What we cannot pass on yet stops our reading, by its bytes.
    """
    max_payload: int = 10 * 1024 * 1024
    """Largest payload in bytes that we take from this broker; what is larger is dropped and counted."""
    announce_limit: bool = True
    """Tell the broker the limit (MQTT 5, Maximum Packet Size), so that it keeps larger messages to itself.

    Brokers do so without a word (MQTT 5, 3.1.2.11.4), so without this we can tell of them, at the price of their bytes.
    """

    @property
    def max_packet(self) -> int:
        """Largest packet in bytes that we take: the payload and what comes before it."""
        return self.max_payload + _MAX_HEAD


@dataclass(frozen=True, slots=True, kw_only=True)
class BackoffConfig:
    """Waiting times between attempts, in seconds (decorrelated jitter between base and cap, as mosquitto's bridge)."""

    base: float = 0.5
    cap: float = 30.0
    stable: float = 20.0
    """Connected this long, the next loss starts from `base` again."""
    refused_base: float = 30.0
    refused_cap: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Another address at which the same broker (or cluster) is reached."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverConfig:
    """Endpoints of the remote broker besides its own, and when they are used. Times in seconds.

    Credentials, TLS settings, client identifier and limits are the same for all, so it is one session.
    """

    further: tuple[Endpoint, ...] = ()
    """Over QUIC, tried in this order when the endpoint before does not answer."""
    fallback: Endpoint | None = None
    """MQTT over TLS/TCP, for networks that do not let UDP through. None: QUIC alone."""
    patience: float = 20.0
    """QUIC must have failed for so long ..."""
    attempts: int = 2
    """... and so many times (each address at least once) before the fallback is tried. At the start once is enough."""
    stable: float = 60.0
    """A session that lasted this long was no failure: what ends it is the first of a new row."""
    probe_interval: float = 30.0
    """Between two looks at the preferred endpoints while another one is in use; grows to a tenth of the time there."""
    probe_interval_cap: float = 300.0
    hold_down: float = 60.0
    """A better endpoint must answer all probes for so long before the link moves to it. Doubled each time it is lost
    again soon after."""
    hold_down_cap: float = 3600.0

    def endpoints(self, broker: BrokerConfig) -> list[BrokerConfig]:
        """Return `broker` as it is reached at each of its endpoints, in order of preference."""
        found = [broker, *(replace(broker, host=other.host, port=other.port) for other in self.further)]
        if (fallback := self.fallback) is not None:
            tls = broker.tls or TlsConfig()
            found.append(replace(broker, transport=TransportKind.TCP, host=fallback.host, port=fallback.port, tls=tls))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceConfig:
    """A retained topic at each broker that says whether messages cross to the other one."""

    local_topic: str
    remote_topic: str
    online: str = "online"
    offline: str = "offline"
    """Also the Will, so that a bridge that was killed shows, too."""
    will_delay: int = 5
    """Seconds of absence before the broker publishes the Will (MQTT 5), so that a take-over by our own next connection
    is none: a broker might publish the Will of the old one after the `online` of the new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxConfig:
    """Where and how much to keep on disk while the remote is away."""

    path: Path
    limits: OutboxLimits = field(default_factory=OutboxLimits)
    delay: float = 2.0
    """Seconds the remote must be away before messages go to disk; the local broker's session holds them until then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuicLogConfig:
    """Logs of QUIC for experts."""

    folder: Path
    qlog: bool = False
    """What each connection did, in the format of qlog viewers."""
    key_log: bool = False
    """Secrets in the format of NSS (SSLKEYLOGFILE): with them, others can decrypt the connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeConfig:
    """Everything about the bridge but the local broker, which is looked up afresh for each connection."""

    remote: BrokerConfig
    routes: tuple[Route, ...]
    backoff: BackoffConfig = BackoffConfig()
    local_backoff: BackoffConfig | None = None
    """None: as for the remote."""
    failover: FailoverConfig = FailoverConfig()
    guard: LoopGuard = field(default_factory=LoopGuard)
    presence: PresenceConfig | None = None
    outbox: OutboxConfig | None = None
    """None: what waits for the remote waits in the local broker's session, which keeps only so much."""
    tickets: Path | None = None
    """File for the remote's session tickets, which make reconnecting cheaper; None: each handshake is a full one."""
    quic_logs: QuicLogConfig | None = None


MIN_CONNACK_TIMEOUT: Final = 5.0
"""Seconds; EMQX takes 3 to answer CONNECT when it takes a session over from a node that does not answer."""


class Conflict(NamedTuple):
    """Two settings that do not go together: `low` must not be more than `high` (seconds)."""

    rule: str
    low: float
    high: float


def timer_conflict(broker: BrokerConfig, backoff: BackoffConfig) -> Conflict | None:
    """Return the first of the timers that make a connection fail though the network is well; None if all fit."""
    quic = broker.quic
    rules = (
        # A PING that is not answered must be noticed as such, before QUIC gives up in silence.
        Conflict("ping_over_idle_timeout", quic.ping_interval + quic.ping_timeout, quic.idle_timeout),
        Conflict("keepalive_over_idle_timeout", broker.keepalive, quic.idle_timeout),
        # A handshake takes one round trip, and a lost packet is sent again after two.
        Conflict("rtt_over_handshake_timeout", 3 * quic.initial_rtt, quic.handshake_timeout),
        Conflict("rtt_over_ping_timeout", 2 * quic.initial_rtt, quic.ping_timeout),
        Conflict("connack_timeout_short", MIN_CONNACK_TIMEOUT, broker.connack_timeout),
        Conflict("backoff_base_over_cap", backoff.base, backoff.cap),
    )
    return next((rule for rule in rules if rule.low > rule.high), None)
