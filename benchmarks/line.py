"""A bad line between two network namespaces: every IP packet takes its time, or is lost, in either direction.

The kernel's own netem does the same, but many kernels are built without it, those of small virtual machines and of our
CI among them. So the line is a process that carries packets between two TUN devices, one in each namespace: what is
lost are packets, so TCP and QUIC meet the same losses, and each with its own means.

Namespaces and devices have no names, and no more life than the processes that hold them: however these end, nothing is
left behind.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
import contextlib
import fcntl
import json
import os
from pathlib import Path
import shutil
import socket
import struct
import subprocess
import sys
import threading
from typing import Final, Self, override

from tests.support.udp import Address, Shaper

from .bridge_process import REPOSITORY

HOME_ADDRESS: Final = "10.77.0.1"
AWAY_ADDRESS: Final = "10.77.0.2"
DEVICE: Final = "line"
_TUN: Final = Path("/dev/net/tun")
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x0001 | 0x1000
_PACKET_SIZE: Final = 65536
_NOBODY: Final[Address] = ("", 0)
_BURST: Final = 32

_entering = asyncio.Lock()
"""A thread is in one namespace at a time, and all tasks share one thread."""


def why_not() -> str | None:
    """Tell what is missing to make a line here; None: nothing."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the program ip is not installed (Debian and Ubuntu: apt install iproute2)"
    if not _TUN.exists():
        return f"{_TUN} is not there"
    try:
        Namespace().close()
    except OSError as error:
        return f"network namespaces cannot be made here ({error})"
    return None


class Namespace:
    """A network namespace of its own, with nothing in it but loopback."""

    def __init__(self) -> None:
        """Make it; raises OSError."""
        self._fd = -1
        self._failure: OSError | None = None
        # Only the thread that makes it is in it, and that ends.
        thread = threading.Thread(target=self._make)
        thread.start()
        thread.join()
        if self._failure is not None:
            raise self._failure

    def _make(self) -> None:
        try:
            os.unshare(os.CLONE_NEWNET)
            self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._failure = error

    @contextlib.asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Be in it: sockets that are made and processes that are started meanwhile belong to it for good."""
        async with _entering:
            with self._entered():
                yield

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.setns(self._fd, os.CLONE_NEWNET)
            yield
        finally:
            os.setns(before, os.CLONE_NEWNET)
            os.close(before)

    def open_device(self, address: str) -> int:
        """Make the line's device here, with this address, and return the file that its packets pass through."""
        with self._entered():
            device = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN_NO_PI))
            for command in (
                "link set lo up",
                f"address add {address}/24 dev {DEVICE}",
                f"link set {DEVICE} up",
            ):
                subprocess.run(["ip", *command.split()], check=True)
            return device

    def close(self) -> None:
        """Let go of it; it vanishes with the last process and socket in it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Line(contextlib.AsyncExitStack):
    """Two namespaces and the line between them, which at first is perfect."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Namespace()
        self.away = Namespace()
        self._process: asyncio.subprocess.Process | None = None

    @override
    async def __aenter__(self) -> Self:
        for namespace in (self.home, self.away):
            self.callback(namespace.close)
        try:
            devices = [
                self.home.open_device(HOME_ADDRESS),
                self.away.open_device(AWAY_ADDRESS),
            ]
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "benchmarks.line",
                *map(str, devices),
                cwd=REPOSITORY,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=devices,
            )
            self.push_async_callback(self._end)
            for device in devices:
                os.close(device)
            await self._command("mark")
        except BaseException:
            await self.aclose()
            raise
        return self

    async def _end(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await self._process.wait()

    async def _command(self, name: str, *arguments: float) -> float | None:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("there is no line")
        process.stdin.write(f"{json.dumps([name, *arguments])}\n".encode())
        answer = await process.stdout.readline()
        if not answer:
            raise RuntimeError("the line's process has ended")
        result: float | None = json.loads(answer)
        return result

    async def shape(self, loss: float, rtt: float) -> None:
        """Lose this share of packets in each direction; each takes half of `rtt` (in seconds)."""
        await self._command("shape", loss, rtt)

    async def cut(self) -> None:
        """Let nothing through."""
        await self._command("cut", 1)

    async def mend(self) -> None:
        """Undo `cut`."""
        await self._command("cut", 0)

    async def mark(self) -> None:
        """Forget what `first_packet` tells."""
        await self._command("mark")

    async def first_packet(self) -> float | None:
        """Tell when the first packet since the mark left home that opens a connection, on the event loop's clock."""
        return await self._command("first")


class _Carrier:
    """What runs in the line's process: takes packets from one device and, later or never, gives them to the other."""

    def __init__(self, devices: tuple[int, int]) -> None:
        self._first: float | None = None
        self._loop = asyncio.get_running_loop()
        self._shapers = []
        for number, (source, target) in enumerate((devices, devices[::-1])):
            shaper = Shaper(lambda packet, _, target=target: _write(target, packet), seed=int.from_bytes(os.urandom(4)))  # type: ignore[misc]
            self._shapers.append(shaper)
            self._loop.add_reader(source, self._take, source, shaper, number == 0)

    def _take(self, source: int, shaper: Shaper, from_home: bool) -> None:
        for _ in range(_BURST):
            try:
                packet = os.read(source, _PACKET_SIZE)
            except BlockingIOError:
                return
            if packet[0] >> 4 != 4:
                continue  # what IPv6 does on every new device
            if from_home and self._first is None and _opens_connection(packet):
                self._first = self._loop.time()
            shaper.push(packet, _NOBODY)

    def obey(self, command: str) -> float | None:
        """Carry out one command; returns its answer."""
        name, *arguments = json.loads(command)
        for shaper in self._shapers:
            if name == "shape":
                shaper.impairment.loss, shaper.impairment.delay = arguments[0], arguments[1] / 2
            elif name == "cut":
                shaper.impairment.blackhole = bool(arguments[0])
        if name == "mark":
            self._first = None
        return self._first


def _opens_connection(packet: bytes) -> bool:
    """Tell a SYN, and a QUIC packet of the handshake (long header), from what an earlier connection still sends."""
    header = (packet[0] & 0x0F) * 4
    if packet[9] == socket.IPPROTO_TCP:
        return packet[header + 13] & 0x12 == 0x02
    return packet[9] == socket.IPPROTO_UDP and packet[header + 8] & 0x80 != 0


def _write(device: int, packet: bytes) -> None:
    # Full, as any queue on the way may be.
    with contextlib.suppress(BlockingIOError):
        os.write(device, packet)


async def _serve(devices: tuple[int, int]) -> None:
    carrier = _Carrier(devices)
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb", closefd=False)
    )
    while line := await reader.readline():
        print(json.dumps(carrier.obey(line.decode())), flush=True)
    transport.close()


if __name__ == "__main__":
    asyncio.run(_serve((int(sys.argv[1]), int(sys.argv[2]))))
