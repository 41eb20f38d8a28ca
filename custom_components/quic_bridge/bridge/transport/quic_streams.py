"""A QUIC stream beside the first one: bytes out, bytes back, a backlog of its own."""

from collections.abc import Callable
from typing import Final

from .aioquic_internals import ClientConnection
from .base import HIGH_WATER, LOW_WATER, StreamReceiver

GIVEN_UP: Final = 0
"""Error code of our RESET_STREAM and STOP_SENDING; EMQX gives it no meaning."""


class QuicStream:
    """One bidirectional stream that we opened. It ends alone, or with its connection, of which it is not told."""

    def __init__(
        self, connection: ClientConnection, stream_id: int, receiver: StreamReceiver, flush: Callable[[], None]
    ) -> None:
        """Take over a new stream; `flush` has the driver send what was written at the end of this turn."""
        self._connection = connection
        self._id = stream_id
        self._receiver: StreamReceiver | None = receiver
        self._flush = flush
        self._outgoing: list[bytes] = []
        self._outgoing_size = 0
        self.congested = False
        """Over HIGH_WATER; what is written all the same is kept, not lost."""

    @property
    def backlog(self) -> int:
        """Bytes written and not acknowledged by the peer."""
        return self._outgoing_size + self._connection.unacknowledged_on(self._id)

    def write(self, data: bytes) -> None:
        """Queue bytes; those of one turn of the loop leave together. Does nothing after the end."""
        if self._receiver is None:
            return
        self._outgoing.append(data)
        self._outgoing_size += len(data)
        if not self.congested and self.backlog > HIGH_WATER:
            self.congested = True
        self._flush()

    def abort(self) -> None:
        """Give the stream up, also what was written and has not arrived; the receiver is not told."""
        if self._receiver is not None:
            self._receiver = None
            self._outgoing.clear()
            self._outgoing_size = 0
            self._connection.give_up_stream(self._id, GIVEN_UP)
            self._flush()

    # The driver's side

    def send(self) -> None:
        """Hand to QUIC what was written."""
        if self._outgoing:
            self._connection.send_stream_data(self._id, b"".join(self._outgoing))
            self._outgoing.clear()
            self._outgoing_size = 0

    def relieve(self) -> None:
        """Look whether the peer has acknowledged enough to go on."""
        if self.congested and self.backlog < LOW_WATER:
            self.congested = False
            if self._receiver is not None:
                self._receiver.stream_writable()

    def received(self, data: bytes) -> None:
        """Hand on what came, and let the peer send as much again."""
        self._connection.credit_stream(self._id)
        if self._receiver is not None:
            self._receiver.stream_received(data)

    def ended(self, how: str) -> None:
        """Tell the receiver that the peer ended the stream."""
        receiver, self._receiver = self._receiver, None
        self._outgoing.clear()
        self._outgoing_size = 0
        if receiver is not None:
            receiver.stream_ended(how)
