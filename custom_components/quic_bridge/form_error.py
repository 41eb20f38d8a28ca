"""What a form says when it cannot use what was typed."""

from collections.abc import Mapping

from .bridge.config import BrokerConfig


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
