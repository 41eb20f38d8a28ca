"""Repair issues: what a person must mend, shown for as long as it is so."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from homeassistant.config_entries import ConfigEntry
from homeassistant.core import CALLBACK_TYPE, HomeAssistant, callback
from homeassistant.helpers.event import async_call_later
from homeassistant.helpers.issue_registry import IssueSeverity, async_create_issue, async_delete_issue

from .bridge.config import BrokerConfig
from .bridge.errors import AUTHENTICATION_ERRORS, BridgeError, ErrorCode
from .bridge.status import BridgeStatus, LinkState, LinkStatus, OutboxStatus, Side
from .brokers import local_broker, outbox_path, remote_broker, uses_home_assistant_broker
from .const import CONF_LOCAL, CONF_REMOTE, DOMAIN
from .route_data import code, route_title
from .route_problems import Problem, RouteProblem

MAX_LISTED: Final = 20
"""Routes named in one issue."""
TAKEN_OVER_SHOWN: Final = 600.0
"""Seconds without another client in our place after which there seems to be none any more."""


class BridgeIssues:
    """Keeps the repair issues of one bridge true."""

    def __init__(self, hass: HomeAssistant, entry: ConfigEntry) -> None:
        """Begin without an issue."""
        self._hass = hass
        self._entry = entry
        self._shown: dict[str, object] = {}
        """What each issue that is shown is about, by its name."""
        self._taken_over: dict[Side, datetime] = {}
        """When it happened last."""
        self._timers: dict[Side, CALLBACK_TYPE] = {}

    @callback
    def async_follow(self, status: BridgeStatus, problems: Sequence[RouteProblem]) -> None:
        """Create, change and delete issues as the status and the problems with routes have it."""
        self._follow_outbox(status.outbox)
        for side, link in ((Side.LOCAL, status.local), (Side.REMOTE, status.remote)):
            self._follow_refusal(side, link)
            self._follow_subscriptions(side, problems)
            self._follow_client_id(side, link)
            self._follow_verification(side)

    @callback
    def async_clear(self) -> None:
        """Delete all issues: nothing is known of a bridge that does not run."""
        for name in tuple(self._shown):
            self._hide(name)
        for cancel in self._timers.values():
            cancel()
        self._timers.clear()

    def _follow_outbox(self, outbox: OutboxStatus | None) -> None:
        """Show an Outbox that does not work: else that would be seen only when messages are lost."""
        if outbox is None or outbox.fault is None:
            self._hide("outbox")
        else:
            path = str(outbox_path(self._hass, self._entry))
            self._show("outbox", outbox.fault, f"outbox_{outbox.fault}", path=path, detail=outbox.error or "")

    def _follow_subscriptions(self, side: Side, problems: Sequence[RouteProblem]) -> None:
        """Show the routes that a broker refuses: nothing else would tell that their messages do not cross."""
        name = f"subscriptions_refused_{side}"
        refused = [problem for problem in problems if problem.problem is Problem.REFUSED and problem.side is side]
        if refused:
            lines = [f"- {code(route_title(problem.route))}: {problem.reason}" for problem in refused]
            self._show(name, lines, name, routes=_listed(lines))
        else:
            self._hide(name)

    def _follow_refusal(self, side: Side, link: LinkStatus) -> None:
        """Show why a broker refuses us, if it takes more than other credentials, for which there is a form already."""
        name = f"refused_{side}"
        if link.state is LinkState.REFUSED and link.error is not None:
            error = link.error
            if error.code not in AUTHENTICATION_ERRORS:
                self._show(name, error.code, f"refused_{error.code}", side, detail=error.text)
                return
            if side is Side.LOCAL and uses_home_assistant_broker(self._entry):
                # Of these credentials the MQTT integration takes care, but for it they may do.
                self._show(name, error.code, "refused_mqtt_credentials", side, detail=error.text)
                return
        if link.state is not LinkState.CONNECTING:  # then nothing is known yet
            self._hide(name)

    def _follow_client_id(self, side: Side, link: LinkStatus) -> None:
        """Show that another client takes our place, until that has not happened for a while."""
        error = link.error
        if error is None or error.code is not ErrorCode.SESSION_TAKEN_OVER or self._taken_over.get(side) == error.at:
            return
        self._taken_over[side] = error.at
        name = f"taken_over_{side}"

        @callback
        def seems_over(_: datetime) -> None:
            del self._timers[side]
            self._hide(name)

        if side in self._timers:
            self._timers[side]()
        self._timers[side] = async_call_later(self._hass, TAKEN_OVER_SHOWN, seems_over)
        broker = self._broker(side)
        self._show(name, True, "session_taken_over", side, client_id=code(broker.client_id) if broker else "")

    def _follow_verification(self, side: Side) -> None:
        """Show that a broker's certificate is not verified: what was meant for a test is easily forgotten."""
        name = f"verification_off_{side}"
        broker = self._broker(side)
        if broker is not None and broker.tls is not None and not broker.tls.verify:
            self._show(name, True, "verification_off", side)
        else:
            self._hide(name)

    def _broker(self, side: Side) -> BrokerConfig | None:
        if side is Side.REMOTE:
            return remote_broker(self._entry.data[CONF_REMOTE])
        try:
            return local_broker(self._hass, self._entry.data[CONF_LOCAL])
        except BridgeError:
            return None

    def _show(self, name: str, about: object, translation_key: str, side: Side | None = None, **details: str) -> None:
        """Show an issue; with `side` it is one that the settings of that broker may mend."""
        if self._shown.get(name) == about:
            return
        self._shown[name] = about
        placeholders = {"name": self._entry.title, **details}
        if side is not None:
            broker = self._broker(side)
            placeholders |= {"host": broker.host, "port": str(broker.port)} if broker else {"host": "", "port": ""}
        async_create_issue(
            self._hass,
            DOMAIN,
            self._issue_id(name),
            data=None if side is None else {"entry_id": self._entry.entry_id, "side": side.value},
            is_fixable=side is not None,
            severity=IssueSeverity.WARNING,
            translation_key=translation_key,
            translation_placeholders=placeholders,
        )

    def _hide(self, name: str) -> None:
        if self._shown.pop(name, None) is not None:
            async_delete_issue(self._hass, DOMAIN, self._issue_id(name))

    def _issue_id(self, name: str) -> str:
        return f"{name}_{self._entry.entry_id}"


def _listed(lines: list[str]) -> str:
    """Return a list in Markdown that stays readable."""
    return "\n".join([*lines[:MAX_LISTED], *(["- ..."] if len(lines) > MAX_LISTED else [])])
