"""From a host name to a connection: resolve with a deadline, then try every address in order."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
import errno
import functools
import logging
import socket
from typing import Final, override

from ..errors import BridgeError, ErrorCode

ADDRESS_TIMEOUT: Final = 3.0
"""Most seconds for one address while there are others to try: enough for a round trip of 600 ms and a lost packet."""

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
        host, port = self.sockaddr[:2]
        return f"[{host}]:{port}" if self.family == socket.AF_INET6 else f"{host}:{port}"


async def in_executor[**P, T](deadline: float, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do something that blocks, in a thread; `deadline` is in the loop's time. Raises BridgeError INTERNAL after it."""
    try:
        async with asyncio.timeout_at(deadline):
            return await asyncio.get_running_loop().run_in_executor(None, functools.partial(work, *args, **kwargs))
    except TimeoutError:
        raise BridgeError(ErrorCode.INTERNAL, "This host was too busy to read the TLS settings in time") from None


async def resolve(host: str, port: int, kind: socket.SocketKind, deadline: float) -> list[Address]:
    """Find the addresses of a host, in the order the resolver prefers; `deadline` is in the loop's time.

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
        raise BridgeError(
            ErrorCode.NAME_NOT_FOUND, f"The host name {host!r} cannot be resolved: {error.strerror}"
        ) from error
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
    return addresses


async def try_addresses(
    addresses: list[Address], deadline: float, dial: Callable[[Address, float], Awaitable[None]]
) -> None:
    """Call `dial(address, its deadline)` for one address after the other until one succeeds.

    Raises the BridgeError that says most about the cause.
    """
    loop = asyncio.get_running_loop()
    errors: list[BridgeError] = []
    for index, address in enumerate(addresses):
        is_last = index == len(addresses) - 1
        try:
            await dial(address, deadline if is_last else min(deadline, loop.time() + ADDRESS_TIMEOUT))
        except BridgeError as error:
            _LOGGER.debug("No connection to %s: %s", address, error)
            errors.append(error)
            if loop.time() >= deadline:
                break
        else:
            return
    best = max(errors, key=lambda error: _UNINFORMATIVE.index(error.code) if error.code in _UNINFORMATIVE else 9)
    if len(errors) == 1:
        raise best
    raise BridgeError(best.code, f"{best.text} (tried {len(errors)} addresses)", reason_code=best.reason_code) from best


def reach_error(error: OSError, address: Address) -> BridgeError:
    """Name the system's refusal to send to an address, or the network's."""
    if error.errno == errno.ECONNREFUSED:
        return BridgeError(ErrorCode.REFUSED, f"Nothing listens on {address}: the host refused the connection")
    if error.errno == errno.ETIMEDOUT:
        return BridgeError(ErrorCode.NO_ANSWER, f"{address} did not answer")
    return BridgeError(ErrorCode.UNREACHABLE, f"{address} cannot be reached: {error.strerror or error}")


def no_answer(address: Address, seconds: float, what: str = "") -> BridgeError:
    """Make the error of a deadline that passed while dialling; `what` did not come, or why it may not."""
    return BridgeError(ErrorCode.NO_ANSWER, f"{address} did not answer within {seconds:.1f} s{what}")
