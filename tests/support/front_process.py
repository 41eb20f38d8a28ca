"""The QUIC front as a process of its own: for kill -9, the demo and the benchmarks."""

import asyncio
from pathlib import Path
import sys
from typing import override

from .certs import Certificate
from .processes import Service, free_port, wait_until
from .udp import Address

REPOSITORY = Path(__file__).parents[2]


class FrontProcess(Service):
    """`python -m tests.support.quic_front` in front of a broker; the port stays the same over restarts."""

    host = "127.0.0.1"

    def __init__(
        self,
        folder: Path,
        broker: Address,
        certificate: Certificate,
        *,
        port: int = 0,
        arguments: tuple[str, ...] = (),
        name: str = "quic_front",
    ) -> None:
        super().__init__(name, folder / f"{name}.log")
        self.port = port
        self._broker = broker
        self._certificate = certificate
        self._arguments = arguments

    @property
    def address(self) -> Address:
        """Host and port of the QUIC listener."""
        return self.host, self.port

    @override
    async def start(self) -> None:
        """Start it and wait until it says that it listens; raises RuntimeError with its output when it does not."""
        self.port = self.port or free_port()
        before = len(self.log)
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "tests.support.quic_front",
            f"--listen={self.host}:{self.port}",
            f"--broker={self._broker[0]}:{self._broker[1]}",
            f"--cert={self._certificate.cert_file}",
            f"--key={self._certificate.key_file}",
            *self._arguments,
        ]
        await self.spawn(command, cwd=REPOSITORY)
        try:
            await wait_until(lambda: not self.running or "listening" in self.log[before:])
        except TimeoutError, asyncio.CancelledError:
            await self.stop()
            raise
        if not self.running:
            raise RuntimeError(f"{self.name} did not start:\n{self.log[before:]}")
