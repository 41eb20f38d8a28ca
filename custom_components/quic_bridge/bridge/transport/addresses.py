"""From a host name to a connection: resolve with a deadline, then race the addresses (RFC 8305, happy eyeballs)."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
import errno
import functools
import itertools
import logging
import socket
from typing import Final, override

from ..errors import BridgeError, ErrorCode
from ..link_local import interface_name, interfaces, is_link_local

ATTEMPT_DELAY: Final = 0.25
"""Seconds that an address gets before the next one is tried beside it (RFC 8305 section 5)."""
MAX_ADDRESSES: Final = 8
"""Addresses of a name that are tried; more are no help, and each is a socket."""

_LOGGER = logging.getLogger(__name__)

_UNINFORMATIVE: Final = (ErrorCode.UNREACHABLE, ErrorCode.NO_ANSWER, ErrorCode.REFUSED)
"""What says less than any other error about why a broker with several addresses cannot be used, least first."""

type SocketAddress = tuple[str, int] | tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class Address:
    """One address of the broker as `socket` takes it."""

    family: socket.AddressFamily
    sockaddr: SocketAddress

    @override
    def __str__(self) -> str:
        host, port, *rest = self.sockaddr
        if self.family != socket.AF_INET6:
            return f"{host}:{port}"
        scope = rest[-1] if rest else 0
        return f"[{host}%{interface_name(scope)}]:{port}" if scope else f"[{host}]:{port}"

    @property
    def needs_interface(self) -> bool:
        """Whether it is an address of a link, without the interface that the link is at (RFC 4007 section 11)."""
        return self.family == socket.AF_INET6 and self.sockaddr[-1] == 0 and is_link_local(self.sockaddr[0])


async def in_executor[**P, T](deadline: float, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do something that blocks, in a thread; `deadline` is in the loop's time. Raises BridgeError INTERNAL after it."""
    try:
        async with asyncio.timeout_at(deadline):
            return await asyncio.get_running_loop().run_in_executor(None, functools.partial(work, *args, **kwargs))
    except TimeoutError:
        raise BridgeError(ErrorCode.INTERNAL, "This host was too busy to read the TLS settings in time") from None


async def resolve(host: str, port: int, kind: socket.SocketKind, deadline: float) -> list[Address]:
    """Find the addresses of a host, in the order to try them; `deadline` is in the loop's time.

    The resolver's order (RFC 6724), but the families take turns, so that one that leads nowhere costs one attempt only.

    Raises BridgeError NAME_NOT_FOUND.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        async with asyncio.timeout_at(deadline):
            found = await loop.getaddrinfo(host.strip("[]"), port, type=kind)
    except TimeoutError:
        raise BridgeError(
            ErrorCode.NAME_NOT_FOUND,
            f"The name server did not answer within {loop.time() - started:.0f} s when asked for {host!r}",
        ) from None
    except socket.gaierror as error:
        text = f"The host name {host!r} cannot be resolved: {error.strerror}"
        if is_link_local(host):
            zone = host.partition("%")[2]
            text = f"There is no network interface {zone!r} here for {host!r}; there are: {interfaces()}"
        raise BridgeError(ErrorCode.NAME_NOT_FOUND, text) from error
    except UnicodeError as error:
        raise BridgeError(ErrorCode.NAME_NOT_FOUND, f"{host!r} is not a host name: {error}") from error
    addresses: list[Address] = []
    for family, _, _, _, sockaddr in found:
        if family in {socket.AF_INET, socket.AF_INET6}:
            address = Address(family, sockaddr)  # type: ignore[arg-type]
            if address not in addresses:
                addresses.append(address)
    if not addresses:
        raise BridgeError(ErrorCode.NAME_NOT_FOUND, f"The host name {host!r} has no IP address")
    first = [address for address in addresses if address.family == addresses[0].family]
    second = [address for address in addresses if address.family != addresses[0].family]
    turns = itertools.zip_longest(first, second)
    return [address for turn in turns for address in turn if address is not None][:MAX_ADDRESSES]


async def race[T](
    addresses: list[Address],
    failures: list[BridgeError],
    dial: Callable[[Address], Coroutine[object, object, T]],
    release: Callable[[T], None],
) -> tuple[Address, T]:
    """Dial the addresses, each a while after the one before it, and return the first that succeeds, with its result.

    Those that lose are cancelled, and if it was too late for that, released. Addresses that fail leave the list, and
    their errors go to `failures`. When none is left, raises the BridgeError of those that says most about the cause.
    """
    loop = asyncio.get_running_loop()
    waiting = list(addresses)
    running: dict[asyncio.Task[T], Address] = {}
    next_at = loop.time()
    try:
        while waiting or running:
            if waiting and (loop.time() >= next_at or not running):
                address = waiting.pop(0)
                running[loop.create_task(dial(address), name=f"dial {address}")] = address
                next_at = loop.time() + ATTEMPT_DELAY
            timeout = max(0.0, next_at - loop.time()) if waiting else None
            done, _ = await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                try:
                    result = task.result()
                except BridgeError as error:
                    address = running.pop(task)
                    _LOGGER.debug("No connection to %s: %s", address, error)
                    failures.append(error)
                    addresses.remove(address)
                    next_at = loop.time()
                else:
                    return running.pop(task), result
        raise summary(failures)
    finally:
        for task in running:
            if not task.done():
                task.cancel()
            elif not task.cancelled() and task.exception() is None:
                release(task.result())
        if running:
            await asyncio.wait(running)


def summary(failures: list[BridgeError]) -> BridgeError:
    """Return the error that says most about why none of the addresses can be used."""
    best = max(failures, key=lambda error: _UNINFORMATIVE.index(error.code) if error.code in _UNINFORMATIVE else 9)
    if len(failures) == 1:
        return best
    error = BridgeError(best.code, f"{best.text} (tried {len(failures)} addresses)", reason_code=best.reason_code)
    error.__cause__ = best
    return error


def reach_error(error: OSError, address: Address) -> BridgeError:
    """Name the system's refusal to send to an address, or the network's."""
    if error.errno == errno.ECONNREFUSED:
        return BridgeError(ErrorCode.REFUSED, f"Nothing listens on {address}: the host refused the connection")
    if error.errno == errno.ETIMEDOUT:
        return BridgeError(ErrorCode.NO_ANSWER, f"{address} did not answer")
    if address.needs_interface:
        host = address.sockaddr[0]
        return BridgeError(
            ErrorCode.UNREACHABLE,
            f"{address} is a link-local address, which needs the network interface behind it, as in {host}%eth0;"
            f" there are: {interfaces()}",
        )
    return BridgeError(ErrorCode.UNREACHABLE, f"{address} cannot be reached: {error.strerror or error}")


def no_answer(address: Address, seconds: float, what: str = "") -> BridgeError:
    """Make the error of a deadline that passed while dialling; `what` did not come, or why it may not."""
    return BridgeError(ErrorCode.NO_ANSWER, f"{address} did not answer within {seconds:.1f} s{what}")
