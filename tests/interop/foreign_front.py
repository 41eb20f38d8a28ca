"""MQTT over QUIC by stacks that share no code with ours: a small front for each, as a process, in front of a broker.

All fronts take the same options, obey the same commands (a line on their standard input, for every connection there
is) and tell the same events (a line of JSON on their standard output):

    options     --listen, --broker, --cert, --key, --client-ca, --alpn, --retry, --early-data
    commands    close CODE (CONNECTION_CLOSE of the application), fin, reset CODE (RESET_STREAM)
    events      listening; connected: peer, alpn, resumed, early_data, client_certificate; moved: peer;
                key_updated: by_peer (quic-go alone knows); closed: by_peer, application, code

SIGTERM and the end of their input end them with CONNECTION_CLOSE 0. `scripts/lib/foreign-quic` prepares them.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
import json
from pathlib import Path
import shutil
from typing import Any, Final, override

from ..support.certs import Certificate
from ..support.processes import Service, free_port, wait_until
from ..support.udp import Address

REPOSITORY: Final = Path(__file__).parents[2]
PREPARED: Final = REPOSITORY / ".interop"
"""Where scripts/lib/foreign-quic puts what the fronts need."""


class Stack(StrEnum):
    """A QUIC implementation."""

    QUICHE = "quiche"
    """Cloudflare's, in Rust with BoringSSL; its Node binding from npm."""
    QUIC_GO = "quic-go"
    """In Go with Go's own TLS; from Debian."""

    @property
    def command(self) -> Sequence[str | Path]:
        """How its front is started."""
        if self is Stack.QUICHE:
            return "node", Path(__file__).parent / "fronts" / "quiche" / "front.mjs"
        return (PREPARED / "quic-go" / "front",)

    @property
    def missing(self) -> str | None:
        """What is not there; None: it can be started."""
        if self is Stack.QUICHE:
            if shutil.which("node") is None:
                return "node is not installed"
            needed = PREPARED / "quiche" / "node_modules"
        else:
            needed = PREPARED / "quic-go" / "front"
        return None if needed.exists() else f"{needed.relative_to(REPOSITORY)} is not there: scripts/lib/foreign-quic"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontOptions:
    """What a front does differently."""

    client_ca_file: Path | None = None
    """Clients must show a certificate of this authority."""
    alpn: str = "mqtt"
    retry: bool = False
    """Answer the first Initial with a Retry (RFC 9000 section 8.1.2)."""
    early_data: bool = False
    """Take what comes with the first flight of a resumed connection (0-RTT)."""


type Event = dict[str, Any]
"""As parsed from JSON."""


class ForeignFront(Service):
    """One front on loopback; the port stays the same over restarts."""

    takes_commands = True

    def __init__(
        self,
        stack: Stack,
        folder: Path,
        broker: Address,
        certificate: Certificate,
        options: FrontOptions | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        super().__init__(stack.value, folder / f"{stack.value}.log")
        self.stack = stack
        self.host = host
        self.port = port or free_port()
        self.options = options or FrontOptions()
        """May be changed between a stop and the next start."""
        self.certificate = certificate
        self._broker = broker

    @property
    def address(self) -> Address:
        """Host and port of the QUIC listener."""
        return self.host, self.port

    def events(self, name: str) -> list[Event]:
        """All events of that name so far, over all starts."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    async def event(self, name: str, number: int = 1, timeout: float = 15.0) -> Event:  # noqa: ASYNC109
        """Wait until there are so many events of that name; returns the last of these.

        Raises TimeoutError with what it has told instead.
        """
        try:
            await wait_until(lambda: len(self.events(name)) >= number, timeout)
        except TimeoutError:
            raise TimeoutError(f"{name} no. {number} not told within {timeout:g} s:\n{self.log}") from None
        return self.events(name)[number - 1]

    @override
    async def start(self) -> None:
        """Start it and wait until it listens; raises RuntimeError with its output when it does not."""
        before = len(self.events("listening"))
        options = self.options
        command = [
            *self.stack.command,
            f"--listen={self.host}:{self.port}",
            f"--broker={self._broker[0]}:{self._broker[1]}",
            f"--cert={self.certificate.cert_file}",
            f"--key={self.certificate.key_file}",
            f"--alpn={options.alpn}",
            *(["--retry"] if options.retry else []),
            *(["--early-data"] if options.early_data else []),
            *([f"--client-ca={options.client_ca_file}"] if options.client_ca_file is not None else []),
        ]
        await self.spawn(command)
        try:
            await wait_until(lambda: not self.running or len(self.events("listening")) > before)
        except TimeoutError, asyncio.CancelledError:
            await self.stop()
            raise
        if not self.running:
            raise RuntimeError(f"the front on {self.name} did not start:\n{self.log}")
