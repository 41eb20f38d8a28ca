"""Ties a bridge to Home Assistant: its status to entities and reauth, and changes of the mqtt entry to the bridge."""

import logging
from typing import override

from homeassistant.config_entries import SIGNAL_CONFIG_ENTRY_CHANGED, ConfigEntry, ConfigEntryChange
from homeassistant.core import HassJob, HomeAssistant, callback
from homeassistant.helpers.dispatcher import async_dispatcher_connect
from homeassistant.helpers.issue_registry import IssueSeverity, async_create_issue, async_delete_issue
from homeassistant.helpers.update_coordinator import DataUpdateCoordinator

from .bridge.bridge import Bridge
from .bridge.config import BrokerConfig
from .bridge.errors import AUTHENTICATION_ERRORS, BridgeError
from .bridge.outbox_model import OutboxFault
from .bridge.status import BridgeStatus, LinkState, LinkStatus, OutboxStatus, Side
from .brokers import MQTT_DOMAIN, bridge_config, local_broker, outbox_path, uses_home_assistant_broker
from .const import CONF_LOCAL, DOMAIN, REAUTH_SIDE

_LOGGER = logging.getLogger(__name__)

type QuicBridgeConfigEntry = ConfigEntry[QuicBridgeCoordinator]


def _settings(entry: ConfigEntry) -> tuple[object, ...]:
    """Return all of an entry that the bridge and its device are made from, but the routes."""
    return entry.title, entry.data, entry.options


class QuicBridgeCoordinator(DataUpdateCoordinator[BridgeStatus]):
    """Owns the bridge of one config entry. The bridge pushes its status; nothing is polled."""

    config_entry: QuicBridgeConfigEntry

    def __init__(self, hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> None:
        """Make the bridge for `entry`; `async_start` starts it."""
        super().__init__(hass, _LOGGER, config_entry=entry, name=entry.title)
        self.bridge = Bridge(bridge_config(hass, entry), self._local_broker, self._async_status_changed)
        self.data = self.bridge.status
        self._settings = _settings(entry)
        self._refused: set[Side] = set()
        self._mqtt_broker = self._read_mqtt_broker()
        self._outbox_issue = f"outbox_{entry.entry_id}"
        self._outbox_fault: OutboxFault | None = None

    async def async_start(self) -> None:
        """Start the bridge; it connects in the background, however long that takes."""
        # A shutdown job runs while our tasks are still alive. Home Assistant does not unload entries when it stops.
        self.config_entry.async_on_unload(
            self.hass.async_add_shutdown_job(HassJob(self.async_shutdown, f"stop {self.name}"))
        )
        if uses_home_assistant_broker(self.config_entry):
            self.config_entry.async_on_unload(
                async_dispatcher_connect(self.hass, SIGNAL_CONFIG_ENTRY_CHANGED, self._async_entry_changed)
            )
        await self.bridge.start()

    @override
    async def async_shutdown(self) -> None:
        """Stop the bridge; idempotent, a matter of seconds at most.

        From now on the entities keep their last state: a sensor that says "disconnected" at every restart of
        Home Assistant would set off people's alarms for nothing.
        """
        await super().async_shutdown()
        await self.bridge.stop()
        async_delete_issue(self.hass, DOMAIN, self._outbox_issue)

    @property
    def settings_changed(self) -> bool:
        """Whether the entry has changed in more than its routes since the bridge was made."""
        return _settings(self.config_entry) != self._settings

    async def async_apply_routes(self) -> None:
        """Follow the entry's routes without dropping a connection."""
        await self.bridge.apply_routes(bridge_config(self.hass, self.config_entry).routes)

    def _local_broker(self) -> BrokerConfig:
        """Return the local broker as it is configured now; called by the bridge before each attempt."""
        return local_broker(self.hass, self.config_entry.data[CONF_LOCAL])

    def _read_mqtt_broker(self) -> BrokerConfig | None:
        try:
            return self._local_broker()
        except BridgeError:
            return None

    @callback
    def _async_entry_changed(self, _change: ConfigEntryChange, entry: ConfigEntry) -> None:
        """Reconnect the local side when what the mqtt entry says about its broker has changed."""
        # The signal also comes for every change of state and for every other integration's entries.
        if entry.domain != MQTT_DOMAIN or (broker := self._read_mqtt_broker()) == self._mqtt_broker:
            return
        self._mqtt_broker = broker
        self.bridge.reconnect(Side.LOCAL)

    @callback
    def _async_status_changed(self, status: BridgeStatus) -> None:
        if self._shutdown_requested:
            return
        self._async_check_credentials(Side.REMOTE, status.remote)
        if not uses_home_assistant_broker(self.config_entry):
            # The credentials of Home Assistant's own broker are the mqtt integration's to ask for.
            self._async_check_credentials(Side.LOCAL, status.local)
        self._async_check_outbox(status.outbox)
        self.async_set_updated_data(status)

    @callback
    def _async_check_credentials(self, side: Side, link: LinkStatus) -> None:
        """Ask for new credentials once each time a broker begins to refuse them."""
        if link.state is LinkState.CONNECTED:
            self._refused.discard(side)
        elif (
            link.state is LinkState.REFUSED
            and link.error is not None
            and link.error.code in AUTHENTICATION_ERRORS
            and side not in self._refused
        ):
            self._refused.add(side)
            self.config_entry.async_start_reauth(self.hass, data={REAUTH_SIDE: side.value})

    @callback
    def _async_check_outbox(self, outbox: OutboxStatus | None) -> None:
        """Keep a repair issue while the Outbox does not work: else it would show only when messages are lost."""
        fault = outbox.fault if outbox is not None else None
        if fault is self._outbox_fault:
            return
        self._outbox_fault = fault
        if outbox is None or fault is None:
            async_delete_issue(self.hass, DOMAIN, self._outbox_issue)
            return
        async_create_issue(
            self.hass,
            DOMAIN,
            self._outbox_issue,
            is_fixable=False,
            severity=IssueSeverity.WARNING,
            translation_key=f"outbox_{fault}",
            translation_placeholders={
                "name": self.config_entry.title,
                "path": str(outbox_path(self.hass, self.config_entry)),
                "detail": outbox.error or "",
            },
        )
