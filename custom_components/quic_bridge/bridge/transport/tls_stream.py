"""TLS between a byte stream and its user, without I/O.

asyncio's own TLS drops the alert that tells the broker why we refuse it, counts what waits below it as sent, and loses
unsent bytes when the broker speaks while we close.
"""

import contextlib
import ssl
from typing import Final

RECORD_SIZE: Final = 16 * 1024
"""Most plain bytes in one TLS record."""


class TlsStream:
    """One TLS session as a client. Bytes for the network come from `take`, after every other call."""

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        """Begin; call `handshake` next."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self.established = False
        self.closed = False
        """The broker said that it will send no more (close_notify)."""

    @property
    def version(self) -> str | None:
        """The negotiated version, for example `TLSv1.3`."""
        return self._session.version()

    @property
    def cipher(self) -> str | None:
        """The negotiated cipher suite."""
        cipher = self._session.cipher()
        return None if cipher is None else cipher[0]

    @property
    def peer_certificate(self) -> bytes | None:
        """The broker's certificate in DER."""
        return self._session.getpeercert(binary_form=True)

    def feed(self, data: memoryview) -> None:
        """Put in bytes from the network."""
        self._incoming.write(data)

    def take(self) -> bytes:
        """Take out bytes for the network, possibly none."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def handshake(self) -> bool:
        """Go on with the handshake as far as possible; return True when it is done. Raises ssl.SSLError."""
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.established = True
        return True

    def read(self) -> bytes:
        """Return all plain bytes there are, possibly none. Raises ssl.SSLError when nothing comes before it."""
        pieces: list[bytes] = []
        try:
            while piece := self._session.read(RECORD_SIZE):
                pieces.append(piece)
            self.closed = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed = True
        except ssl.SSLError:
            if not pieces:
                raise
            # The same again at the next call.
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, data: bytes) -> None:
        """Encrypt plain bytes. Raises ssl.SSLError."""
        view = memoryview(data)
        while view:
            view = view[self._session.write(view) :]

    def close(self) -> None:
        """Say that we will send no more."""
        # The broker's own close_notify is not waited for.
        with contextlib.suppress(ssl.SSLError):
            self._session.unwrap()
