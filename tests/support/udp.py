"""A UDP socket on loopback that can be as bad as a real network: both directions, seeded."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, fields
import heapq
import itertools
import random
import socket

type Address = tuple[str, int]
type Deliver = Callable[[bytes, Address], None]

_BURST = 32
_BUFFER = 4 * 1024 * 1024


@dataclass(kw_only=True)
class Impairment:
    """What happens to the datagrams of one direction; every field may be changed at any time."""

    loss: float = 0.0
    """Share of datagrams that vanish, 0 to 1."""
    duplicate: float = 0.0
    """Share that comes twice."""
    delay: float = 0.0
    """Seconds that each takes."""
    jitter: float = 0.0
    """Up to so many seconds more, at random: datagrams overtake each other."""
    reorder: float = 0.0
    """Share that is overtaken by those sent in the next `reorder_by` seconds."""
    reorder_by: float = 0.01
    rate: float | None = None
    """Bytes a second; what waits longer than `rate_queue` seconds is dropped."""
    rate_queue: float = 0.2
    mtu: int | None = None
    """Larger datagrams vanish (bytes of UDP payload)."""
    blackhole: bool = False
    """Everything vanishes."""
    drop: Callable[[bytes], bool] | None = None
    """Datagrams for which this is true vanish."""

    def clear(self) -> None:
        """Make the network good again."""
        for setting in fields(self):
            setattr(self, setting.name, setting.default)

    @property
    def active(self) -> bool:
        """Whether anything is wrong at all."""
        return bool(
            self.loss
            or self.duplicate
            or self.delay
            or self.jitter
            or self.reorder
            or self.blackhole
            or self.rate is not None
            or self.mtu is not None
            or self.drop is not None
        )


class Shaper:
    """Apply an impairment to datagrams on their way to `deliver`; one timer, released by `close`."""

    def __init__(self, deliver: Deliver, on_batch: Callable[[], None] | None = None, seed: int = 1) -> None:
        self.impairment = Impairment()
        self.passed = 0
        self.dropped = 0
        self._deliver = deliver
        self._on_batch = on_batch
        self._random = random.Random(seed)
        self._queue: list[tuple[float, int, bytes, Address]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._free_at = 0.0

    def push(self, data: bytes, address: Address) -> None:
        """Deliver at once, later, twice or never."""
        settings = self.impairment
        if not self._queue and not settings.active:
            self.passed += 1
            self._deliver(data, address)
            return
        if (
            settings.blackhole
            or (settings.mtu is not None and len(data) > settings.mtu)
            or (settings.drop is not None and settings.drop(data))
            or self._random.random() < settings.loss
        ):
            self.dropped += 1
            return
        now = asyncio.get_running_loop().time()
        due = now
        if settings.rate is not None:
            if self._free_at - now > settings.rate_queue:
                self.dropped += 1
                return
            self._free_at = due = max(now, self._free_at) + len(data) / settings.rate
        due += settings.delay + self._random.random() * settings.jitter
        if self._random.random() < settings.reorder:
            due += settings.reorder_by
        for _ in range(2 if self._random.random() < settings.duplicate else 1):
            heapq.heappush(self._queue, (due, next(self._order), data, address))
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            if self._timer.when() <= self._queue[0][0]:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(self._queue[0][0], self._due)

    def _due(self) -> None:
        self._timer = None
        # The loop fires timers up to its clock's resolution early.
        now = asyncio.get_running_loop().time() + 0.001
        while self._queue and self._queue[0][0] <= now:
            _, _, data, address = heapq.heappop(self._queue)
            self.passed += 1
            self._deliver(data, address)
        if self._queue:
            self._arm()
        if self._on_batch is not None:
            self._on_batch()

    def close(self) -> None:
        """Forget what is on its way."""
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class UdpEndpoint:
    """A bound, unconnected UDP socket read in bursts, with an impairment in each direction."""

    def __init__(self, on_datagram: Deliver, on_batch: Callable[[], None] | None = None, *, seed: int = 1) -> None:
        """Make it closed; `on_batch` is called after each burst of `on_datagram`."""
        self.incoming = Shaper(on_datagram, on_batch, seed)
        self.outgoing = Shaper(self._send, None, seed + 1)
        self._on_batch = on_batch
        self._socket: socket.socket | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a socket."""
        return self._socket is not None

    @property
    def address(self) -> Address:
        """Where it listens; raises RuntimeError when it is closed."""
        if self._socket is None:
            raise RuntimeError("the UDP socket is closed")
        host, port = self._socket.getsockname()[:2]
        return host, port

    def open(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Bind; raises OSError."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            sock.bind((host, port))
            asyncio.get_running_loop().add_reader(sock.fileno(), self._readable)
        except BaseException:
            sock.close()
            raise
        self._socket = sock

    def close(self) -> None:
        """Close the socket without a word (the kernel then answers with ICMP port unreachable); idempotent."""
        self.incoming.close()
        self.outgoing.close()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def send(self, data: bytes, address: Address) -> None:
        """Send through the outgoing impairment."""
        self.outgoing.push(data, address)

    def _send(self, data: bytes, address: Address) -> None:
        if self._socket is not None:
            try:
                self._socket.sendto(data, address)
            except OSError:
                # A full buffer or an ICMP message of an earlier datagram: lost, as on any network.
                self.outgoing.dropped += 1

    def _readable(self) -> None:
        sock = self._socket
        push = self.incoming.push
        for _ in range(_BURST):
            if sock is None or self._socket is not sock:
                break
            try:
                data, address = sock.recvfrom(65535)
            except BlockingIOError:
                break
            except OSError:
                continue
            push(data, address[:2])
        if self._on_batch is not None:
            self._on_batch()
