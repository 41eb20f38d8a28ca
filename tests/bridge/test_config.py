"""Settings that do not go together."""

from dataclasses import replace

import pytest

from custom_components.quic_bridge.bridge.config import (
    BackoffConfig,
    BrokerConfig,
    Conflict,
    QuicConfig,
    timer_conflict,
)

BROKER = BrokerConfig(host="broker", port=14567, client_id="bridge")


def test_the_defaults_fit() -> None:
    assert timer_conflict(BROKER, BackoffConfig()) is None


@pytest.mark.parametrize(
    ("broker", "quic", "backoff", "conflict"),
    [
        ({}, {"ping_interval": 25, "ping_timeout": 5}, {}, None),
        ({}, {"ping_interval": 25, "ping_timeout": 6}, {}, ("ping_over_idle_timeout", 31, 30)),
        ({}, {"idle_timeout": 19}, {}, ("ping_over_idle_timeout", 20, 19)),
        ({"keepalive": 31}, {}, {}, ("keepalive_over_idle_timeout", 31, 30)),
        ({"keepalive": 31}, {"idle_timeout": 31}, {}, None),
        ({}, {"initial_rtt": 1, "handshake_timeout": 3}, {}, None),
        ({}, {"initial_rtt": 1, "handshake_timeout": 2.9}, {}, ("rtt_over_handshake_timeout", 3, 2.9)),
        ({}, {"initial_rtt": 1, "ping_timeout": 2}, {}, None),
        ({}, {"initial_rtt": 1, "ping_timeout": 1.9}, {}, ("rtt_over_ping_timeout", 2, 1.9)),
        ({"connack_timeout": 5}, {}, {}, None),
        ({"connack_timeout": 4.9}, {}, {}, ("connack_timeout_short", 5, 4.9)),
        ({}, {}, {"base": 30, "cap": 30}, None),
        ({}, {}, {"base": 31, "cap": 30}, ("backoff_base_over_cap", 31, 30)),
    ],
)
def test_timers(
    broker: dict[str, int],
    quic: dict[str, float],
    backoff: dict[str, float],
    conflict: tuple[str, float, float] | None,
) -> None:
    changed = replace(BROKER, quic=QuicConfig(**quic), **broker)  # type: ignore[arg-type] # numbers
    expected = None if conflict is None else Conflict(*conflict)
    assert timer_conflict(changed, BackoffConfig(**backoff)) == expected
