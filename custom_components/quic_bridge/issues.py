"""Repair issues: what a person must mend, shown for as long as it is so."""

from homeassistant.config_entries import ConfigEntry
from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers.issue_registry import IssueSeverity, async_create_issue, async_delete_issue

from .bridge.status import BridgeStatus, LinkStatus, OutboxStatus, Side
from .brokers import outbox_path
from .const import DOMAIN
from .route_data import code

MAX_LISTED = 20
"""Topic filters named in one issue."""


class BridgeIssues:
    """Keeps the repair issues of one bridge true."""

    def __init__(self, hass: HomeAssistant, entry: ConfigEntry) -> None:
        """Begin without an issue."""
        self._hass = hass
        self._entry = entry
        self._shown: dict[str, object] = {}
        """What each issue that is shown is about, by its name."""

    @callback
    def async_follow(self, status: BridgeStatus) -> None:
        """Create, change and delete issues as the status has it."""
        self._follow_outbox(status.outbox)
        self._follow_subscriptions(Side.LOCAL, status.local)
        self._follow_subscriptions(Side.REMOTE, status.remote)

    @callback
    def async_clear(self) -> None:
        """Delete all issues: nothing is known of a bridge that does not run."""
        for name in tuple(self._shown):
            self._hide(name)

    def _follow_outbox(self, outbox: OutboxStatus | None) -> None:
        """Show an Outbox that does not work: else that would be seen only when messages are lost."""
        if outbox is None or outbox.fault is None:
            self._hide("outbox")
        else:
            path = str(outbox_path(self._hass, self._entry))
            self._show("outbox", outbox.fault, f"outbox_{outbox.fault}", path=path, detail=outbox.error or "")

    def _follow_subscriptions(self, side: Side, link: LinkStatus) -> None:
        """Show the topics that a broker refuses: nothing else would tell that their messages do not cross."""
        name = f"subscriptions_refused_{side}"
        if link.failed_filters:
            lines = [f"- {code(topic_filter)}" for topic_filter in link.failed_filters[:MAX_LISTED]]
            if len(link.failed_filters) > MAX_LISTED:
                lines.append("- ...")
            self._show(name, link.failed_filters, name, topics="\n".join(lines))
        else:
            self._hide(name)

    def _show(self, name: str, about: object, translation_key: str, **placeholders: str) -> None:
        if self._shown.get(name) == about:
            return
        self._shown[name] = about
        async_create_issue(
            self._hass,
            DOMAIN,
            self._issue_id(name),
            is_fixable=False,
            severity=IssueSeverity.WARNING,
            translation_key=translation_key,
            translation_placeholders={"name": self._entry.title, **placeholders},
        )

    def _hide(self, name: str) -> None:
        if self._shown.pop(name, None) is not None:
            async_delete_issue(self._hass, DOMAIN, self._issue_id(name))

    def _issue_id(self, name: str) -> str:
        return f"{name}_{self._entry.entry_id}"
