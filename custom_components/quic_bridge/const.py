"""Names that are stored in config entries, used in flows, or shared between platforms."""

from typing import Final

DOMAIN: Final = "quic_bridge"

# entry.options
CONF_PAUSED: Final = "paused"
"""Whether the bridge is to rest; changed by its switch, and kept here because that outlasts a power cut."""

# Pages of the options flow, and keys of entry.options: one mapping for each page.
PAGE_CONNECTION: Final = "connection"
PAGE_MESSAGES: Final = "messages"
PAGE_PRESENCE: Final = "presence"
PAGE_EXPERT: Final = "expert"

# Keys of the page `connection`, in the units of the form (see options.py).
CONF_PROFILE: Final = "profile"
CONF_KEEPALIVE: Final = "keepalive"
CONF_PING_INTERVAL: Final = "ping_interval"
CONF_PING_TIMEOUT: Final = "ping_timeout"
CONF_IDLE_TIMEOUT: Final = "idle_timeout"
CONF_HANDSHAKE_TIMEOUT: Final = "handshake_timeout"
CONF_CONNACK_TIMEOUT: Final = "connack_timeout"
CONF_INITIAL_RTT: Final = "initial_rtt"
CONF_CONGESTION_CONTROL: Final = "congestion_control"
CONF_MAX_DATAGRAM_SIZE: Final = "max_datagram_size"
CONF_BACKOFF_BASE: Final = "backoff_base"
CONF_BACKOFF_CAP: Final = "backoff_cap"
CONF_BACKOFF_STABLE: Final = "backoff_stable"
CONF_SESSION_EXPIRY: Final = "session_expiry"
CONF_SEND_WINDOW: Final = "send_window"
CONF_RECEIVE_WINDOW: Final = "receive_window"
CONF_FLOW_WINDOW: Final = "flow_window"

# Keys of the page `presence`.
CONF_ANNOUNCE: Final = "announce"
"""Whether there is a status topic at all."""
CONF_STATUS_TOPIC: Final = "status_topic"
"""May have `{client_id}` in it."""
CONF_PAYLOAD_ONLINE: Final = "payload_online"
CONF_PAYLOAD_OFFLINE: Final = "payload_offline"

# Keys of the page `expert`.
CONF_EARLY_DATA: Final = "early_data"
CONF_QLOG: Final = "qlog"
CONF_KEY_LOG: Final = "key_log"

# Keys of the page `messages`, in the units of the form (see options.py).
CONF_MAX_PAYLOAD: Final = "max_payload"
CONF_LOOP_GUARD: Final = "loop_guard"
"""How far a message may come over bridges (a GuardMode)."""
CONF_MOST_BRIDGES: Final = "most_bridges"
CONF_OUTBOX_MESSAGES: Final = "outbox_messages"
CONF_OUTBOX_SIZE: Final = "outbox_size"
CONF_OUTBOX_DAYS: Final = "outbox_days"
SECTION_OUTBOX: Final = "outbox"

# entry.data: one mapping for each broker.
CONF_LOCAL: Final = "local"
CONF_REMOTE: Final = "remote"

# Keys of these two mappings, besides Home Assistant's own (host, port, username, password, client_id).
CONF_MODE: Final = "mode"
CONF_USE_TLS: Final = "use_tls"
"""Local only: the remote is reached over QUIC, which always uses TLS."""
CONF_CA: Final = "ca"
CONF_SERVER_NAME: Final = "server_name"
CONF_VERIFY: Final = "verify"
CONF_PINS: Final = "pins"
CONF_CERTIFICATE: Final = "certificate"
CONF_PRIVATE_KEY: Final = "private_key"
CONF_PRIVATE_KEY_PASSWORD: Final = "private_key_password"  # noqa: S105 - the name of a key
"""These four only where they are set. CA, certificate and key are PEM text, or the path of a file."""

CONF_ADDRESSES: Final = "addresses"
"""Remote only: further QUIC addresses, a list of mappings with host and port. Entries of before lack it."""
CONF_FALLBACK: Final = "fallback"
"""Remote only: host (None: that of the broker) and port for MQTT over TLS/TCP; None: off. Entries of before lack it."""

# Fields and sections of the flows which are not stored under these names.
CONF_USE_FALLBACK: Final = "use_fallback"
CONF_FALLBACK_HOST: Final = "fallback_host"
CONF_FALLBACK_PORT: Final = "fallback_port"
SECTION_FALLBACK: Final = "fallback"
CONF_CA_FILE: Final = "ca_file"
CONF_CERTIFICATE_FILE: Final = "certificate_file"
CONF_PRIVATE_KEY_FILE: Final = "private_key_file"
CONF_SEND: Final = "send"
CONF_RECEIVE: Final = "receive"
CONF_CONFIG_FILE: Final = "config_file"
CONF_CONFIG_TEXT: Final = "config_text"
CONF_BRIDGE: Final = "bridge"
SECTION_TLS: Final = "tls"
SECTION_ADVANCED: Final = "advanced"
REAUTH_SIDE: Final = "reauth_side"
"""Key in a reauth flow's data: which broker refuses the credentials (a Side)."""

SUBENTRY_ROUTE: Final = "route"

# Keys of a route's data, besides Home Assistant's own (enabled, exclude, target). Those of the flow are sorted into
# sections.
CONF_DIRECTION: Final = "direction"
CONF_TOPIC_FILTER: Final = "topic_filter"
CONF_MAX_QOS: Final = "max_qos"
CONF_RETAIN: Final = "retain"
CONF_RETAINED: Final = "retained"
CONF_QOS_0: Final = "qos_0"
CONF_MAX_AGE: Final = "max_age"
"""Seconds; None: no limit."""
CONF_PRIORITY: Final = "priority"
CONF_OWN_STREAM: Final = "own_stream"
SECTION_SELECTION: Final = "selection"
SECTION_RETAINED: Final = "retained_messages"
SECTION_OUTAGE: Final = "outage"
SECTION_TRANSPORT: Final = "transport"

# Fields of the presets for routes (and Home Assistant's prefix).
CONF_SITE: Final = "site"
CONF_COMMANDS: Final = "commands"
