"""Repair issues: what a person must mend, shown for as long as it is so."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final

from homeassistant.config_entries import ConfigEntry
from homeassistant.core import CALLBACK_TYPE, HomeAssistant, callback
from homeassistant.helpers.event import async_call_later
from homeassistant.helpers.issue_registry import (
    IssueEntry,
    IssueSeverity,
    async_create_issue,
    async_delete_issue,
    async_get,
)
from homeassistant.util import dt as dt_util

from .bridge.certificates import is_due
from .bridge.config import BrokerConfig
from .bridge.errors import AUTHENTICATION_ERRORS, BridgeError, ErrorCode
from .bridge.outbox_model import OutboxFault
from .bridge.status import BridgeStatus, CertificateStatus, DropReason, LinkState, LinkStatus, OutboxStatus, Side
from .brokers import local_broker, outbox_path, remote_broker, uses_home_assistant_broker
from .const import CONF_LOCAL, CONF_REMOTE, DOMAIN
from .route_data import code, left_out, route_title
from .route_problems import Problem, RouteProblem

MAX_LISTED: Final = 20
"""Routes named in one issue."""
SHOWN_AFTER: Final = 600.0
"""Seconds after which what comes now and then seems to be over: another client in our place, messages in a loop."""


class Fix(StrEnum):
    """What mends an issue (see repairs.py)."""

    SETTINGS = "settings"
    """Those of the broker."""
    OPTIONS = "options"
    """Those about messages."""
    CLIENT_ID = "client_id"
    HIDDEN_ROUTES = "hidden_routes"
    REFUSED_ROUTES = "refused_routes"
    OUTBOX_BOUNDS = "outbox_bounds"
    OUTBOX_FILE = "outbox_file"


_FILE_FAULTS: Final = {OutboxFault.CORRUPT, OutboxFault.TOO_NEW}
"""What a new file mends."""


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
        self._looped = 0
        """Messages that were stopped in a loop so far."""
        self._timers: dict[str, CALLBACK_TYPE] = {}
        """Those of the issues that go by themselves."""

    @callback
    def async_follow(
        self, status: BridgeStatus, problems: Sequence[RouteProblem], unreadable: Mapping[str, str]
    ) -> None:
        """Create, change and delete issues as the status, the problems with routes and the unreadable ones have it."""
        self._follow_outbox(status.outbox)
        self._follow_bounds(status)
        self._follow_loops(status)
        self._follow_unreadable(unreadable)
        self._follow_hidden(problems)
        for side in Side:
            link = status.link(side)
            self._follow_refusal(side, link)
            self._follow_subscriptions(side, problems)
            self._follow_client_id(side, link)
            self._follow_verification(side)
            self._follow_expiry(side, link)

    @callback
    def async_clear(self) -> None:
        """Delete all issues: nothing is known of a bridge that does not run."""
        for name in tuple(self._shown):
            self._rest(name)
        for cancel in self._timers.values():
            cancel()
        self._timers.clear()

    def _follow_outbox(self, outbox: OutboxStatus | None) -> None:
        """Show an Outbox that does not work: else that would be seen only when messages are lost."""
        if outbox is None or outbox.fault is None:
            self._hide("outbox")
            return
        path = str(outbox_path(self._hass, self._entry))
        fix = Fix.OUTBOX_FILE if outbox.fault in _FILE_FAULTS else None
        self._show("outbox", outbox.fault, f"outbox_{outbox.fault}", fix=fix, path=path, detail=outbox.error or "")

    def _follow_bounds(self, status: BridgeStatus) -> None:
        """Show that the Outbox was too small: what fell over its bounds is lost, and will be in the next outage."""
        if status.outbound.dropped.get(DropReason.OUTBOX_FULL):
            self._show("outbox_overflow", True, "outbox_overflow", fix=Fix.OUTBOX_BOUNDS)

    def _follow_loops(self, status: BridgeStatus) -> None:
        """Show that messages come over other bridges and go no further, until none has come for a while."""
        looped = sum(direction.dropped.get(DropReason.LOOP, 0) for direction in (status.outbound, status.inbound))
        if looped > self._looped:
            self._show_for_a_while("loop", "loop", fix=Fix.OPTIONS)
        self._looped = looped

    def _follow_unreadable(self, unreadable: Mapping[str, str]) -> None:
        """Show routes that are left out because of what is stored for them."""
        if unreadable:
            lines = [f"- {code(title)}: {code(reason)}" for title, reason in unreadable.items()]
            self._show("routes_unreadable", lines, "routes_unreadable", routes=_listed(lines))
        else:
            self._hide("routes_unreadable")

    def _follow_hidden(self, problems: Sequence[RouteProblem]) -> None:
        """Show routes that never get a message."""
        lines = [
            f"- {code(route_title(problem.route))}: {code(route_title(problem.other))}"
            for problem in problems
            if problem.other is not None
        ]
        if lines:
            self._show("routes_hidden", lines, "routes_hidden", fix=Fix.HIDDEN_ROUTES, routes=_listed(lines))
        else:
            self._hide("routes_hidden")

    def _follow_subscriptions(self, side: Side, problems: Sequence[RouteProblem]) -> None:
        """Show the routes that a broker refuses: nothing else would tell that their messages do not cross."""
        name = f"subscriptions_refused_{side}"
        lines = [
            f"- {code(route_title(problem.route))}: {problem.reason}"
            for problem in problems
            if problem.problem is Problem.REFUSED and problem.side is side
        ]
        if lines:
            self._show(name, lines, name, side, Fix.REFUSED_ROUTES, routes=_listed(lines))
        else:
            self._hide(name)

    def _follow_refusal(self, side: Side, link: LinkStatus) -> None:
        """Show why a broker refuses us, if it takes more than other credentials, for which there is a form already."""
        name = f"refused_{side}"
        if link.state is LinkState.REFUSED and link.error is not None:
            error = link.error
            if error.code not in AUTHENTICATION_ERRORS:
                self._show(name, error.code, f"refused_{error.code}", side, Fix.SETTINGS, detail=error.text)
                return
            if side is Side.LOCAL and uses_home_assistant_broker(self._entry):
                # Of these credentials the MQTT integration takes care, but for it they may do.
                self._show(name, error.code, "refused_mqtt_credentials", side, Fix.SETTINGS, detail=error.text)
                return
        if link.state is not LinkState.CONNECTING:  # then nothing is known yet
            self._hide(name)

    def _follow_client_id(self, side: Side, link: LinkStatus) -> None:
        """Show that another client takes our place, until that has not happened for a while."""
        error = link.error
        if error is None or error.code is not ErrorCode.SESSION_TAKEN_OVER or self._taken_over.get(side) == error.at:
            return
        self._taken_over[side] = error.at
        broker = self._broker(side)
        client_id = code(broker.client_id) if broker else ""
        self._show_for_a_while(f"taken_over_{side}", "session_taken_over", side, Fix.CLIENT_ID, client_id=client_id)

    def _follow_verification(self, side: Side) -> None:
        """Show that a broker's certificate is not verified: what was meant for a test is easily forgotten."""
        name = f"verification_off_{side}"
        broker = self._broker(side)
        if broker is not None and broker.tls is not None and not (broker.tls.verify or broker.tls.pins):
            self._show(name, True, "verification_off", side, Fix.SETTINGS)
        else:
            self._hide(name)

    def _follow_expiry(self, side: Side, link: LinkStatus) -> None:
        """Show that a certificate is about to run out, in time to renew it."""
        broker = self._broker(side)
        # Where the key alone counts, the broker's certificate may be as old as it likes.
        counts = broker is not None and (broker.tls is None or broker.tls.verify)
        self._show_expiry(
            f"certificate_expires_{side}", "certificate_expires", side, link.certificate if counts else None
        )
        self._show_expiry(
            f"client_certificate_expires_{side}", "client_certificate_expires", side, link.client_certificate
        )

    def _show_expiry(self, name: str, translation_key: str, side: Side, certificate: CertificateStatus | None) -> None:
        if certificate is None or not is_due(certificate.valid_from, certificate.valid_until, dt_util.utcnow()):
            self._hide(name)
            return
        fix = Fix.SETTINGS if translation_key == "client_certificate_expires" else None
        until = certificate.valid_until
        details = {"subject": code(certificate.subject), "date": f"{until:%Y-%m-%d}"}
        self._show(name, until, translation_key, side, fix, **details)

    def _broker(self, side: Side) -> BrokerConfig | None:
        if side is Side.REMOTE:
            return remote_broker(self._entry.data[CONF_REMOTE])
        try:
            return local_broker(self._hass, self._entry.data[CONF_LOCAL])
        except BridgeError:
            return None

    def _show_for_a_while(
        self, name: str, translation_key: str, side: Side | None = None, fix: Fix | None = None, **details: str
    ) -> None:
        """Show an issue until this has not been called for some time."""

        @callback
        def seems_over(_: datetime) -> None:
            del self._timers[name]
            self._rest(name)

        if name in self._timers:
            self._timers[name]()
        self._timers[name] = async_call_later(self._hass, SHOWN_AFTER, seems_over)
        self._show(name, True, translation_key, side, fix, **details)

    def _show(
        self,
        name: str,
        about: object,
        translation_key: str,
        side: Side | None = None,
        fix: Fix | None = None,
        **details: str,
    ) -> None:
        """Show an issue, once for the same `about`; a fix flow that did not help makes it be shown again."""
        if self._shown.get(name) == about and self._issue(name) is not None:
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
            data={"entry_id": self._entry.entry_id, "side": side and side.value, "fix": fix.value} if fix else None,
            is_fixable=fix is not None,
            severity=IssueSeverity.WARNING,
            translation_key=translation_key,
            translation_placeholders=placeholders,
        )

    def _issue(self, name: str) -> IssueEntry | None:
        return async_get(self._hass).async_get_issue(DOMAIN, self._issue_id(name))

    def _rest(self, name: str) -> None:
        """Hide what may be so again; one that was ignored stays, so that it is not shown again then."""
        issue = self._issue(name)
        if issue is not None and issue.dismissed_version is not None:
            self._shown.pop(name, None)
        else:
            self._hide(name)

    def _hide(self, name: str) -> None:
        if self._shown.pop(name, None) is not None:
            async_delete_issue(self._hass, DOMAIN, self._issue_id(name))

    def _issue_id(self, name: str) -> str:
        return f"{name}_{self._entry.entry_id}"


@callback
def async_forget_issues(hass: HomeAssistant, entry: ConfigEntry) -> None:
    """Delete what is left of the issues of a bridge that is removed: those that were ignored."""
    for domain, issue_id in list(async_get(hass).issues):
        if domain == DOMAIN and issue_id.endswith(f"_{entry.entry_id}"):
            async_delete_issue(hass, domain, issue_id)


def _listed(lines: list[str]) -> str:
    """Return a list in Markdown that stays readable."""
    return "\n".join([*lines[:MAX_LISTED], *left_out(len(lines), MAX_LISTED)])
