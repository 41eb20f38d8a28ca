"""The endpoints that a link goes through: what `Failover` decides, with a clock, probes, and a status to show."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
import logging

from .check import reach_broker
from .config import BrokerConfig, FailoverConfig, TransportKind
from .errors import BridgeError
from .failover import Failover
from .status import EndpointStatus, LinkError

_LOGGER = logging.getLogger(__name__)


class Endpoints:
    """Knows where a link connects to; `settings` is the broker as configured and may raise BridgeError."""

    def __init__(self, config: FailoverConfig, settings: Callable[[], BrokerConfig]) -> None:
        """Begin at the broker's own address."""
        self._failover = Failover(config)
        self._settings = settings
        self._index = 0
        """The endpoint in use, or tried last; that of `_failover` is the next one."""
        self.address = ""
        """Host and port of the endpoint in use, or tried last."""
        self._began = 0.0
        self._connected: int | None = None
        """The endpoint of the last session."""
        self._since: datetime | None = None
        self._diverted: LinkError | None = None
        self._probes = 0
        self._probe_error: LinkError | None = None

    @property
    def status(self) -> EndpointStatus | None:
        """The endpoint in use or tried; None: there is only one, or none was tried yet."""
        if not self._failover.has_choice or not self.address:
            return None
        return EndpointStatus(
            address=self.address,
            preferred=not self._index,
            since=self._since if self._index == self._connected else None,
            diverted=self._diverted,
            hold_down=self._failover.hold_down,
            probes=self._probes,
            probes_good=self._failover.probes_good,
            probe_error=self._probe_error,
        )

    @property
    def preferred(self) -> bool:
        """Whether the endpoint in use is the broker's own address, so that there is nothing better."""
        return not self._index

    # --- attempts and sessions ----------------------------------------------------------------------------------------

    def dial(self) -> BrokerConfig:
        """Return how the broker is reached in the attempt that begins now. Raises BridgeError."""
        self._began = asyncio.get_running_loop().time()
        self._index = self._failover.index
        broker = self._failover.endpoint(self._index, self._settings())
        self.address = _address(broker)
        return broker

    def connected(self, broker: BrokerConfig) -> None:
        """Note that the attempt at `broker` succeeded."""
        self._failover.connected(asyncio.get_running_loop().time())
        if not self._index:
            self._diverted = None
        if self._index == self._connected:
            return
        first, self._connected = self._connected is None, self._index
        self._since = datetime.now(UTC)
        self._probes, self._probe_error = 0, None
        if self._diverted is not None:
            _LOGGER.info(
                "The broker is reached by a way round, %s at %s, because of: %s",
                "MQTT over TLS/TCP" if broker.transport is TransportKind.TCP else "QUIC",
                self.address,
                self._diverted.text,
            )
        elif not first:
            _LOGGER.info("The broker is reached at its own address again, %s", self.address)

    def ended(self, error: LinkError, *, connected_for: float, asked: bool) -> bool:
        """Note how the attempt or the session ended; returns whether the next attempt is made elsewhere.

        `connected_for`, `asked`: see Failover.
        """
        if self._failover.index != self._index:
            return True  # it was left meanwhile
        now = asyncio.get_running_loop().time()
        self._failover.ended(error.code, now, began=self._began, connected_for=connected_for, asked=asked)
        if self._failover.index > self._index:
            self._diverted = error
        return self._failover.index != self._index

    def restart(self) -> None:
        """Make the next attempt at the broker's own address."""
        self._failover.restart()

    # --- the way back -------------------------------------------------------------------------------------------------

    async def better(self, changed: Callable[[], None]) -> str:
        """Probe the endpoints before the one in use until one has been good for long enough; it is dialled next.

        Returns its address. `changed` is called whenever the status is another one.
        """
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._failover.probe_delay(loop.time()))
            answered = await self._probe()
            if self._failover.probed(answered, loop.time()):
                return _address(self._failover.endpoint(self._failover.index, self._settings()))
            changed()

    async def _probe(self) -> int | None:
        """Return the first endpoint that can be reached, of those before the one in use."""
        self._probes += 1
        for index in range(self._index):
            broker = self._failover.endpoint(index, self._settings())
            try:
                await reach_broker(broker)
            except BridgeError as error:
                _LOGGER.debug("%s is no good yet: %s", _address(broker), error)
                at = datetime.now(UTC)
                self._probe_error = LinkError(code=error.code, text=error.text, at=at, reason_code=error.reason_code)
            else:
                _LOGGER.debug("%s answers", _address(broker))
                self._probe_error = None
                return index
        return None


def _address(broker: BrokerConfig) -> str:
    host = f"[{broker.host}]" if ":" in broker.host else broker.host
    return f"{host}:{broker.port}"
