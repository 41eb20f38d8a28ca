"""Set-up in the user interface: both brokers, really tried, then the topics; later changes of each."""

from collections.abc import Callable, Mapping, Sequence
import logging
from typing import Any, NamedTuple, override

from homeassistant.config_entries import (
    SOURCE_RECONFIGURE,
    ConfigEntry,
    ConfigEntryState,
    ConfigFlowResult,
    ConfigSubentryData,
    ConfigSubentryFlow,
)
from homeassistant.const import CONF_CLIENT_ID, CONF_HOST, CONF_PASSWORD, CONF_PORT
from homeassistant.core import callback
from homeassistant.data_entry_flow import AbortFlow
import probatio

from .bridge.check import check_settings
from .bridge.config import DEFAULT_TLS_PORT, BrokerConfig, TransportKind
from .bridge.errors import AUTHENTICATION_ERRORS, CERTIFICATE_ERRORS, TRANSPORT_ERRORS, BridgeError
from .bridge.routes import Route
from .bridge.status import Side
from .brokers import LocalMode, local_broker, mqtt_entry, new_client_ids, remote_broker, remote_failover
from .const import (
    CONF_FALLBACK,
    CONF_LOCAL,
    CONF_MODE,
    CONF_REMOTE,
    CONF_USE_TLS,
    DOMAIN,
    REAUTH_SIDE,
    SECTION_ADVANCED,
    SECTION_FALLBACK,
    SECTION_TLS,
    SUBENTRY_ROUTE,
)
from .endpoint_forms import endpoint_data, endpoint_form
from .flow_forms import (
    LOCAL_CUSTOM_SCHEMA,
    LOCAL_SCHEMA,
    REAUTH_SCHEMA,
    REMOTE_SCHEMA,
    TOPICS_SCHEMA,
    async_broker_data,
    broker_form,
    credentials,
    error_field,
    first_routes,
)
from .form_error import FormError, abort_if_removed
from .import_flow import ImportFlow, imported_local, imported_options, imported_remote, is_complete
from .options import remote_with_options
from .options_flow import QuicBridgeOptionsFlow
from .route_data import route_title, route_to_data
from .route_flow import RouteSubentryFlow
from .tls_forms import stored_secrets
from .trust_flow import TrustFlow

_LOGGER = logging.getLogger(__name__)


class _Diversion(NamedTuple):
    """A way round to a remote broker that cannot be reached at its own address."""

    problem: FormError
    endpoint: BrokerConfig


class QuicBridgeConfigFlow(ImportFlow, TrustFlow, domain=DOMAIN):
    """Sets up a bridge: local broker, remote broker, first topics. Also changes one broker, or its credentials.

    What comes from another bridge's configuration file goes the same way, with forms that are filled in already.

    Reconfiguring goes through the same steps as setting up, one broker at a time.
    """

    VERSION = 1
    MINOR_VERSION = 1

    def __init__(self) -> None:
        """Begin with client identifiers that nobody else has."""
        super().__init__()
        client_ids = new_client_ids()
        self._local: dict[str, Any] = {CONF_CLIENT_ID: client_ids[Side.LOCAL]}
        self._remote: dict[str, Any] = {CONF_CLIENT_ID: client_ids[Side.REMOTE]}
        self._new_client_id = client_ids[Side.REMOTE]
        self._reauth_side = Side.REMOTE
        self._secrets: dict[str, str] = {}
        """What the form that is shown holds back (see tls_forms.py)."""
        self._typed: dict[str, Any] | None = None
        """What was typed for a remote broker that can be reached by a way round only ..."""
        self._diversion: _Diversion | None = None
        """... and by which, and why."""

    @classmethod
    @callback
    @override
    def async_get_supported_subentry_types(cls, config_entry: ConfigEntry) -> dict[str, type[ConfigSubentryFlow]]:
        """Return the kinds of subentries: routes."""
        return {SUBENTRY_ROUTE: RouteSubentryFlow}

    @staticmethod
    @callback
    @override
    def async_get_options_flow(config_entry: ConfigEntry) -> QuicBridgeOptionsFlow:
        """Return the flow for how the bridge behaves."""
        return QuicBridgeOptionsFlow()

    # --- the steps of setting up, and of reconfiguring ----------------------------------------------------------------

    @override
    async def async_step_user(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Choose how to begin."""
        return self.async_show_menu(step_id="user", menu_options=["local", "import_file"])

    async def async_step_local(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Choose the local broker; without an MQTT integration in Home Assistant there is nothing to choose."""
        if user_input is None and self._imported is not None:
            self._local |= imported_local(self._imported)
            self._remote = {CONF_CLIENT_ID: self._new_client_id, **imported_remote(self._imported)}
        if user_input is None and mqtt_entry(self.hass) is None:
            return await self.async_step_local_custom()
        if user_input is None:
            return self._form("local", LOCAL_SCHEMA, self._local)
        if user_input[CONF_MODE] == LocalMode.CUSTOM:
            return await self.async_step_local_custom()
        local = {CONF_MODE: LocalMode.HOME_ASSISTANT.value, CONF_CLIENT_ID: self._local[CONF_CLIENT_ID]}
        try:
            await self._async_try(LOCAL_SCHEMA, lambda: local_broker(self.hass, local))
        except FormError as error:
            return self._form("local", LOCAL_SCHEMA, user_input, error)
        return await self._async_local_done(local)

    async def async_step_local_custom(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Ask for another local broker."""
        if user_input is None:
            self._secrets = stored_secrets(self._local)
            return self._form("local_custom", LOCAL_CUSTOM_SCHEMA, broker_form(self._local))
        try:
            local = {
                CONF_MODE: LocalMode.CUSTOM.value,
                CONF_CLIENT_ID: self._local[CONF_CLIENT_ID],
                CONF_USE_TLS: user_input[SECTION_TLS][CONF_USE_TLS],
                **await async_broker_data(self.hass, user_input, self._local, self._secrets),
            }
            await self._async_try(LOCAL_CUSTOM_SCHEMA, lambda: local_broker(self.hass, local))
        except FormError as error:
            form = self._form("local_custom", LOCAL_CUSTOM_SCHEMA, user_input, error)
            return await self._async_show_certificate(form, error, self.async_step_local_custom, user_input)
        return await self._async_local_done(local)

    async def _async_local_done(self, local: dict[str, Any]) -> ConfigFlowResult:
        if self.source == SOURCE_RECONFIGURE:
            return self._save(self._get_reconfigure_entry(), Side.LOCAL, local)
        self._local = local
        if self._imported is not None and is_complete(self._imported):
            typed = {**self._remote_form(), CONF_PASSWORD: self._remote[CONF_PASSWORD] or ""}
            return await self.async_step_remote(REMOTE_SCHEMA(typed))
        return await self.async_step_remote()

    def _remote_form(self) -> dict[str, Any]:
        return {**broker_form(self._remote), **endpoint_form(self._remote)}

    async def async_step_remote(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Ask for the remote broker."""
        if user_input is None:
            if self._typed is not None:
                return self._form("remote", REMOTE_SCHEMA, self._typed)
            self._secrets = stored_secrets(self._remote)
            return self._form("remote", REMOTE_SCHEMA, self._remote_form())
        try:
            remote = {
                CONF_CLIENT_ID: _client_id(user_input),
                **await async_broker_data(self.hass, user_input, self._remote, self._secrets),
                **endpoint_data(user_input),
            }
            self._abort_if_configured(remote)
            diversion = await self._async_try_remote(REMOTE_SCHEMA, remote, offer=True)
        except FormError as error:
            form = self._form("remote", REMOTE_SCHEMA, user_input, error)
            return await self._async_show_certificate(form, error, self.async_step_remote, user_input)
        if diversion is None:
            return await self._async_remote_done(remote)
        self._typed, self._remote, self._diversion = user_input, remote, diversion
        if diversion.endpoint.transport is TransportKind.QUIC:
            return await self.async_step_other_address()
        return await self.async_step_no_quic()

    async def async_step_other_address(self, _: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Say that only a further address lets us in, and let the user decide."""
        return self._diversion_menu("other_address")

    async def async_step_no_quic(self, _: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Say that only the fallback can be used from here, and let the user decide."""
        return self._diversion_menu("no_quic")

    def _diversion_menu(self, step_id: str) -> ConfigFlowResult:
        assert self._diversion is not None  # noqa: S101 - the step before has set it
        problem, endpoint = self._diversion
        return self.async_show_menu(
            step_id=step_id,
            menu_options=["use_fallback", "remote"],
            description_placeholders={
                **problem.placeholders,
                "fallback_host": endpoint.host,
                "fallback_port": str(endpoint.port),
            },
        )

    async def async_step_use_fallback(self, _: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Go on with the way round; the bridge changes to the broker's own address by itself when that is good."""
        return await self._async_remote_done(self._remote)

    async def _async_remote_done(self, remote: dict[str, Any]) -> ConfigFlowResult:
        if self.source == SOURCE_RECONFIGURE:
            return self._save(self._get_reconfigure_entry(), Side.REMOTE, remote)
        self._remote = remote
        if self._imported is not None and self._imported.routes:
            return self._create(self._imported.routes)
        return await self.async_step_topics()

    async def async_step_topics(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Ask for the first topics, and finish."""
        if user_input is None:
            return self._form("topics", TOPICS_SCHEMA, None)
        try:
            routes = first_routes(user_input)
        except FormError as error:
            return self._form("topics", TOPICS_SCHEMA, user_input, error)
        return self._create(routes)

    def _create(self, routes: Sequence[Route]) -> ConfigFlowResult:
        self._abort_if_configured(self._remote)  # in another window, since its step
        return self.async_create_entry(
            title=self._remote[CONF_HOST],
            data={CONF_LOCAL: self._local, CONF_REMOTE: self._remote},
            options={} if self._imported is None else imported_options(self._imported),
            subentries=[
                ConfigSubentryData(
                    subentry_type=SUBENTRY_ROUTE,
                    title=route_title(route),
                    unique_id=None,
                    data=route_to_data(route),
                )
                for route in routes
            ],
        )

    async def async_step_reconfigure(self, _: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Choose which broker to change."""
        entry = self._get_reconfigure_entry()
        # What is missing in an entry that cannot be read is asked for.
        self._local |= entry.data.get(CONF_LOCAL, {})
        self._remote |= entry.data.get(CONF_REMOTE, {})
        return self.async_show_menu(step_id="reconfigure", menu_options=["local", "remote"])

    # --- credentials that are refused ---------------------------------------------------------------------------------

    async def async_step_reauth(self, entry_data: Mapping[str, Any]) -> ConfigFlowResult:
        """Note which broker refuses."""
        self._reauth_side = Side(entry_data.get(REAUTH_SIDE, Side.REMOTE))
        return await self.async_step_reauth_confirm()

    async def async_step_reauth_confirm(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Ask for credentials (or another client identifier) that the broker accepts."""
        entry, side = self._get_reauth_entry(), self._reauth_side
        stored = entry.data[side.value]
        where = {CONF_HOST: stored[CONF_HOST], CONF_PORT: str(stored[CONF_PORT])}
        if user_input is None:
            return self._form("reauth_confirm", REAUTH_SCHEMA, broker_form(stored), placeholders=where)
        try:
            broker = {**stored, **credentials(user_input, stored), CONF_CLIENT_ID: _client_id(user_input)}
            if side is Side.REMOTE:
                self._abort_if_configured(broker)
                await self._async_try_remote(REAUTH_SCHEMA, broker)
            else:
                await self._async_try(REAUTH_SCHEMA, lambda: local_broker(self.hass, broker))
        except FormError as error:
            return self._form("reauth_confirm", REAUTH_SCHEMA, user_input, error, placeholders=where)
        return self._save(self._get_reauth_entry(), side, broker)

    # --- what the steps share -----------------------------------------------------------------------------------------

    @callback
    @override
    def _get_reconfigure_entry(self) -> ConfigEntry:
        with abort_if_removed():
            return super()._get_reconfigure_entry()

    @callback
    @override
    def _get_reauth_entry(self) -> ConfigEntry:
        with abort_if_removed():
            return super()._get_reauth_entry()

    def _form(
        self,
        step_id: str,
        schema: probatio.Schema,
        values: Mapping[str, Any] | None,
        error: FormError | None = None,
        placeholders: Mapping[str, str] | None = None,
    ) -> ConfigFlowResult:
        return self.async_show_form(
            step_id=step_id,
            data_schema=self.add_suggested_values_to_schema(schema, values),
            errors={error.field: error.key} if error else None,
            description_placeholders={**(placeholders or {}), **(error.placeholders if error else {})},
            last_step=step_id not in {"local", "local_custom", "remote"} or self.source == SOURCE_RECONFIGURE,
        )

    async def _async_try(self, schema: probatio.Schema, broker: Callable[[], BrokerConfig]) -> None:
        """Log in at a broker and out again; raises FormError for the form of `schema`.

        `broker` is called here because it, too, may find that something is wrong.
        """
        placeholders = {}
        config: BrokerConfig | None = None
        try:
            config = broker()
            placeholders = {
                "host": config.host,
                "port": str(config.port),
                "protocol": "UDP" if config.transport is TransportKind.QUIC else "TCP",
                "client_id": config.client_id,
            }
            await check_settings(config)
        except BridgeError as error:
            _LOGGER.debug("Trying the broker failed with %s: %s", error.code, error)
            field = error_field(error.code, schema)
            untrusted = config if field == SECTION_TLS and error.code in CERTIFICATE_ERRORS else None
            raise FormError(field, error.code.value, {**placeholders, "detail": error.text}, untrusted) from error
        except Exception as error:
            _LOGGER.exception("Unexpected error while trying a broker")
            raise FormError("base", "unknown", {"detail": type(error).__name__}) from error

    def _remote_broker(self, remote: Mapping[str, Any]) -> BrokerConfig:
        """Return the remote broker as it is to be tried: as patiently as the bridge does, or will do."""
        options: Mapping[str, Any] = {} if self._imported is None else self._imported.options
        if (entry_id := self.context.get("entry_id")) is not None:
            with abort_if_removed():
                options = self.hass.config_entries.async_get_known_entry(entry_id).options
        return remote_with_options(remote_broker(remote), options)

    def _endpoints(self, remote: Mapping[str, Any]) -> list[BrokerConfig]:
        """Return the remote broker as each of its endpoints is to be tried, in order of preference."""
        return remote_failover(remote).endpoints(self._remote_broker(remote))

    async def _async_try_remote(
        self, schema: probatio.Schema, remote: dict[str, Any], *, offer: bool = False
    ) -> _Diversion | None:
        """Log in at the remote broker at its own address or, where that cannot be reached, by a way round.

        Returns the way round if there is only that. With `offer` a fallback that is off is tried as well, and switched
        on in `remote` if it can be used; one that is on is tried also where QUIC is fine. Raises FormError.
        """
        fallback = remote.get(CONF_FALLBACK)
        diversion: _Diversion | None = None
        broker = self._remote_broker(remote)
        try:
            await self._async_try(schema, lambda: broker)
        except FormError as problem:
            if problem.key not in TRANSPORT_ERRORS:
                raise
            if (endpoint := await self._async_try_further(schema, remote)) is None:
                return await self._async_try_fallback(schema, remote, problem, offer=offer)
            diversion = _Diversion(problem, endpoint)
        if offer and fallback:
            try:
                await self._async_try(schema, lambda: self._endpoints(remote)[-1])
            except FormError as error:
                if error.key not in TRANSPORT_ERRORS:
                    raise
                raise FormError(SECTION_FALLBACK, error.key, error.placeholders) from error
        return diversion

    async def _async_try_further(self, schema: probatio.Schema, remote: Mapping[str, Any]) -> BrokerConfig | None:
        """Return the first of the further addresses that lets us in; FormError if one does not like who we are."""
        for endpoint in self._endpoints({**remote, CONF_FALLBACK: None})[1:]:
            if await self._async_is_good(schema, endpoint):
                return endpoint
        return None

    async def _async_is_good(self, schema: probatio.Schema, endpoint: BrokerConfig) -> bool:
        try:
            await self._async_try(schema, lambda: endpoint)
        except FormError as error:
            if error.key in AUTHENTICATION_ERRORS:
                raise
            return False
        return True

    async def _async_try_fallback(
        self, schema: probatio.Schema, remote: dict[str, Any], problem: FormError, *, offer: bool
    ) -> _Diversion:
        """Log in by the fallback, as QUIC has a problem; raises FormError."""
        fallback = remote.get(CONF_FALLBACK)
        tried = fallback or ({CONF_HOST: None, CONF_PORT: DEFAULT_TLS_PORT} if offer else None)
        if tried is None:
            raise problem
        endpoint = self._endpoints({**remote, CONF_FALLBACK: tried})[-1]
        try:
            await self._async_try(schema, lambda: endpoint)
        except FormError as error:
            # What a broker says of us is the same over QUIC, so that must be mended first.
            if error.key in AUTHENTICATION_ERRORS or (fallback and error.key not in TRANSPORT_ERRORS):
                raise
            raise problem from error
        remote[CONF_FALLBACK] = tried
        return _Diversion(problem, endpoint)

    def _abort_if_configured(self, remote: Mapping[str, Any]) -> None:
        """Abort when another bridge has the same identity at the same remote broker: the two would fight for it."""
        keys = (CONF_HOST, CONF_PORT, CONF_CLIENT_ID)
        for entry in self._async_current_entries(include_ignore=False):
            other = entry.data.get(CONF_REMOTE, {})  # of an entry that cannot be read
            if entry.entry_id != self.context.get("entry_id") and all(other.get(key) == remote[key] for key in keys):
                raise AbortFlow("already_configured")

    def _save(self, entry: ConfigEntry, side: Side, broker: dict[str, Any]) -> ConfigFlowResult:
        """Store a changed broker; the bridge starts afresh, or at least tries this side at once."""
        stored = entry.data.get(side.value, {})
        if stored == broker and entry.state is ConfigEntryState.LOADED:
            entry.runtime_data.bridge.reconnect(side)
        # A title that the user has chosen is left alone.
        follows = side is Side.REMOTE and entry.title == stored.get(CONF_HOST)
        result = self.async_update_and_abort(
            entry, title=broker[CONF_HOST] if follows else entry.title, data_updates={side.value: broker}
        )
        if entry.state is ConfigEntryState.SETUP_ERROR:
            self.hass.config_entries.async_schedule_reload(entry.entry_id)  # nobody listens for the change
        return result


def _client_id(user_input: Mapping[str, Any]) -> str:
    """Return the client identifier from the section of the rarely needed; raises FormError."""
    if not (client_id := user_input[SECTION_ADVANCED][CONF_CLIENT_ID].strip()):
        raise FormError(SECTION_ADVANCED, "client_id_empty")
    return str(client_id)
