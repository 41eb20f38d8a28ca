"""The certificates of one link: those of the connection, and of a look at the broker now and then.

A connection shows the certificates of the day it was made, and may last for months. Brokers renew theirs meanwhile,
and whoever warns of an end that has long been put off is not believed any more. So they are looked at once a day: a
handshake beside the connection, without a word of MQTT.
"""

import asyncio
from collections.abc import Callable
import logging
from typing import Final

from .check import reach_broker
from .config import BrokerConfig, TransportKind
from .errors import BridgeError
from .status import CertificateStatus, TransportStatus

LOOK_INTERVAL: Final = 24 * 3600.0
FIRST_LOOK: Final = 60.0
"""Seconds after connecting, where that showed none: a resumed handshake does without (RFC 8446, 2.2)."""

_LOGGER = logging.getLogger(__name__)


class CertificateWatch:
    """Knows the latest certificates of a link's broker and of ours."""

    def __init__(self) -> None:
        """Begin with none."""
        self.theirs: CertificateStatus | None = None
        self.ours: CertificateStatus | None = None

    def take(self, seen: TransportStatus) -> None:
        """Note what a handshake has shown."""
        self.theirs = seen.certificate or self.theirs
        self.ours = seen.client_certificate

    async def run(self, broker: BrokerConfig, changed: Callable[[], None]) -> None:
        """Look now and then at the broker of a connection, for as long as that lasts; `changed` hears of news."""
        if broker.transport is not TransportKind.QUIC and broker.tls is None:
            return
        delay = FIRST_LOOK if self.theirs is None else LOOK_INTERVAL
        while True:
            await asyncio.sleep(delay)
            delay = LOOK_INTERVAL
            known = self.theirs, self.ours
            try:
                self.take(await reach_broker(broker))
            except BridgeError as error:
                _LOGGER.debug("%s does not show its certificate now: %s", broker.host, error)
            if (self.theirs, self.ours) != known:
                changed()
