"""One broker connection's life: connect, session up, loss, back-off, again. The same for both sides."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
import logging
from typing import Final

from .backoff import Backoff
from .config import BackoffConfig, BrokerConfig, TransportKind
from .errors import REFUSED_ERRORS, BridgeError, ErrorCode
from .paho_client import MQTT_3_1_1, MQTT_5
from .reasons import reason_text
from .session import AckReceiver, MqttSession, PublishReceiver
from .status import LinkError, LinkState, LinkStatus, Side, TransportStatus
from .transport import make_transport

_LOGGER = logging.getLogger(__name__)

_CLOSE_TIMEOUT: Final = 3.0
"""Seconds for a farewell. Home Assistant gives an unload ten seconds in all."""


class Link:
    """Keeps one broker connected until it is stopped.

    `settings` is asked before each attempt, so that changed credentials count at once; it may raise BridgeError.
    `changed` is called whenever `status` has a new state.
    """

    def __init__(
        self,
        side: Side,
        settings: Callable[[], BrokerConfig],
        backoff: BackoffConfig,
        *,
        publishes: PublishReceiver,
        acks: AckReceiver,
        subscriptions: Callable[[], dict[str, int]],
        changed: Callable[[], None],
    ) -> None:
        """Prepare a link; `start` sets it going."""
        self.side = side
        self._settings = settings
        self._backoff = Backoff(backoff)
        self._publishes = publishes
        self._acks = acks
        self._subscriptions = subscriptions
        self._changed = changed
        self._protocol = MQTT_5
        self._protocol_confirmed = False
        self._session: MqttSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._state = LinkState.STOPPED
        self._since = _now()
        self._transport: TransportKind | None = None
        self._error: LinkError | None = None
        self._next_attempt: datetime | None = None
        self._connected_at: datetime | None = None
        self._sessions = 0
        self._attempts = 0
        self._session_present: bool | None = None
        self._failed_filters: tuple[str, ...] = ()
        self._details = TransportStatus()

    @property
    def status(self) -> LinkStatus:
        """The present state as a snapshot."""
        if self._session is not None:
            self._details = self._session.transport.status
        return LinkStatus(
            state=self._state,
            since=self._since,
            transport=self._transport,
            error=self._error,
            next_attempt=self._next_attempt,
            connected_at=self._connected_at,
            reconnects=max(0, self._sessions - 1),
            attempts=self._attempts,
            session_present=self._session_present,
            protocol="5" if self._protocol == MQTT_5 else "3.1.1",
            failed_filters=self._failed_filters,
            details=self._details,
        )

    @property
    def state(self) -> LinkState:
        """The present state alone."""
        return self._state

    def start(self) -> None:
        """Begin to connect, in the background, and never give up."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"quic_bridge {self.side} link")

    async def stop(self) -> None:
        """Log out, close and release everything; from any state, within a few seconds, as often as one likes."""
        task, self._task = self._task, None
        session = self._session
        if session is not None and session.connected:
            try:
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await session.close()
            except TimeoutError:
                session.transport.abort()
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        self._set_state(LinkState.STOPPED)

    def reconnect(self, why: str = "a reconnect was asked for") -> None:
        """End the present session, or the present wait, and connect anew at once."""
        self._backoff.reset()
        self._wake.set()
        if self._session is not None:
            self._session.fail(BridgeError(ErrorCode.RECONNECT_REQUESTED, why))

    async def _run(self) -> None:
        """Connect for ever. The one place that survives every error; a fault of ours is logged with its traceback."""
        while True:
            connected_for = 0.0
            started = asyncio.get_running_loop().time()
            try:
                error = await self._connect()
            except BridgeError as failure:
                error = failure
            except Exception as failure:
                _LOGGER.exception("Unexpected error in the %s connection", self.side)
                error = BridgeError(ErrorCode.INTERNAL, f"internal error: {failure!r}")
            if self._connected_at is not None:
                connected_for = max(0.001, asyncio.get_running_loop().time() - started)
            if self._falls_back(error):
                continue
            await self._pause(error, connected_for)

    async def _connect(self) -> BridgeError:
        """One attempt and, if it succeeds, the whole session; returns why that ended."""
        self._connected_at = None
        self._next_attempt = None
        self._attempts += 1
        self._wake.clear()
        self._set_state(LinkState.CONNECTING)
        config = self._settings()
        transport = make_transport(config)
        self._transport = transport.kind
        session = MqttSession(config, transport, protocol=self._protocol, publishes=self._publishes, acks=self._acks)
        self._session = session
        try:
            await session.open()
            self._sessions += 1
            self._protocol_confirmed = True
            self._session_present = session.session_present
            self._connected_at = _now()
            self._attempts = 0
            self._failed_filters = ()
            _LOGGER.info(
                "Connected to the %s broker %s:%d by %s, MQTT %s, session %s",
                self.side,
                config.host,
                config.port,
                transport.kind,
                "5" if session.v5 else "3.1.1",
                "resumed" if session.session_present else "new",
            )
            await self._subscribe(session)
            self._set_state(LinkState.CONNECTED)
            return await session.wait_lost()
        except BridgeError as error:
            session.fail(error)
            raise
        finally:
            self._details = transport.status
            self._session = None
            transport.abort()

    async def _subscribe(self, session: MqttSession) -> None:
        refused = await session.subscribe(list(self._subscriptions().items()))
        for topic_filter, reason in refused.items():
            _LOGGER.warning(
                "The %s broker refused the subscription to %s: %s", self.side, topic_filter, reason_text(reason)
            )
        self._failed_filters = tuple(refused)
        if refused:
            self._changed()

    def _falls_back(self, error: BridgeError) -> bool:
        """Decide whether to try MQTT 3.1.1 at once, for a broker that does not speak 5.

        Some say so (reason 0x84, or 1 from a 3.1.1 broker), some just close the connection (then both versions
        take turns).
        """
        if error.code is ErrorCode.PROTOCOL_VERSION and self._protocol == MQTT_5:
            self._protocol = MQTT_3_1_1
            return True
        if error.code is ErrorCode.CLOSED_BY_BROKER and not self._protocol_confirmed:
            self._protocol = MQTT_3_1_1 if self._protocol == MQTT_5 else MQTT_5
        elif error.code is ErrorCode.PROTOCOL_VERSION:
            self._protocol = MQTT_5
        return False

    async def _pause(self, error: BridgeError, connected_for: float) -> None:
        """Make the loss known and wait for the next attempt."""
        delay = self._backoff.next(error.code, connected_for)
        if error.code is ErrorCode.RECONNECT_REQUESTED:
            delay = 0.0
        refused = error.code in REFUSED_ERRORS
        known = self._error is not None and self._error.code is error.code and self._attempts > 1
        _LOGGER.log(
            logging.DEBUG if known else logging.INFO,
            "The %s connection %s: %s. Next attempt in %.1f s",
            self.side,
            "was lost" if connected_for else "failed",
            error.text,
            delay,
        )
        now = _now()
        self._error = LinkError(code=error.code, text=error.text, at=now, reason_code=error.reason_code)
        self._next_attempt = now + timedelta(seconds=delay)
        self._set_state(LinkState.REFUSED if refused else LinkState.WAITING)
        if delay:
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _set_state(self, state: LinkState) -> None:
        if state is not self._state or state is LinkState.WAITING:
            if state is not self._state:
                self._since = _now()
            self._state = state
            self._changed()


def _now() -> datetime:
    return datetime.now(UTC)
