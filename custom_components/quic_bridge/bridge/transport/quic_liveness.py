"""Whether the peer of a QUIC connection still lives, and whether the way to it has changed.

Judged by authentic packets alone. ICMP errors and datagrams that hold nothing for us may make us ask, not believe:
anybody can send them.
"""

import asyncio
from collections.abc import Callable
import errno
import logging
from typing import Final, Protocol

from ..config import QuicConfig
from ..errors import BridgeError, ErrorCode
from .addresses import Address, reach_error
from .aioquic_internals import RESET_TOKEN_SIZE, STATELESS_RESET_SIZE, ClientConnection

HANDSHAKE_REFUSALS: Final = 2
"""ICMP errors that end a handshake. One may stem from a former user of our port."""
REFUSALS: Final = 3
REFUSAL_SPAN: Final = 0.2
"""An established connection is dead after this many ICMP refusals over this many seconds with nothing in between."""
UNKNOWN_RESETS: Final = 3
"""Datagrams that hold nothing for us and end alike: the stateless resets of a broker that forgot its tokens."""
LOOK_INTERVAL: Final = 0.5
"""Seconds between looks for another way while an answer is overdue."""
PATH_ERRORS: Final = frozenset(
    {
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EADDRNOTAVAIL,
        errno.EINVAL,
        errno.ENODEV,
        errno.EPERM,
    }
)
"""What a socket says whose local address or route is gone; another one may have a way (EINVAL: Linux, no address)."""

_LOGGER = logging.getLogger(__name__)


class LivenessOwner(Protocol):
    """What liveness asks of the driver."""

    def ping(self) -> None:
        """Send a PING soon."""

    def is_preferred_path(self) -> bool:
        """Tell whether the kernel would choose the present local address again."""

    def move(self, why: str) -> bool:
        """Carry the connection over to a new socket; False: that is not possible now."""

    def dead(self, error: BridgeError) -> None:
        """End the connection."""


class Liveness:
    """Asks for signs of life, has the connection moved when the network changes, and gives up in time."""

    def __init__(
        self,
        connection: ClientConnection,
        address: Address,
        config: QuicConfig,
        owner: LivenessOwner,
        wake: Callable[[], None],
    ) -> None:
        """Watch a connection that begins; `wake` is called when it is time to `look`."""
        self._connection = connection
        self._address = address
        self._config = config
        self._owner = owner
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._established = False
        self._interval = config.ping_interval
        self._heard = 0.0
        """When the last authentic packet came over the present path."""
        self._confirmed = 0.0
        """When the peer last acknowledged a packet of ours over it: the proof that both directions work."""
        self._asked: float | None = None
        """When the PING was sent that was not answered yet."""
        self._deadline = 0.0
        self._reason = ""
        self._tried_anew = False
        self._refusals = 0
        self._first_refusal = 0.0
        self._reset_tail = b""
        self._resets = 0

    def established(self, idle_timeout: float) -> None:
        """Hear that the handshake is done; a PING each way must fit into what the peer takes for silence."""
        self._established = True
        self._refusals = 0
        self._interval = min(self._interval, idle_timeout / 2)
        self._watch(self._loop.time() + self._interval)

    def heard(self, now: float, *, acknowledged: bool) -> None:
        """Hear that something authentic came over the present path, and if it acknowledged something of ours."""
        self._heard = now
        self._resets = 0
        if acknowledged:
            self._confirmed = now

    def stop(self) -> None:
        """Release the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # The timer

    def _watch(self, at: float) -> None:
        self.stop()
        self._timer = self._loop.call_at(at, self._wake)

    def look(self) -> None:
        """Ask for a sign of life when none came for a while, and give up when the answer is overdue."""
        self._timer = None
        now = self._loop.time()
        if self._asked is not None and self._confirmed <= self._asked:
            self._await_answer(now, self._asked)
            return
        self._asked, self._reason = None, ""
        if self._follow_network():
            return
        due = self._confirmed + self._interval
        if now >= due:
            self._ask(self._config.ping_timeout)
        else:
            self._watch(due)

    def _await_answer(self, now: float, asked: float) -> None:
        # What comes without an answer may be repeats of a broker that does not hear us, or the answer is behind much
        # else on a slow line.
        patience = self._deadline if self._heard <= asked else 2 * self._deadline - asked
        if now >= patience:
            self._owner.dead(
                BridgeError(
                    ErrorCode.PING_TIMEOUT,
                    f"The broker did not answer a PING within {now - asked:.1f} s{self._reason}",
                )
            )
            return
        if self._follow_network():
            return
        if not self._tried_anew and now >= (asked + self._deadline) / 2 and self._resets < UNKNOWN_RESETS:
            # A NAT or firewall on the way may have forgotten us; a new socket is a new flow to it.
            self._tried_anew = True
            if self._owner.move("the broker does not answer"):
                self._owner.ping()
        self._watch(min(patience, now + min(LOOK_INTERVAL, (self._deadline - asked) / 4)))

    def _ask(self, timeout: float, reason: str = "") -> None:
        """Send a PING that must be answered, by an acknowledgement of any packet, within `timeout` seconds."""
        now = self._loop.time()
        if self._asked is None or self._confirmed > self._asked:
            self._asked = now
            self._deadline = now + timeout
            self._tried_anew = False
        else:
            self._deadline = min(self._deadline, now + timeout)
        self._reason = reason
        self._owner.ping()
        self._watch(min(self._deadline, now + min(LOOK_INTERVAL, timeout / 4)))

    # Another way

    def _follow_network(self) -> bool:
        """Move if the kernel would now send from another address; return True if that was done."""
        return not self._owner.is_preferred_path() and self._move("the local address changed")

    def _move(self, why: str) -> bool:
        """Move to a path that came up, and give it time to answer, however late it was found."""
        if not self._owner.move(why):
            return False
        self._ask(self._config.ping_timeout, self._reason)
        self._deadline = max(self._deadline, self._loop.time() + self._config.ping_timeout / 2)
        return True

    # What the network says

    def network_error(self, error: OSError) -> bool:
        """Judge an ICMP error or a refusal of the kernel to send; return True if the connection ended by it.

        A wake-up by ICMP is no sign of life, and one ICMP error alone no proof of death.
        """
        now = self._loop.time()
        if self._refusals and self._heard <= self._first_refusal:
            self._refusals += 1
        else:
            self._refusals = 1
            self._first_refusal = now
        if not self._established:
            if self._refusals < HANDSHAKE_REFUSALS:
                return False
            self._owner.dead(reach_error(error, self._address))
            return True
        if error.errno in PATH_ERRORS:
            if self._move(error.strerror or str(error)):
                return False
            if self._connection.must_stay and not self._owner.is_preferred_path():
                # No PING is worth waiting for: the old address is gone, and only a new connection may use the new one.
                self._owner.dead(
                    BridgeError(
                        ErrorCode.UNREACHABLE,
                        f"Our network changed ({error.strerror}), and the broker does not let QUIC connections follow "
                        "such changes",
                    )
                )
                return True
        if self._refusals == 1:
            _LOGGER.debug("The network refuses datagrams to %s (%s): probing", self._address, error)
            self._ask(self._config.ping_timeout, f" after the network reported: {error.strerror}")
            return False
        if (
            error.errno == errno.ECONNREFUSED
            and self._refusals >= REFUSALS
            and now - self._first_refusal >= REFUSAL_SPAN
        ):
            self._owner.dead(
                BridgeError(
                    ErrorCode.REFUSED,
                    f"Nothing listens on {self._address} any more: its host refuses our datagrams; the broker is down",
                )
            )
            return True
        return False

    def not_ours(self, datagram: bytes) -> bool:
        """Look at a datagram in which nothing was authentic; return True if the connection ended by it."""
        if self._connection.is_stateless_reset(datagram):
            self._owner.dead(
                BridgeError(
                    ErrorCode.CLOSED_BY_BROKER,
                    "The broker no longer knows the connection (stateless reset): it was restarted",
                )
            )
            return True
        if not self._established or len(datagram) < STATELESS_RESET_SIZE or datagram[0] & 0x80:
            return False
        tail = datagram[-RESET_TOKEN_SIZE:]
        if tail != self._reset_tail:
            self._reset_tail, self._resets = tail, 0
        self._resets += 1
        if self._resets == UNKNOWN_RESETS:
            # msquic draws its tokens anew at each start, so a broker that restarted cannot prove that it did.
            # Anybody can send such datagrams; they may make us ask, not believe.
            timeout = min(self._config.ping_timeout, max(1.0, 6 * self._connection.probe_timeout))
            self._ask(timeout, "; it answers with stateless resets of another run, so it was restarted")
        return False
