"""How the bridge is set up for some rounds, chosen by a seeded generator."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from random import Random
from typing import Final

from ..support.bridge_process import BridgeSettings
from .world import World

_PRESENCE: Final[Mapping[str, str | int]] = {
    "local_topic": "presence/remote",
    "remote_topic": "presence/home",
    "will_delay": 1,
}
_FAILOVER: Final[Mapping[str, float]] = {
    "attempts": 1,
    "stable": 2.0,
    "probe_interval": 0.3,
    "hold_down": 1.0,
    "hold_down_cap": 4.0,
}
_BACKOFF: Final[Mapping[str, float]] = {
    "base": 0.05,
    "cap": 0.5,
    "stable": 5.0,
    "refused_base": 0.2,
    "refused_cap": 0.5,
}


class Bound(Enum):
    """What becomes of more messages than the Outbox may have."""

    FAR = "far"
    """It is not reached."""
    DROPS = "drops"
    """The oldest fall, and every one of them must be counted: so the bridge is not killed, which would lose the
    counters."""
    REFUSES = "refuses"
    """The local broker keeps them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A set-up."""

    settings: BridgeSettings
    bound: Bound
    local_3_1_1: bool
    """The local broker speaks no MQTT 5. A broker that hangs up may then be taken for a strict one, of which echoes are
    told by their content: nothing is bridged both ways meanwhile."""
    remote_3_1_1: bool
    text: str


def choose(world: World, random: Random) -> Scenario:
    """Choose a set-up for the bridge in a world."""
    bound = random.choices(list(Bound), (70, 15, 15))[0]
    outbox = bound is not Bound.FAR or random.random() < 0.7
    limits: dict[str, float | str] = {}
    if bound is not Bound.FAR:
        limits["messages" if random.random() < 0.5 else "bytes"] = random.choice((30, 300))
        if "bytes" in limits:
            # What is larger than the whole Outbox falls also where it refuses.
            limits["bytes"] = random.choice((50_000, 500_000)) if bound is Bound.DROPS else 1_200_000
        limits["policy"] = "drop_oldest" if bound is Bound.DROPS else "refuse"
    nat = random.random() < 0.3
    fallback = random.random() < 0.4
    tickets = random.random() < 0.7
    local_3_1_1, remote_3_1_1 = random.choices(((False, False), (True, False), (False, True)), (70, 15, 15))[0]
    early_data = random.random() < 0.5
    settings = replace(
        world.bridge.settings,
        local=(world.gate.host, world.gate.port) if local_3_1_1 else world.local.address,
        remote=world.relay.address if nat else world.front.address,
        outbox=str(world.disk.folder / "outbox.db") if outbox else None,
        outbox_delay=random.choice((0.1, 0.5, 2.0)),
        outbox_limits=limits,
        fallback=(world.remote.host, world.remote.tls_port) if fallback else None,
        failover={"patience": random.choice((0.0, 1.0)), **_FAILOVER},
        presence=random.choice((None, _PRESENCE)),
        tickets=str(world.folder / "tickets") if tickets else None,
        broker={
            "window": random.choice((20, 100, 1000)),
            "keepalive": random.choice((2, 5, 30)),
            "ping_timeout": 2.0,
            # Longer than a broker is frozen, or it would find dead connections (see broker_log.py).
            "connack_timeout": 10.0,
            "connect_timeout": 3.0,
        },
        quic={
            "handshake_timeout": 2.0,
            "ping_interval": 0.6,
            "ping_timeout": 0.8,
            "idle_timeout": 6.0,
            "early_data": early_data,
        },
        backoff=_BACKOFF,
    )
    words = [
        f"window {settings.broker['window']}, keepalive {settings.broker['keepalive']} s",
        f"Outbox after {settings.outbox_delay:g} s" if outbox else "no Outbox",
        " and ".join(f"{name} {value}" for name, value in limits.items()),
        "MQTT 3.1.1 at home" if local_3_1_1 else "",
        "MQTT 3.1.1 at the remote" if remote_3_1_1 else "",
        "behind a NAT" if nat else "",
        "TLS/TCP as the way round" if fallback else "",
        "tickets and early data" if tickets and early_data else "tickets" if tickets else "",
        "presence" if settings.presence is not None else "",
    ]
    return Scenario(
        settings=settings,
        bound=bound,
        local_3_1_1=local_3_1_1,
        remote_3_1_1=remote_3_1_1,
        text=", ".join(word for word in words if word),
    )
