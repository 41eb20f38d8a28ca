"""The end of sessions that the bridge does not come back to: a broker would go on filling them for a week."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
import logging
from typing import Final

from homeassistant.core import HomeAssistant, callback
from homeassistant.util import dt as dt_util
from homeassistant.util.hass_dict import HassKey

from .bridge.check import forget_session
from .bridge.config import BrokerConfig
from .bridge.errors import BridgeError
from .bridge.status import LinkState, Side
from .brokers import entry_brokers, entry_presence
from .const import DOMAIN
from .coordinator import QuicBridgeConfigEntry, QuicBridgeCoordinator

_LOGGER = logging.getLogger(__name__)

FAREWELL_TIMEOUT: Final = 4.0
"""Seconds for a broker to take note that the bridge does not come back; at a removal a person waits meanwhile."""
FAREWELL_PATIENCE: Final = 10.0
"""Seconds for all the addresses of a broker."""


_SHARED: Final[HassKey[dict[str, set[Side]]]] = HassKey(f"{DOMAIN}_shared_sessions")
"""Where another client had the session of a bridge when that ran last, by entry."""
_IN_USE: Final = "another client uses it, too"


@callback
def async_remember_shared(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> None:
    """Remember of a bridge that ends now which of its sessions are not its own alone, in case it is removed next."""
    hass.data.setdefault(_SHARED, {})[entry.entry_id] = entry.runtime_data.taken_over


async def async_say_goodbye(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> None:
    """Have both brokers forget a bridge that is removed; its status topics, too.

    Not where another client has the session, too: that of the Home Assistant of which this one is a copy, say.
    """
    presence = entry_presence(entry)
    topics = {} if presence is None else {Side.LOCAL: presence.local_topic, Side.REMOTE: presence.remote_topic}
    shared = hass.data.get(_SHARED, {}).pop(entry.entry_id, set())
    brokers = entry_brokers(hass, entry)
    for side in shared:
        if brokers[side]:  # else nobody knows now which it is
            _tell_kept(side, brokers[side][0], _IN_USE)
    await asyncio.gather(*(_async_forget(side, brokers[side], topics.get(side)) for side in Side if side not in shared))


async def _async_forget(side: Side, endpoints: Sequence[BrokerConfig], status_topic: str | None = None) -> None:
    """Have a broker end a session of ours; if it is away, that stays for a while."""
    deadline = asyncio.get_running_loop().time() + FAREWELL_PATIENCE
    failure: str | None = None
    for broker in endpoints:
        try:
            async with asyncio.timeout_at(deadline), asyncio.timeout(FAREWELL_TIMEOUT):
                await forget_session(broker, status_topic)
        except BridgeError as error:
            failure = failure or error.text
        except TimeoutError:
            failure = failure or "it did not answer in time"
        else:
            _LOGGER.info(
                "The %s broker %s:%d has ended the session of %s", side, broker.host, broker.port, broker.client_id
            )
            return
    if failure is not None:
        _tell_kept(side, endpoints[0], failure)


def _tell_kept(side: Side, broker: BrokerConfig, reason: str) -> None:
    """Say what stays at a broker that could not be told, or must not."""
    until = dt_util.now() + timedelta(seconds=broker.session_expiry)
    _LOGGER.info(
        "The %s broker %s:%d keeps the session of %s until %s, or as long as it does with MQTT 3.1.1: %s",
        side,
        broker.host,
        broker.port,
        broker.client_id,
        f"{until:%Y-%m-%d %H:%M}",
        reason,
    )


@dataclass(frozen=True, slots=True)
class FormerSession:
    """A session that the changed settings of a bridge lead away from."""

    side: Side
    endpoints: list[BrokerConfig]
    kept: str | None
    """Why it must not be ended; None: it may be."""


async def async_part(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> list[FormerSession]:
    """Empty the sessions that a bridge, which still runs, will not come back to with the entry's changed settings."""
    coordinator = entry.runtime_data
    return list(
        await asyncio.gather(
            *(
                _async_part(coordinator, side, coordinator.brokers[side])
                for side, endpoints in entry_brokers(hass, entry).items()
                if endpoints and coordinator.brokers[side]
                if _identity(endpoints[0]) != _identity(coordinator.brokers[side][0])
            )
        )
    )


async def _async_part(coordinator: QuicBridgeCoordinator, side: Side, endpoints: list[BrokerConfig]) -> FormerSession:
    kept: str | None = None
    if side in coordinator.taken_over:
        kept = _IN_USE
    elif coordinator.data.link(side).state is not LinkState.CONNECTED:
        kept = "the bridge was not connected there when its settings were changed"
    elif not await coordinator.bridge.leave_empty(side):
        kept = "messages wait in it; the bridge gets them if it is set to this broker and client identifier again"
    return FormerSession(side, endpoints, kept)


@callback
def async_end_former(hass: HomeAssistant, entry: QuicBridgeConfigEntry, sessions: Sequence[FormerSession]) -> None:
    """End sessions in the background, as soon as the new settings have proved good."""
    for session in sessions:
        if session.kept is not None:
            _tell_kept(session.side, session.endpoints[0], session.kept)
        else:
            _ = entry.async_create_background_task(  # until the next change
                hass, _async_end(entry.runtime_data, session), f"quic_bridge {session.side} former session"
            )


async def _async_end(coordinator: QuicBridgeCoordinator, session: FormerSession) -> None:
    """Wait until the broker has let the bridge in with its new settings, then end the former session.

    Until then a person may change them back. And only then it is seen whether this is another session at all: a host
    has several names, a broker several ports, and some go by the username in place of the client identifier.
    """
    connected = asyncio.Event()

    @callback
    def look() -> None:
        if coordinator.data.link(session.side).state is LinkState.CONNECTED:
            connected.set()

    remove = coordinator.async_add_listener(look)
    try:
        look()
        await connected.wait()
    finally:
        remove()
    if coordinator.data.link(session.side).session_present:
        _LOGGER.debug("The %s broker is the same as before, and so is the session", session.side)
    else:
        await _async_forget(session.side, session.endpoints)


def _identity(broker: BrokerConfig) -> tuple[str, int, str]:
    return broker.host, broker.port, broker.client_id
