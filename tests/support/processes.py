"""Start, watch and end processes of our own, by their id, within a bounded time."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
import contextlib
from itertools import cycle, islice
import os
from pathlib import Path
import random
import signal
import socket
from typing import Self

PATIENCE = 60.0
"""Seconds for what a quiet machine does in one or two: only a test that fails waits so long."""
AT_ONCE = 8.0
"""Seconds that show that nothing was waited for, as what would be waited for takes longer; the machine may stand still
for some of them."""
_POLL = 0.01


def _own_ports() -> Iterator[int]:
    """Give this worker of pytest-xdist ports that no other has, each in turn: a broker that is down needs its again."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % workers
    size = 12_000 // workers
    start = random.randrange(size)
    return cycle(20_000 + number * size + (start + step) % size for step in range(size))


_PORTS = _own_ports()


def free_port() -> int:
    """Find a loopback port that is free for TCP and UDP.

    It lies below the kernel's range for outgoing connections, so that none of these takes it while a broker that is
    to come back on the same port is down.
    """
    for port in islice(_PORTS, 1000):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError("no free port on loopback")


async def wait_until(condition: Callable[[], object], timeout: float = PATIENCE, what: str = "condition") -> None:  # noqa: ASYNC109
    """Wait for a condition; raises TimeoutError which says what was waited for."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not condition():
        if loop.time() >= deadline:
            raise TimeoutError(f"{what} not seen within {timeout:g} s")
        await asyncio.sleep(_POLL)


async def tcp_answers(host: str, port: int) -> bool:
    """Tell whether something accepts TCP connections there."""
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


class ManagedProcess:
    """A process of ours, its output appended to a file."""

    takes_commands = False
    """Whether it has a standard input, for `command`."""

    def __init__(self, name: str, log_file: Path) -> None:
        self.name = name
        self.log_file = log_file
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The process id; raises RuntimeError when it does not run."""
        return self._alive().pid

    @property
    def log(self) -> str:
        """Everything it wrote to its standard output and error, over all its starts."""
        try:
            return self.log_file.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def _alive(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            raise RuntimeError(f"{self.name} does not run")
        return self._process

    async def spawn(self, command: Sequence[str | Path], cwd: Path | None = None) -> None:
        """Start it; raises OSError when the program is not there."""
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        with self.log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                cwd=cwd,
                stdin=asyncio.subprocess.PIPE if self.takes_commands else asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
            )

    def command(self, line: str) -> None:
        """Write a line to its standard input; raises RuntimeError when it does not run or takes no commands."""
        stdin = self._alive().stdin
        if stdin is None:
            raise RuntimeError(f"{self.name} takes no commands")
        stdin.write(f"{line}\n".encode())

    async def stop(self) -> None:
        """Ask it to end (SIGTERM), make it end after a while; does nothing when it does not run."""
        if not self.running:
            return
        process = self._alive()
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            async with asyncio.timeout(PATIENCE):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        process = self._alive()
        process.kill()
        await process.wait()

    def freeze(self) -> None:
        """Stop it in its tracks (SIGSTOP): its sockets stay open and nothing answers."""
        self._alive().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._alive().send_signal(signal.SIGCONT)


class Service(ManagedProcess):
    """A process that listens; subclasses say how it starts and when it is ready."""

    async def start(self) -> None:
        """Start it and wait until it answers."""
        raise NotImplementedError

    async def restart(self) -> None:
        """Stop it in good order and start it again on the same port."""
        await self.stop()
        await self.start()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
