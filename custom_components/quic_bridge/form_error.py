"""What a form says when it cannot use what was typed, and how a flow ends whose bridge is gone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from homeassistant.config_entries import UnknownEntry
from homeassistant.data_entry_flow import AbortFlow

from .bridge.config import BrokerConfig


@contextmanager
def abort_if_removed() -> Iterator[None]:
    """End a flow with the reason where its config entry is asked for, and was removed since the flow began."""
    try:
        yield
    except UnknownEntry as error:
        raise AbortFlow("entry_removed") from error


class FormError(Exception):
    """What was typed cannot be used: `key` is the error's translation key, `field` where it is shown."""

    def __init__(
        self,
        field: str,
        key: str,
        placeholders: Mapping[str, str] | None = None,
        untrusted: BrokerConfig | None = None,
    ) -> None:
        """Make the error; `placeholders` are those of its text, `untrusted` a broker whose certificate is refused."""
        super().__init__(key)
        self.untrusted = untrusted
        self.field = field
        self.key = key
        self.placeholders = placeholders or {}
