"""Ties a bridge to Home Assistant: its status to entities and reauth, and changes of the mqtt entry to the bridge."""

import asyncio
import logging
from typing import override

from homeassistant.config_entries import SIGNAL_CONFIG_ENTRY_CHANGED, ConfigEntry, ConfigEntryChange
from homeassistant.core import HassJob, HomeAssistant, callback
from homeassistant.exceptions import ServiceValidationError
from homeassistant.helpers.dispatcher import async_dispatcher_connect
from homeassistant.helpers.update_coordinator import DataUpdateCoordinator

from .bridge.bridge import Bridge
from .bridge.config import BrokerConfig
from .bridge.errors import AUTHENTICATION_ERRORS, ErrorCode
from .bridge.routes import Route, hidden_routes
from .bridge.status import BridgeStatus, LinkState, LinkStatus, Side
from .brokers import MQTT_DOMAIN, bridge_config, entry_brokers, entry_local_broker, uses_home_assistant_broker
from .const import CONF_PAUSED, DOMAIN, REAUTH_SIDE
from .history import History
from .issues import BridgeIssues
from .route_data import routes_in_use
from .route_problems import RouteProblem, route_problems
from .subscription_memory import SubscriptionMemory

_LOGGER = logging.getLogger(__name__)

type QuicBridgeConfigEntry = ConfigEntry[QuicBridgeCoordinator]


def _settings(entry: ConfigEntry) -> tuple[object, ...]:
    """Return all of an entry that a change of makes a new bridge: neither its routes nor whether it is paused."""
    return entry.title, entry.data, {key: value for key, value in entry.options.items() if key != CONF_PAUSED}


class QuicBridgeCoordinator(DataUpdateCoordinator[BridgeStatus]):
    """Owns the bridge of one config entry. The bridge pushes its status; nothing is polled."""

    config_entry: QuicBridgeConfigEntry

    def __init__(self, hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> None:
        """Make the bridge for `entry`; `async_start` starts it."""
        super().__init__(hass, _LOGGER, config_entry=entry, name=entry.title)
        self._routes, self.unreadable_routes = routes_in_use(entry)
        """Beside the routes the titles of those that are left out, as nobody here knows what they mean, with why."""
        self._hidden: dict[str, Route] = {}
        self.bridge = self._make_bridge()
        self.data = self.bridge.status
        self._pausing = asyncio.Lock()
        self._applying = asyncio.Lock()
        self._unread = False
        """The entry's routes have changed since they were read."""
        self._subscriptions = SubscriptionMemory(hass, entry)
        self._settings = _settings(entry)
        self._refused: set[Side] = set()
        self.brokers = entry_brokers(hass, entry)
        """Both brokers as the bridge knows them, at each endpoint; no local one if it was not known."""
        self.taken_over: set[Side] = set()
        """Where another client had our client identifier, since the bridge was made."""
        self._issues = BridgeIssues(hass, entry)
        self.history = History()
        self.unique_ids: set[str] = set()
        """Those of the entities that this version has, also of the ones that are disabled."""
        self.route_problems: tuple[RouteProblem, ...] = ()
        self._looked_at: object = None
        """What `route_problems` were found in."""

    def _make_bridge(self) -> Bridge:
        config = bridge_config(self.hass, self.config_entry, self._routes)
        return Bridge(config, self._local_broker, self._async_status_changed)

    async def async_start(self) -> None:
        """Start the bridge, unless it is paused; it connects in the background, however long that takes."""
        # A shutdown job runs while our tasks are still alive. Home Assistant does not unload entries when it stops.
        self.config_entry.async_on_unload(
            self.hass.async_add_shutdown_job(HassJob(self.async_shutdown, f"stop {self.name}"))
        )
        if uses_home_assistant_broker(self.config_entry):
            self.config_entry.async_on_unload(
                async_dispatcher_connect(self.hass, SIGNAL_CONFIG_ENTRY_CHANGED, self._async_entry_changed)
            )
        async with self._applying:
            await self._async_compare_routes()
        await self._subscriptions.async_load()
        self._subscriptions.async_remind(self.bridge)
        if not self.paused:
            await self.bridge.start()
        self._async_status_changed(self.bridge.status)

    @override
    async def async_shutdown(self) -> None:
        """Stop the bridge; idempotent, a matter of seconds at most.

        From now on the entities keep their last state: a sensor that says "disconnected" at every restart of
        Home Assistant would set off people's alarms for nothing.
        """
        await super().async_shutdown()
        await self.bridge.stop()
        await self._subscriptions.async_save()
        self._issues.async_clear()

    @property
    def paused(self) -> bool:
        """Whether the bridge is to rest."""
        return bool(self.config_entry.options.get(CONF_PAUSED, False))

    async def async_set_paused(self, paused: bool) -> None:
        """Leave both brokers, which then keep messages for us, or go on; remembered over restarts."""
        async with self._pausing:
            if paused == self.paused or self._shutdown_requested:
                return
            options = {**self.config_entry.options, CONF_PAUSED: paused}
            self.hass.config_entries.async_update_entry(self.config_entry, options=options)
            if paused:
                await self.bridge.stop()
            else:
                self.bridge = self._make_bridge()
                self._subscriptions.async_remind(self.bridge)
                await self.bridge.start()
            self._async_status_changed(self.bridge.status)

    @callback
    def async_reconnect(self, side: Side | None = None) -> None:
        """Connect one side, or both, anew at once; ServiceValidationError while the bridge is paused."""
        self.async_require_running()
        self.bridge.reconnect(side)

    @callback
    def async_require_running(self) -> None:
        """Raise ServiceValidationError while the bridge is paused."""
        if self.paused:
            raise ServiceValidationError(
                translation_domain=DOMAIN,
                translation_key="bridge_paused",
                translation_placeholders={"name": self.config_entry.title},
            )

    @property
    def settings_changed(self) -> bool:
        """Whether the entry has changed in more than its routes since the bridge was made."""
        return _settings(self.config_entry) != self._settings

    async def async_apply_routes(self) -> None:
        """Follow the entry's routes without dropping a connection.

        Where many are changed at a time, Home Assistant calls this for each of them: they are followed in one go.
        """
        self._unread = True
        async with self._applying:
            await asyncio.sleep(0)  # whoever changes them may not be done yet
            if not self._unread:
                return
            self._unread = False
            self._routes, self.unreadable_routes = routes_in_use(self.config_entry)
            await self._async_compare_routes()
            await self.bridge.apply_routes(self._routes)
            self._async_status_changed(self.bridge.status)

    async def _async_compare_routes(self) -> None:
        """Find the routes that others hide, which may take a moment, if there are thousands."""
        self._hidden = await self.hass.async_add_executor_job(hidden_routes, self._routes)

    def _local_broker(self) -> BrokerConfig:
        """Return the local broker as it is configured now; called by the bridge before each attempt."""
        return entry_local_broker(self.hass, self.config_entry)

    @callback
    def _async_entry_changed(self, _change: ConfigEntryChange, entry: ConfigEntry) -> None:
        """Reconnect the local side when what the mqtt entry says about its broker has changed."""
        # The signal also comes for every change of state and for every other integration's entries.
        if entry.domain != MQTT_DOMAIN:
            return
        local = entry_brokers(self.hass, self.config_entry)[Side.LOCAL]
        if local == self.brokers[Side.LOCAL]:
            return
        self.brokers[Side.LOCAL] = local
        self.bridge.reconnect(Side.LOCAL)

    @callback
    def _async_status_changed(self, status: BridgeStatus) -> None:
        if self._shutdown_requested:
            return
        self._async_check_credentials(Side.REMOTE, status.remote)
        if not uses_home_assistant_broker(self.config_entry):
            # The credentials of Home Assistant's own broker are the mqtt integration's to ask for.
            self._async_check_credentials(Side.LOCAL, status.local)
        self.taken_over |= {
            side
            for side in Side
            if (error := status.link(side).error) is not None and error.code is ErrorCode.SESSION_TAKEN_OVER
        }
        self.history.follow(status)
        self._subscriptions.async_follow(self.bridge)
        self._find_route_problems(status)
        if self.paused:
            self._issues.async_clear()
        else:
            self._issues.async_follow(status, self.route_problems, self.unreadable_routes)
        self.async_set_updated_data(status)

    def _find_route_problems(self, status: BridgeStatus) -> None:
        """Look at all routes again if there can be anything new; the status comes every few seconds."""
        links = [(link.failed_filters, link.state is LinkState.STOPPED) for link in (status.local, status.remote)]
        looked_at = self._routes, self._hidden, links
        if looked_at != self._looked_at:
            self._looked_at = looked_at
            self.route_problems = tuple(route_problems(self._routes, self._hidden, status))

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
