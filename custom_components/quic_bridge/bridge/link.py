"""One broker connection's life: connect, session up, loss, back-off, again. The same for both sides."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
import logging
from typing import Final

from .backoff import Backoff
from .certificate_watch import CertificateWatch
from .config import BackoffConfig, BrokerConfig, FailoverConfig, TransportKind
from .echoes import Echoes
from .endpoints import Endpoints
from .errors import REFUSED_ERRORS, BridgeError, ErrorCode
from .network_watch import NetworkWatch
from .overlaps import identifiers, overlapping
from .paho_client import MQTT_5
from .presence import Presence
from .reasons import reason_text
from .routes import RetainedAtConnect, Subscription
from .session import AckReceiver, MqttSession, PublishReceiver
from .status import LinkError, LinkState, LinkStatus, Side, TransportStatus
from .transport import QuicResources, make_transport
from .versions import UNANSWERED, VersionChoice

_LOGGER = logging.getLogger(__name__)

_CLOSE_TIMEOUT: Final = 3.0
"""Seconds for a farewell. Home Assistant gives an unload ten seconds in all."""
_EMPTY_TIMEOUT: Final = 4.0
"""Seconds to empty a session that is left for good. What the remote cannot take is on disk in half of that."""
_EMPTY_LOOK: Final = 0.05
"""Seconds between two looks whether it is."""
_WITHOUT_NETWORK: Final = frozenset({ErrorCode.UNREACHABLE, ErrorCode.NAME_NOT_FOUND})
"""How a machine without a network fails."""
_MOST_NAMED: Final = 10
"""Refused filters named in one line of the log."""


class Link:
    """Keeps one broker connected until it is stopped.

    `settings` is asked before each attempt, so that changed credentials count at once; it may raise BridgeError.
    `failover` has the broker's other endpoints, if there are any: the session is the same at all of them.
    `changed` is called whenever `status` has a new state.
    """

    def __init__(
        self,
        side: Side,
        settings: Callable[[], BrokerConfig],
        backoff: BackoffConfig,
        failover: FailoverConfig,
        *,
        publishes: PublishReceiver,
        acks: AckReceiver,
        subscriptions: Callable[[Collection[str]], Sequence[Subscription]],
        changed: Callable[[], None],
        resources: QuicResources | None = None,
        presence: Presence | None = None,
    ) -> None:
        """Prepare a link; `start` sets it going. `resources` are for connections over QUIC."""
        self.side = side
        self._endpoints = Endpoints(failover, settings)
        self._backoff = Backoff(backoff)
        self._publishes = publishes
        self._acks = acks
        self._subscriptions = subscriptions
        self._changed = changed
        self._resources = resources
        self._presence = presence
        self._version = VersionChoice()
        self._try_at_once = False
        self._keep_alive = 0
        """Seconds that the broker is told at least: found out from messages that take so long on this line."""
        self._echoes = Echoes()
        self._session: MqttSession | None = None
        self._subscribed: dict[str, Subscription] = {}
        self._subscribed_in: MqttSession | None = None
        self._subscribing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._wake = asyncio.Event()
        self._network = NetworkWatch(self._on_network)
        self._state = LinkState.STOPPED
        self._trouble: LinkState | None = None
        self._since = _now()
        self._transport: TransportKind | None = None
        self._error: LinkError | None = None
        self._next_attempt: datetime | None = None
        self._connected_at: datetime | None = None
        self._began: float | None = None
        self._sessions = 0
        self._attempts = 0
        self._asked = False
        self._known: dict[str, ErrorCode] = {}
        """The last error at each endpoint since the last session, which need not be told again."""
        self._session_present: bool | None = None
        self._failed_filters: dict[str, str] = {}
        self._details = TransportStatus()
        self._certificates = CertificateWatch()

    @property
    def subscribed(self) -> list[str]:
        """The topic filters that the broker's session with us has, as far as is known."""
        return list(self._subscribed)

    def remember_subscriptions(self, filters: Iterable[str]) -> None:
        """Hear what was subscribed before; what no route wants any more is unsubscribed on connecting."""
        self._subscribed = {topic_filter: Subscription(topic_filter, 0) for topic_filter in filters}

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
            protocol="5" if self._version.protocol == MQTT_5 else "3.1.1",
            failed_filters=self._failed_filters,
            details=self._details,
            certificate=self._certificates.theirs,
            client_certificate=self._certificates.ours,
            endpoint=self._endpoints.status,
        )

    @property
    def connected(self) -> bool:
        """Whether messages cross."""
        return self._state is LinkState.CONNECTED

    @property
    def outlook(self) -> LinkState:
        """As the state, but an attempt after a failure is still that failure: what people wait for is the success."""
        return self._trouble or self._state

    def start(self) -> None:
        """Begin to connect, in the background, and never give up."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"quic_bridge {self.side} link")

    async def stop(self) -> None:
        """Log out, close and release everything; from any state, within a few seconds, as often as one likes."""
        task = self._task
        if task is not None:
            if not self._stopping:  # a second call must not cut the farewell short
                # Not `task.cancelling()`: a timeout that ends just now cancels the task too, and takes that back.
                self._stopping = True
                task.cancel()
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError:
                task.cancel()  # no time is left for a farewell
                raise
            self._task = None
            self._stopping = False
            self._network.close()
        self._next_attempt = None
        self._trouble = None
        self._set_state(LinkState.STOPPED)

    def reconnect(self, why: str = "a reconnect was asked for") -> None:
        """End the present session, or the present wait, and connect anew at once, to the preferred endpoint first."""
        self._backoff.reset()
        self._endpoints.restart()
        self._wake.set()
        if self._session is not None:
            self._session.fail(BridgeError(ErrorCode.RECONNECT_REQUESTED, why))

    async def _run(self) -> None:
        """Connect for ever. The one place that survives every error; a fault of ours is logged with its traceback."""
        while True:
            self._began = None
            try:
                error = await self._connect()
            except BridgeError as failure:
                error = failure
            except Exception as failure:
                _LOGGER.exception("Unexpected error in the %s connection", self.side)
                error = BridgeError(ErrorCode.INTERNAL, f"internal error: {failure!r}")
            if not self._try_at_once:
                await self._pause(error)

    async def _connect(self) -> BridgeError:
        """One attempt and, if it succeeds, the whole session; returns why that ended."""
        self._next_attempt = None
        self._try_at_once = False
        self._attempts += 1
        self._wake.clear()
        self._asked = False
        self._set_state(LinkState.CONNECTING)
        config = self._endpoints.dial()
        transport = make_transport(config, self._resources)
        self._transport = transport.kind
        version = self._version
        version.choose()
        self._echoes.watch(self._on_unwanted_echo if version.bridge_bit else None)
        session = MqttSession(
            config,
            transport,
            protocol=version.protocol,
            publishes=self._publishes,
            acks=self._acks,
            bridge_bit=version.bridge_bit,
            echoes=None if version.protocol == MQTT_5 else self._echoes,
            presence=self._presence,
            keep_alive=self._keep_alive,
        )
        self._session = session
        watch: asyncio.Task[None] | None = None
        try:
            await session.open()
            self._certificates.take(transport.status)
            watch = asyncio.create_task(
                self._certificates.run(config, self._tell), name=f"quic_bridge {self.side} certificates"
            )
            self._began = asyncio.get_running_loop().time()
            self._network.close()
            self._wake.clear()  # if the network changed meanwhile
            self._connected_at = _now()
            self._sessions += 1
            self._session_present = session.session_present
            self._attempts = 0
            self._known.clear()
            version.accepted()
            _LOGGER.info(
                "Connected to the %s broker %s:%d by %s, MQTT %s, session %s",
                self.side,
                config.host,
                config.port,
                transport.kind,
                "5" if session.v5 else "3.1.1",
                "resumed" if session.session_present else "new",
            )
            self._endpoints.connected(config)
            await self._subscribe(session)
            self._trouble = None
            self._set_state(LinkState.CONNECTED)
            return await self._hold(session)
        except BridgeError as error:
            session.fail(error)
            unanswered = self._began is None and session.asked and error.code in UNANSWERED
            self._try_at_once = version.failed(error, unanswered=unanswered) or (
                self._presence is not None and self._presence.refused(error)
            )
            raise
        except asyncio.CancelledError:
            await self._say_goodbye(session)
            raise
        finally:
            self._details = transport.status
            self._learn_keep_alive(session)
            self._asked = session.asked
            self._session = None
            self._connected_at = None
            transport.abort()
            if watch is not None:
                watch.cancel()
                await asyncio.wait((watch,))

    async def _hold(self, session: MqttSession) -> BridgeError:
        """Wait for the session's end; or end it in good order when a better endpoint has been good for a while."""
        if self._endpoints.preferred:
            return await session.wait_lost()
        lost = asyncio.create_task(session.wait_lost(), name=f"quic_bridge {self.side} session")
        better = asyncio.create_task(self._endpoints.better(self._tell), name=f"quic_bridge {self.side} probes")
        try:
            await asyncio.wait((lost, better), return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                return lost.result()
            address = better.result()
            await self._say_goodbye(session)
            return BridgeError(ErrorCode.RECONNECT_REQUESTED, f"moving to {address}, which is good again")
        finally:
            lost.cancel()
            better.cancel()
            await asyncio.wait((lost, better))

    def _learn_keep_alive(self, session: MqttSession) -> None:
        """Ask the broker for more patience when it did not have enough for a large message on a slow line."""
        wanted = session.keep_alive_wanted
        if wanted > self._keep_alive:
            self._keep_alive = wanted
            _LOGGER.info(
                "The %s broker gave up on us while a large message was under way. It is told a keep alive of %d s now",
                self.side,
                wanted,
            )

    def _on_unwanted_echo(self) -> None:
        """Ask the broker without the bridge bit: then it is certain that our messages come back."""
        self._version.bit_ignored()
        _LOGGER.warning(
            "The %s broker ignores the bridge bit of MQTT 3.1.1 and sends our own messages back. From now on they are"
            " known by their content; MQTT 5 would be better",
            self.side,
        )
        if self._session is not None:
            error = BridgeError(ErrorCode.RECONNECT_REQUESTED, "the broker ignores the bridge bit")
            # Not at once, in the middle of a packet.
            asyncio.get_running_loop().call_soon(self._session.fail, error)

    @staticmethod
    async def _say_goodbye(session: MqttSession) -> None:
        if session.connected:
            try:
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await session.close()
            except TimeoutError:
                _LOGGER.debug("The farewell to %s took too long", session.config.host)

    async def resubscribe(self) -> None:
        """Follow changed routes: subscribe what is new, unsubscribe what is gone. If not connected, on connecting."""
        session = self._session
        if session is None or not session.connected:
            return
        try:
            await self._subscribe(session)
        except BridgeError as error:
            session.fail(error)
        self._tell()

    async def leave_empty(self, owing: Callable[[], bool]) -> bool:
        """Unsubscribe all, and wait for what the broker has for us already; for a session that is not come back to.

        `owing` tells whether the broker waits for an acknowledgement. Returns whether nothing is left in the session.
        """
        session = self._session
        if session is None or not self.connected:
            return False
        try:
            async with asyncio.timeout(_EMPTY_TIMEOUT), self._subscribing:
                await session.unsubscribe(self.subscribed)
                self._subscribed.clear()
                while True:
                    idle = not owing()
                    await session.ping()  # what the last acknowledgements have made room for comes before the answer
                    if idle and not owing():
                        return True
                    await asyncio.sleep(_EMPTY_LOOK)
        except (BridgeError, TimeoutError) as error:
            _LOGGER.debug("The session at the %s broker could not be emptied: %r", self.side, error)
            return False

    async def _subscribe(self, session: MqttSession) -> None:
        async with self._subscribing:
            if not session.session_present and self._subscribed_in is not session:
                self._subscribed.clear()
            fresh = self._subscribed_in is not session
            self._subscribed_in = session
            asked = set[str]()
            refused: dict[str, str] = {}
            while True:
                wanted = {item.topic_filter: item for item in self._identified(session, refused, fresh=fresh)}
                # A session that was resumed has its subscriptions, but asking again costs little and mends what is
                # amiss.
                codes = await self._ask(
                    session,
                    [
                        item
                        for name, item in wanted.items()
                        if (fresh and name not in asked) or item.differs_from(self._subscribed.get(name))
                    ],
                    fresh=fresh,
                )
                asked |= wanted.keys()
                if not codes:
                    break
                # What is refused may have covered filters that are not.
                refused |= {name: reason_text(code) for name, code in codes.items()}
            self._tell_refused(refused)
            self._failed_filters = refused
            gone = [
                name
                for name in self._subscribed
                if (name not in wanted or wanted[name].leaving) and name not in refused
            ]
            if gone:
                await session.unsubscribe(gone)
                for name in gone:
                    del self._subscribed[name]

    async def _ask(self, session: MqttSession, wanted: Sequence[Subscription], *, fresh: bool) -> dict[str, int]:
        """Subscribe; returns what was refused."""
        # What is subscribed gets its identifier before another filter is subscribed that overlaps it.
        present = self._subscribed
        known = [
            _once_more(item, present[item.topic_filter], fresh=fresh) for item in wanted if item.topic_filter in present
        ]
        codes = await session.subscribe(known)
        codes |= await session.subscribe([item for item in wanted if item.topic_filter not in present])
        self._subscribed |= {item.topic_filter: item for item in wanted if item.topic_filter not in codes}
        return codes

    def _identified(self, session: MqttSession, refused: Collection[str], *, fresh: bool) -> list[Subscription]:
        """Return what is to be subscribed, with identifiers where subscriptions overlap and the broker has them.

        One that is not needed any more stays until the next connection: it does no harm. What is to be unsubscribed is
        among them, too, where what takes its place overlaps it: for a moment the broker sends copies for both.
        """
        wanted = self._subscriptions(refused)
        if not session.v5 or not session.limits.subscription_identifiers:
            return list(wanted)
        present = {name: item.identifier for name, item in self._subscribed.items() if item.identifier is not None}
        names = [item.topic_filter for item in wanted]
        leaving = self._leaving(names, refused)
        overlaps = (
            set(overlapping([*names, *leaving])) if leaving else {item.topic_filter for item in wanted if item.overlaps}
        )
        chosen = identifiers([name for name in (*names, *leaving) if name in overlaps], present)
        if not fresh:
            chosen = present | chosen
        return [
            *(replace(item, identifier=chosen.get(item.topic_filter)) for item in wanted),
            *(
                replace(self._subscribed[name], identifier=chosen[name], retained=RetainedAtConnect.NEVER, leaving=True)
                for name in leaving
                if name in chosen and self._subscribed[name].identifier != chosen[name]
            ),
        ]

    def _leaving(self, wanted: Collection[str], refused: Collection[str]) -> list[str]:
        """Return what is subscribed and not wanted any more; not what an earlier process had asked for in its way."""
        staying = {*wanted, *refused}
        return [name for name, item in self._subscribed.items() if name not in staying and item.renames is not None]

    def _tell_refused(self, refused: Mapping[str, str]) -> None:
        """Tell of filters that are refused now and were not before: a broker may refuse hundreds at a time."""
        for topic_filter, reason in refused.items():
            _LOGGER.debug("The %s broker refused the subscription to %s: %s", self.side, topic_filter, reason)
        fresh = [f"{name} ({reason})" for name, reason in refused.items() if name not in self._failed_filters]
        if fresh:
            more = f", and {len(fresh) - _MOST_NAMED} more" if len(fresh) > _MOST_NAMED else ""
            named = ", ".join(fresh[:_MOST_NAMED])
            _LOGGER.warning("The %s broker refused subscriptions: %s%s", self.side, named, more)

    async def _pause(self, error: BridgeError) -> None:
        """Make the loss known and wait for the next attempt."""
        connected_for = 0.0
        if self._began is not None:
            connected_for = max(0.001, asyncio.get_running_loop().time() - self._began)
        now = _now()
        problem = LinkError(code=error.code, text=error.text, at=now, reason_code=error.reason_code)
        elsewhere = self._endpoints.ended(problem, connected_for=connected_for, asked=self._asked)
        delay = self._backoff.next(error.code, connected_for, elsewhere=elsewhere)
        asked_for = error.code is ErrorCode.RECONNECT_REQUESTED
        if asked_for:
            delay = 0.0
        refused = error.code in REFUSED_ERRORS
        known = False
        if not connected_for:
            known = self._known.get(self._endpoints.address) is error.code
            self._known[self._endpoints.address] = error.code
        _LOGGER.log(
            logging.DEBUG if known else logging.INFO,
            "The %s connection %s: %s. Next attempt in %.1f s",
            self.side,
            ("ended" if asked_for else "was lost") if connected_for else "failed",
            error.text,
            delay,
        )
        if error.code in _WITHOUT_NETWORK:
            self._network.open()
        else:
            self._network.close()
        self._error = problem
        self._next_attempt = now + timedelta(seconds=delay)
        state = LinkState.REFUSED if refused else LinkState.WAITING
        self._trouble = LinkState.CONNECTING if asked_for else state  # what was asked for is no failure
        self._set_state(state)
        if delay:
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _on_network(self) -> None:
        """Try at once, or after the present attempt: when the power is back, the router comes later than we do."""
        _LOGGER.debug("The network has changed: trying the %s broker now", self.side)
        self._backoff.reset()
        self._endpoints.restart()
        self._wake.set()

    def _set_state(self, state: LinkState) -> None:
        if state is not self._state or state is LinkState.WAITING:
            if state is not self._state:
                self._since = _now()
            self._state = state
            self._tell()

    def _tell(self) -> None:
        """Report the status. What listens there must not keep us from connecting."""
        try:
            self._changed()
        except Exception:
            _LOGGER.exception("Unexpected error in a listener to the %s connection", self.side)


def _once_more(wanted: Subscription, present: Subscription, *, fresh: bool) -> Subscription:
    """Ask for something else in the same connection without all retained messages again, unless a route is new."""
    if wanted.is_new_for_some_route(present):
        return replace(wanted, retained=RetainedAtConnect.ALWAYS)
    if not fresh and wanted.retained is present.retained is RetainedAtConnect.ALWAYS:
        return replace(wanted, retained=RetainedAtConnect.ONCE)
    return wanted


def _now() -> datetime:
    return datetime.now(UTC)
