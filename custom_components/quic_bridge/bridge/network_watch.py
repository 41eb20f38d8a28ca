"""When this machine gets a network, or another one: the kernel tells (rtnetlink(7)), so nobody has to look."""

import asyncio
from collections.abc import Callable
import logging
import socket
from typing import Final

_LOGGER = logging.getLogger(__name__)

_GROUPS: Final = 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE and the same of IPv6: addresses and routes that come or go."""
_SETTLE: Final = 0.2
"""Seconds for what comes together: an address, then its routes."""
_READ_SIZE: Final = 65_536


class NetworkWatch:
    """Calls `changed` shortly after each change of addresses or routes, while it is open.

    Where the system does not tell of them, it never does.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        """Begin closed."""
        self._changed = changed
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Listen; does nothing if it does already."""
        if self._socket is not None:
            return
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except (AttributeError, OSError) as error:  # not Linux, or forbidden
            _LOGGER.debug("Changes of the network cannot be seen: %s", error)
            return
        sock.bind((0, _GROUPS))
        asyncio.get_running_loop().add_reader(sock, self._told, sock)
        self._socket = sock

    def close(self) -> None:
        """Release everything; does nothing if it is closed."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _told(self, sock: socket.socket) -> None:
        try:
            sock.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            pass  # more than the kernel keeps for us (ENOBUFS) is a change all the same
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SETTLE, self._settled)

    def _settled(self) -> None:
        self._timer = None
        self._changed()
