"""What a session may ask of the bytes below it, whatever carries them."""

from typing import Protocol

from ..config import TransportKind
from ..errors import BridgeError
from ..status import TransportStatus

HIGH_WATER = 256 * 1024
"""Unsent bytes at which TCP calls `pause_writing`; QUIC has its flow window."""
LOW_WATER = 64 * 1024
"""... and below which `resume_writing` is."""


class TransportReceiver(Protocol):
    """The session's side. All calls come from the event loop; none may raise."""

    def data_received(self, data: bytes) -> None:
        """Take bytes from the broker, in order. A call holds at most 16 KiB."""

    def pause_writing(self) -> None:
        """The backlog went over its bound: stop writing soon. What is written all the same is kept, not lost."""

    def resume_writing(self) -> None:
        """The backlog fell well below its bound."""

    def connection_lost(self, error: BridgeError) -> None:
        """The connection is gone and everything of it is released. Called once, never after `close` or `abort`.

        Bytes that came before or together with the end (a DISCONNECT with a FIN) were delivered before.
        """


class StreamReceiver(Protocol):
    """Who uses an `ExtraStream`. All calls come from the event loop; none may raise."""

    def stream_received(self, data: bytes) -> None:
        """Take bytes from the broker, in the order of this stream."""

    def stream_writable(self) -> None:
        """The stream's backlog fell below LOW_WATER."""

    def stream_ended(self, how: str) -> None:
        """The broker ended this stream alone; what was written may not have arrived. `how` is for people."""


class ExtraStream(Protocol):
    """A stream of the same connection beside the one that carries the session; only QUIC has them.

    Nothing is told when the whole connection ends: that the session hears.
    """

    @property
    def congested(self) -> bool:
        """The backlog went over HIGH_WATER, and not below LOW_WATER since."""

    @property
    def backlog(self) -> int:
        """Bytes written that the broker has not acknowledged."""

    def write(self, data: bytes) -> None:
        """Queue bytes; does nothing after the end."""

    def abort(self) -> None:
        """Give the stream up at once; the receiver hears nothing more."""


class Transport(Protocol):
    """One connection to one broker, used once.

    Everything that belongs to it (socket, reader, timers, tasks) is released by one call of `close` or `abort`,
    from any state, also in the middle of `connect`, and as often as one likes.
    """

    @property
    def kind(self) -> TransportKind:
        """Which transport this is."""

    async def connect(self, receiver: TransportReceiver, hello: bytes = b"") -> None:
        """Resolve, dial and finish the handshake, within the configuration's deadlines, and send `hello` first of all.

        `hello` is the session's CONNECT and nothing else: where the configuration allows early data (QUIC's 0-RTT),
        it goes with the first flight, which can be replayed.
        Raises BridgeError with the precise cause. Cancelling it releases everything at once.
        `receiver` may be called before this returns (a peer that speaks first).
        """

    def write(self, data: bytes) -> None:
        """Queue bytes; those of one turn of the loop leave together. Never raises; does nothing after the end."""

    @property
    def backlog(self) -> int:
        """Bytes written that the kernel (TCP) or the peer (QUIC) has not taken yet."""

    @property
    def written(self) -> int:
        """Bytes that were written since the connection began; with TLS over TCP, about as they travel."""

    @property
    def acknowledged(self) -> int:
        """How many of them the other host has acknowledged: on a slow line the only sign of life for a while."""

    def open_stream(self, receiver: StreamReceiver) -> ExtraStream | None:
        """Open one more stream; None: there are none (TCP), or the broker allows no more."""

    def pause_reading(self) -> None:
        """Stop calling `data_received`, and let the peer feel it (receive window); idempotent."""

    def resume_reading(self) -> None:
        """Go on; what was held back is delivered in a later turn of the loop. Idempotent."""

    async def close(self) -> None:
        """Let what was written leave (at most about 1 s), close in good order, release everything."""

    def abort(self) -> None:
        """Release everything now, telling the peer only what costs no waiting."""

    @property
    def status(self) -> TransportStatus:
        """Figures of the connection, cheap enough to ask for every few seconds; valid also after the end."""
