"""The network of this host as the bridge sees it, whose address can change under an open UDP socket."""

import errno
import os
import socket
from typing import Any, override

import pytest


class HostNetwork:
    """Connected UDP sockets made from now on belong to one local address after the other, all on loopback.

    What has another address than the present one is dead, as after a change of Wi-Fi: it receives nothing, and sending
    fails with `error`, or goes nowhere without an error.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source: str | None = "127.0.0.11"
        """The local address; None: there is no network at all."""
        self.error: int | None = errno.ENETUNREACH
        """What sending from an address that is gone meets; None: silence."""
        self.refused = 0
        """How often sending met that."""
        self.opened: list[str] = []
        """The local addresses of the sockets that were used, in order."""
        network = self

        class Socket(socket.socket):
            """A socket of this network, if it is one for UDP and connects."""

            source: str | None = None

            @property
            def gone(self) -> bool:
                return self.source is not None and self.source != network.source

            @override
            def connect(self, address: Any) -> None:
                if self.type == socket.SOCK_DGRAM:
                    if network.source is None:
                        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
                    self.source = network.source
                    self.bind((self.source, 0))
                super().connect(address)

            @override
            def send(self, data: Any, *arguments: Any) -> int:
                if self.gone:
                    network.refused += 1
                    if network.error is not None:
                        raise OSError(network.error, os.strerror(network.error))
                    return len(data)
                if self.source is not None and network.opened[-1:] != [self.source]:
                    network.opened.append(self.source)
                return super().send(data, *arguments)

            @override
            def recv_into(self, buffer: Any, *arguments: Any) -> int:
                size = super().recv_into(buffer, *arguments)
                if self.gone:
                    raise BlockingIOError
                return size

        monkeypatch.setattr(socket, "socket", Socket)

    def change(self, source: str | None) -> None:
        """Get another address, or none."""
        self.source = source
